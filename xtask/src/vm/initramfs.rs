//! The initramfs: busybox, modules, the program to run, and the script that runs it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::machine::{BEGIN, BROKEN, EXIT};
use crate::cmd::{Cmd, find_program, quoted};

/// What goes into an initramfs.
pub(super) struct Contents<'a> {
    pub(super) binary: &'a Path,
    pub(super) arguments: &'a [String],
    pub(super) files: &'a [PathBuf],
    /// In the order to load them in.
    pub(super) modules: Vec<PathBuf>,
}

impl Contents<'_> {
    /// Makes the image under `scratch` and returns its path.
    pub(super) fn pack(&self, scratch: &Path) -> Result<PathBuf> {
        let root = scratch.join("root");
        for directory in ["bin", "dev", "etc", "modules", "proc", "run", "sys", "tmp"] {
            let directory = root.join(directory);
            fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        }
        let busybox = find_program("busybox").context("busybox is missing: run `cargo xtask setup`")?;
        copy(&busybox, &root.join("bin/busybox"))?;
        // At its own path: programs look for files beside them.
        let binary = absolute(self.binary)?;
        for file in self.files.iter().chain([&binary]) {
            copy_with_libraries(file, &under(&root, &absolute(file)?), &root)?;
        }
        for (number, module) in self.modules.iter().enumerate() {
            copy(module, &root.join(format!("modules/{number:03}.ko")))?;
        }
        write_init(&root.join("init"), &script(&binary, self.arguments))?;
        archive(&root, scratch)
    }
}

fn archive(root: &Path, scratch: &Path) -> Result<PathBuf> {
    let image = scratch.join("initramfs.cpio");
    let pack = r#"find . | cpio --create --format=newc --owner=0:0 --quiet > "$1""#;
    Cmd::new("sh").args(["-c", pack, "sh"]).arg(&image).directory(root).read()?;
    Ok(image)
}

/// The first process of the machine: mounts, modules, the program, its exit status on the console.
fn script(binary: &Path, arguments: &[String]) -> String {
    let words = std::iter::once(binary.as_os_str()).chain(arguments.iter().map(AsRef::as_ref));
    let command = words.map(quoted).collect::<Vec<_>>().join(" ");
    format!(
        r#"#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
broken() {{ echo "{BROKEN}$1"; poweroff -f; }}
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys || broken "mounting /sys"
mount -t devtmpfs devtmpfs /dev || broken "mounting /dev"
mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /run || broken "mounting /tmp and /run"
mount -t bpf bpf /sys/fs/bpf || broken "mounting bpffs"
mount -t cgroup2 cgroup2 /sys/fs/cgroup || broken "mounting cgroup v2"
for module in /modules/*.ko; do insmod $module || broken "loading $module"; done
ip link set lo up || broken "setting lo up"
cd /tmp
echo "{BEGIN}"
{command} 2>&1
code=$?
echo
echo "{EXIT}$code"
poweroff -f
"#
    )
}

fn write_init(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("making init executable")
}

/// Copies a file, and if it is a program, its libraries and its interpreter to where it expects them.
fn copy_with_libraries(from: &Path, to: &Path, root: &Path) -> Result<()> {
    copy(from, to)?;
    // `ldd` refuses what is no dynamic program, and that needs nothing.
    let (_, output) = Cmd::new("ldd").arg(absolute(from)?).output()?;
    if !output.status.success() {
        return Ok(());
    }
    let libraries = libraries(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("finding the libraries of {}", from.display()))?;
    libraries.iter().try_for_each(|library| copy(library, &under(root, library)))
}

/// The paths in the output of `ldd`.
fn libraries(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in ldd.lines().map(str::trim) {
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        if place == "not found" {
            bail!("`{line}`: install the library");
        }
        // What has no path is a part of the kernel's, or a remark such as "statically linked".
        if place.starts_with('/') {
            found.extend(place.split(" (").next().map(PathBuf::from));
        }
    }
    Ok(found)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("finding where {} is", path.display()))
}

/// The absolute `path` in the tree at `root`.
fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_interpreter_are_read_from_ldd() {
        let ldd =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux.so.2 (0x3)\n";
        assert_eq!(
            libraries(ldd).unwrap(),
            [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld-linux.so.2")]
        );
        assert!(libraries("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_library_that_is_missing_is_named() {
        let error = libraries("\tlibx.so.1 => not found\n").unwrap_err().to_string();
        assert_eq!(error, "`libx.so.1 => not found`: install the library");
    }

    #[test]
    fn arguments_reach_the_program_as_they_were_given() {
        let script = script(Path::new("/built/it"), &["--exact".to_owned(), "it's $HOME".to_owned()]);
        assert!(script.contains("\n/built/it --exact 'it'\\''s $HOME' 2>&1\n"), "{script}");
    }
}
