//! `bench`: the measurements behind docs/benchmarks.md.

use anyhow::Result;
use clap::Args;

use crate::demo;

/// What the benchmarks are given.
#[derive(Args)]
pub(crate) struct Options {
    /// Arguments of the benchmarks; see `cargo xtask bench -- --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    demo::become_binary("portolan-bench", &options.arguments)
}
