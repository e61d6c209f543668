//! Development tasks: `cargo xtask <task>`.
//!
//! Every task that needs tools or a build asks for them itself, so each works on a fresh clone.

mod bench;
mod build;
mod ci;
mod cmd;
mod demo;
mod edges;
mod object;
mod paths;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, build, tests, CI, demo and benchmarks of Portolan.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the demo need; safe to repeat
    Setup(setup::Options),
    /// Set up, then build the workspace
    Build(build::Options),
    /// Set up, then build the eBPF object alone
    BuildEbpf,
    /// Set up, build, then run the tests of one tier or of all of them
    Test(test::Options),
    /// Format, lints, dependency edges, object checks and tests
    Ci,
    /// Check workspace dependencies against the list the architecture allows
    CheckEdges,
    /// Check the eBPF object: functions, panics, stack depth, verified instructions
    CheckObject(object::Options),
    /// Run a test binary on Debian's 6.1 kernel in a virtual machine
    Vm(vm::Options),
    /// Bring up a two-node cluster on this machine and show it at work
    Demo(demo::Options),
    /// Measure, and print the tables of docs/benchmarks.md
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            // Without the backtrace that `{error:?}` appends when RUST_BACKTRACE is set.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Setup(options) => setup::with(&options)?,
        Task::Build(options) => build::run(&options)?,
        Task::BuildEbpf => build::run_ebpf()?,
        Task::Test(options) => test::run(&options)?,
        Task::Ci => ci::run()?,
        Task::CheckEdges => edges::run()?,
        Task::CheckObject(options) => object::run(&options)?,
        Task::Vm(options) => return vm::run(&options),
        Task::Demo(options) => demo::run(&options)?,
        Task::Bench(options) => bench::run(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}
