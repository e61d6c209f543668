//! The `portolan` binary: agent and command line.

use std::process::ExitCode;

use clap::Parser;
use portolan::agent;
use portolan::cli::{self, Arguments, Root};

fn main() -> ExitCode {
    let Arguments { global, command } = Arguments::parse();
    let result = match command {
        Root::Agent(options) => agent::run(*options, &global),
        Root::Uninstall(options) => agent::uninstall(&options, &global),
        Root::View(command) => cli::run(command, &global),
    };
    result.unwrap_or_else(|error| {
        eprintln!("portolan: {error:#}");
        ExitCode::FAILURE
    })
}
