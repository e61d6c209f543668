//! `setup`: everything a fresh machine needs, installed once.
//!
//! What is already there is used as it is; on a machine that has everything nothing is run but probes.

mod machine;
mod mounts;
mod packages;
mod toolchain;

use anyhow::Result;

pub(crate) use toolchain::TOOLCHAIN;

use machine::Machine;
use toolchain::Compiler;

pub(crate) fn run() -> Result<()> {
    let machine = Machine::detect();
    let compiler = Compiler::find()?;
    let debian = compiler.needs_debian_packages(&machine)?;
    let mut missing = packages::missing(packages::TOOLS);
    if debian {
        missing.extend(packages::missing(packages::TOOLCHAIN));
    }
    packages::install(&machine, &missing)?;
    toolchain::ensure(compiler, debian)?;
    toolchain::ensure_components()?;
    mounts::ensure(&machine)
}
