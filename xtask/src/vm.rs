//! `vm`: one test binary on the oldest kernel that Portolan supports, Debian 12's 6.1, under emulation.
//!
//! Nothing is installed and no network is there: the kernel boots from files under `target/vm` into an
//! initramfs that holds busybox, kernel modules and the binary. Speeds measured in it mean nothing.

mod initramfs;
mod kernel;
mod machine;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{paths, setup};
use initramfs::Contents;
use kernel::Kernel;

/// What to run in the virtual machine.
#[derive(Args)]
pub(crate) struct Options {
    /// The program to run as root; its exit status becomes ours
    #[arg(long, value_name = "PATH")]
    binary: PathBuf,
    /// Another file that the program needs, found there at the same path; programs bring their libraries
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// A kernel module to load besides those of the tests, with what it depends on
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Seconds until the machine is given up
    #[arg(long, default_value_t = 180)]
    deadline: u64,
    /// Arguments of the program
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::run()?;
    let kernel = Kernel::cached_or_downloaded()?;
    let scratch = Scratch::make()?;
    let contents = Contents {
        binary: &options.binary,
        arguments: &options.arguments,
        files: &options.files,
        modules: kernel.modules(&options.modules)?,
    };
    let initramfs = contents.pack(&scratch.0)?;
    machine::run(kernel.image(), &initramfs, Duration::from_secs(options.deadline))
}

/// Where kernels are kept and initramfs images are made.
fn directory() -> PathBuf {
    paths::target().join("vm")
}

/// A directory of this run, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self> {
        remove_stale(&directory())?;
        let path = directory().join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("warning: {} is left: {error}", self.0.display());
        }
    }
}

/// Removes what interrupted runs have left in `directory`.
fn remove_stale(directory: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix("run-")) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let stale = entry.path();
            fs::remove_dir_all(&stale).with_context(|| format!("removing {}", stale.display()))?;
        }
    }
    Ok(())
}
