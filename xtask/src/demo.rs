//! `demo`: the two-node cluster on this machine.

use anyhow::Result;
use clap::Args;

use crate::{build, cmd::Cmd, paths, setup};

/// What the demo is given.
#[derive(Args)]
pub(crate) struct Options {
    /// Arguments of the demo, such as --keep; see `cargo xtask demo -- --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    become_binary("portolan-demo", &options.arguments)
}

/// Builds the workspace in release and becomes `binary`, so that Ctrl-C and the exit status are its own.
pub(crate) fn become_binary(binary: &str, arguments: &[String]) -> Result<()> {
    setup::run()?;
    build::workspace(true)?;
    match Cmd::new(paths::target().join("release").join(binary)).args(arguments).exec()? {}
}
