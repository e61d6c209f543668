//! `build` and `build-ebpf`.

use anyhow::{Result, bail};
use clap::Args;

use crate::{cmd::Cmd, paths, setup};

/// What to build.
#[derive(Args)]
pub(crate) struct Options {
    /// Optimise
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run()?;
    workspace(options.release)
}

pub(crate) fn run_ebpf() -> Result<()> {
    setup::run()?;
    ebpf()
}

/// Builds every binary and library, and through `dataplane/node` the eBPF object.
pub(crate) fn workspace(release: bool) -> Result<()> {
    Cmd::cargo("build --workspace").args(release.then_some("--release")).run()
}

/// Builds the eBPF object at [`paths::ebpf_object`] as the build script of `dataplane/node` does.
pub(crate) fn ebpf() -> Result<()> {
    ebpf_cargo("build").run()?;
    let object = paths::ebpf_object();
    if !object.is_file() {
        bail!(
            "the build of ebpf/ left no object at {}: is its binary named portolan-ebpf?",
            object.display()
        );
    }
    Ok(())
}

/// `cargo <task>` on the eBPF crate with its own toolchain, target and flags.
///
/// The kernel's BTF comes from the debug information, hence `debuginfo=2` and the linker's `--btf`.
pub(crate) fn ebpf_cargo(task: &str) -> Cmd {
    let cargo = Cmd::new("rustup")
        .args(["run", setup::TOOLCHAIN, "cargo", task, "--release", "--locked"])
        .args(["-Zbuild-std=core", "--target", "bpfel-unknown-none", "--target-dir"])
        .arg(paths::ebpf_target())
        .directory(paths::ebpf())
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clink-arg=--disable-expand-memcpy-in-order",
        );
    // An outer cargo sets these for its own compiler; the inner one has to find its own.
    ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO"]
        .into_iter()
        .fold(cargo, Cmd::env_remove)
}
