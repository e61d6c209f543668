//! The files of a directory: which count, and which changed since they were last read.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Content;

/// Largest file that is read, in bytes: 100,000 services fit, a stray image of a disk does not.
const FILE_MAX: u64 = 16 << 20;

/// Reads a directory again and again, but each file only when it changed.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    seen: HashMap<PathBuf, Signature>,
}

/// Which files to treat in a special way in one scan.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    /// Read all files, whatever their signature.
    pub(crate) all: bool,
    /// Read these: an edit within one tick of the clock that keeps the size leaves the signature as it was.
    pub(crate) changed: BTreeSet<PathBuf>,
    /// Leave these as they were: somebody is writing them.
    pub(crate) unsettled: BTreeSet<PathBuf>,
}

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, seen: HashMap::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode: another directory may have taken the path.
    ///
    /// # Errors
    /// The path is not there or not reachable.
    pub(crate) fn identity(&self) -> io::Result<(u64, u64)> {
        fs::metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// All files that count, and their content where it changed.
    ///
    /// # Errors
    /// The directory cannot be listed. What was seen before stays.
    pub(crate) fn scan(&mut self, hints: &Hints) -> io::Result<Vec<(PathBuf, Content)>> {
        let mut files = Vec::new();
        let mut seen = HashMap::new();
        for entry in fs::read_dir(&self.path)? {
            let path = self.path.join(entry?.file_name());
            if !counts(&path) {
                continue;
            }
            let last = self.seen.get(&path).copied();
            // Symlinks are followed: a mounted ConfigMap is made of them.
            let metadata = match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => continue,
                // It went away between listing and looking, or it is a symlink to nowhere, which defines nothing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other,
            };
            let (signature, content) = look(&path, metadata, last, hints);
            seen.extend(signature.map(|signature| (path.clone(), signature)));
            files.push((path, content));
        }
        self.seen = seen;
        Ok(files)
    }
}

/// `*.yaml`, `*.yml` and `*.json`. Hidden files are editors' and the kubelet's own (`..data`).
pub(crate) fn counts(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json")
}

fn look(
    path: &Path,
    metadata: io::Result<Metadata>,
    last: Option<Signature>,
    hints: &Hints,
) -> (Option<Signature>, Content) {
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) => return (None, Content::Unreadable(format!("cannot be looked at: {error}"))),
    };
    if hints.unsettled.contains(path) {
        return (last, Content::Unchanged);
    }
    let signature = Signature::of(&metadata);
    if last == Some(signature) && !hints.all && !hints.changed.contains(path) {
        return (last, Content::Unchanged);
    }
    match read(path, &metadata) {
        Ok(bytes) => (Some(signature), Content::Bytes(bytes)),
        Err(reason) => (None, Content::Unreadable(reason)),
    }
}

fn read(path: &Path, metadata: &Metadata) -> Result<Vec<u8>, String> {
    // Opening a FIFO would wait for its other end.
    if !metadata.is_file() {
        return Err("not a regular file".into());
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(format!("cannot be read: {error}")),
        Ok(_) if bytes.len() as u64 > FILE_MAX => {
            Err(format!("larger than {} MiB; split it into several files", FILE_MAX >> 20))
        }
        Ok(_) => Ok(bytes),
    }
}
