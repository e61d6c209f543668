//! The `portolan` binary: agent and command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portolan::{agent, cli};

/// Pod networking and service load balancing for Kubernetes nodes, in eBPF.
#[derive(Parser)]
#[command(name = "portolan", version, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    global: cli::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent of this node
    Agent(Box<agent::Options>),
    /// Remove everything that the agent made on this node: programs, tables, interfaces, routes
    Uninstall(Box<agent::UninstallOptions>),
    #[command(flatten)]
    View(cli::Command),
}

fn main() -> ExitCode {
    let Arguments { global, command } = Arguments::parse();
    let result = match command {
        Command::Agent(options) => agent::run(*options, &global),
        Command::Uninstall(options) => agent::uninstall(&options, &global),
        Command::View(command) => cli::run(command, &global),
    };
    result.unwrap_or_else(|error| {
        eprintln!("portolan: {error:#}");
        ExitCode::FAILURE
    })
}
