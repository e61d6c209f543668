//! Files that are either wholly there after a crash or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Puts `bytes` in place of the file at `path` and returns it open for appending.
///
/// The directory must exist. When this returns, content and name are on disk; after a crash before that, the old or the new content is there.
///
/// # Errors
/// What the file system says. The old file is untouched then, unless only flushing the directory failed.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let temporary = temporary(path)?;
    let written = write_flushed(&temporary, bytes).and_then(|file| {
        fs::rename(&temporary, path)?;
        flush_parent(path)?;
        Ok(file)
    });
    if written.is_err() {
        // On a full disk the half-written file would keep the space that others wait for.
        drop(fs::remove_file(&temporary));
    }
    written
}

/// Removes the file at `path` so that it stays removed after a crash. A file that is not there is no error.
///
/// # Errors
/// What the file system says.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err),
        Ok(()) => flush_parent(path),
    }
}

fn write_flushed(path: &Path, bytes: &[u8]) -> io::Result<File> {
    // A left-over of a crash, or a link that somebody put there, is not written through.
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().append(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(file)
}

fn flush_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".tmp");
    Ok(path.with_file_name(hidden))
}
