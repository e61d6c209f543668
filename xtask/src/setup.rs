//! `setup`: everything a fresh machine needs, installed once.
//!
//! What is already there is used as it is; on a machine that has everything nothing is run but probes.

mod helm;
mod machine;
mod mounts;
mod packages;
mod toolchain;

use anyhow::Result;
use clap::Args;

pub(crate) use toolchain::TOOLCHAIN;

use machine::Machine;
use packages::Package;
use toolchain::Compiler;

/// What to install.
#[derive(Args)]
pub(crate) struct Options {
    /// Only what a build needs: no tools of tests, no mounts
    #[arg(long)]
    build_only: bool,
}

pub(crate) fn with(options: &Options) -> Result<()> {
    if options.build_only { compilers(&Machine::detect(), &[]) } else { run().and_then(|()| for_tests()) }
}

/// What tests alone need besides.
pub(crate) fn for_tests() -> Result<()> {
    helm::ensure()
}

/// Installs everything but what [tests](for_tests) need besides.
pub(crate) fn run() -> Result<()> {
    let machine = Machine::detect();
    compilers(&machine, packages::TOOLS)?;
    toolchain::ensure_components()?;
    mounts::ensure(&machine)
}

/// What compiles the eBPF programs, and `others`.
fn compilers(machine: &Machine, others: &'static [Package]) -> Result<()> {
    let compiler = Compiler::find()?;
    let debian = compiler.needs_debian_packages(machine)?;
    let mut missing = packages::missing(others);
    if debian {
        missing.extend(packages::missing(packages::TOOLCHAIN));
    }
    packages::install(machine, &missing)?;
    toolchain::ensure(compiler, debian)
}
