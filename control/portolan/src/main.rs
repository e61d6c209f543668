//! The `portolan` binary: agent and command line.

use std::process::ExitCode;

use clap::Parser;
use portolan::cli::{self, Arguments, Root};
use portolan::{agent, controller};

fn main() -> ExitCode {
    let Arguments { global, command } = Arguments::parse();
    let result = match command {
        Root::Agent(options) => agent::run(*options, &global),
        Root::Controller(options) => controller::run(&options),
        Root::Uninstall(options) => agent::uninstall(&options, &global),
        Root::View(command) => cli::run(command, &global),
    };
    result.unwrap_or_else(|error| {
        eprintln!("portolan: {error:#}");
        ExitCode::FAILURE
    })
}
