//! The compiler and linker of the eBPF programs, and the components that CI needs of the host's.
//!
//! `core` has to be built for the BPF target, so the compiler must come with its sources. Whatever compiler
//! that is, it is linked into rustup under one name, so that builds need not know which.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{machine::Machine, packages};
use crate::cmd::{Cmd, find_program};

/// The name rustup knows the eBPF compiler by.
pub(crate) const TOOLCHAIN: &str = "portolan-bpf";

const LINKER_VERSION: &str = "0.13.0";
/// The linker must read the compiler's bitcode: LLVM is the one that Debian's compiler was built with.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// Where Debian's compiler is.
const DEBIAN_SYSROOT: &str = "/usr";

/// What there is to compile eBPF programs with.
pub(super) enum Compiler {
    /// Linked, with sources, from this sysroot.
    Linked(PathBuf),
    /// A nightly of rustup's that has the sources, in this sysroot.
    Nightly(PathBuf),
    Absent,
}

impl Compiler {
    pub(super) fn find() -> Result<Self> {
        if find_program("rustup").is_none() {
            bail!("rustup is not on PATH: install it (see https://rustup.rs), then run this again");
        }
        Ok(if let Some(sysroot) = sysroot_with_sources(TOOLCHAIN) {
            Compiler::Linked(sysroot)
        } else if let Some(sysroot) = sysroot_with_sources("nightly") {
            Compiler::Nightly(sysroot)
        } else {
            Compiler::Absent
        })
    }

    /// Whether the compiler is or shall be Debian's, and so its packages have to be complete.
    pub(super) fn needs_debian_packages(&self, machine: &Machine) -> Result<bool> {
        match self {
            Compiler::Linked(sysroot) => Ok(sysroot == Path::new(DEBIAN_SYSROOT)),
            Compiler::Nightly(_) => Ok(false),
            Compiler::Absent if !machine.is_debian() => Ok(false),
            Compiler::Absent => {
                machine.require_root("installing a compiler for eBPF")?;
                packages::are_offered(packages::TOOLCHAIN)
            }
        }
    }
}

/// Links a compiler and installs the linker, where they are not there yet. Debian's packages are.
pub(super) fn ensure(compiler: Compiler, debian: bool) -> Result<()> {
    match compiler {
        Compiler::Linked(_) => {}
        Compiler::Nightly(sysroot) => link(&sysroot)?,
        Compiler::Absent if debian => link(Path::new(DEBIAN_SYSROOT))?,
        Compiler::Absent => link(&install_nightly()?)?,
    }
    match linker_version() {
        Some(version) if is_new_enough(&version) => Ok(()),
        _ if debian => install_linker_for_debian(),
        _ => install_linker(),
    }
}

/// The formatter and the lints of the host's toolchain.
pub(super) fn ensure_components() -> Result<()> {
    let sysroot = Cmd::new("rustc").args(["--print", "sysroot"]).directory(crate::paths::root()).read()?;
    let programs = Path::new(sysroot.trim()).join("bin");
    let components = [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")];
    let missing: Vec<&str> = components
        .into_iter()
        .filter(|(program, _)| !programs.join(program).is_file())
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Cmd::new("rustup").args(["component", "add"]).args(missing).run()
}

fn link(sysroot: &Path) -> Result<()> {
    Cmd::new("rustup").args(["toolchain", "link", TOOLCHAIN]).arg(sysroot).run()?;
    match sysroot_with_sources(TOOLCHAIN) {
        Some(_) => Ok(()),
        None => bail!("{} has no compiler with the sources of core", sysroot.display()),
    }
}

fn install_nightly() -> Result<PathBuf> {
    Cmd::new("rustup")
        .args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"])
        .args(["--component", "clippy"])
        .run()
        .context("no compiler for eBPF: neither Debian's packages nor rustup's nightly can be had here")?;
    sysroot_with_sources("nightly").context("the nightly that rustup installed has no sources of core")
}

fn install_linker_for_debian() -> Result<()> {
    cargo_install_linker()
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .run()?;
    verify_linker()
}

fn install_linker() -> Result<()> {
    cargo_install_linker().run().context(
        "bpf-linker could not be built: it needs LLVM's development files; \
         or put a released binary of it on PATH (`cargo binstall bpf-linker`)",
    )?;
    verify_linker()
}

fn cargo_install_linker() -> Cmd {
    Cmd::new("cargo").args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
}

fn verify_linker() -> Result<()> {
    match linker_version() {
        Some(version) if is_new_enough(&version) => Ok(()),
        Some(version) => bail!("an older bpf-linker ({version}) comes first on PATH: remove it"),
        None => bail!("bpf-linker is installed but not on PATH: add cargo's bin directory to PATH"),
    }
}

/// The sysroot of a toolchain that rustup knows and that can build `core`.
fn sysroot_with_sources(toolchain: &str) -> Option<PathBuf> {
    let sysroot = Cmd::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]).read().ok()?;
    let sysroot = PathBuf::from(sysroot.trim());
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists().then_some(sysroot)
}

/// The version of the linker that builds will find, for example `0.13.0`.
fn linker_version() -> Option<String> {
    let said = Cmd::new("bpf-linker").arg("--version").read().ok()?;
    said.split_whitespace().last().map(str::to_owned)
}

/// Newer linkers read the bitcode of older compilers, so a newer one that is already there will do.
fn is_new_enough(version: &str) -> bool {
    let numbers = |text: &str| text.split('.').map(|n| n.parse().ok()).collect::<Option<Vec<u32>>>();
    numbers(version) >= numbers(LINKER_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_new_enough("0.13.0"));
        assert!(is_new_enough("0.100.0"));
        assert!(!is_new_enough("0.9.15"));
        assert!(!is_new_enough("unknown"));
    }
}
