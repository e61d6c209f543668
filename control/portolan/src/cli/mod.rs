//! The command line: questions to the agent, and the pinned tables, which can be read while no agent runs.
//!
//! Every view is made in two steps: a value that `-o json` and `-o yaml` print as it is, and a pure function from
//! that value to text.

mod audit;
mod bgp;
mod client;
mod completion;
mod crds;
mod doctor;
#[cfg(test)]
mod documents;
mod drops;
mod explain;
mod flow;
mod lb;
mod output;
mod pod;
mod service;
mod status;
mod text;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

pub use client::AskError;
pub use completion::{Arguments, Root};
pub use output::{Format, Output};

/// Where the agent and its tables are; the same for all commands.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Socket of the agent
    #[arg(
        long,
        global = true,
        env = "PORTOLAN_SOCKET",
        value_name = "PATH",
        default_value = "/run/portolan/agent.sock"
    )]
    pub socket: PathBuf,
    /// Directory that the tables are pinned in
    #[arg(long, global = true, env = "PORTOLAN_PINS", value_name = "PATH", default_value_os_t = default_pins())]
    pub pins: PathBuf,
}

fn default_pins() -> PathBuf {
    format!("/sys/fs/bpf/portolan/{}", portolan_abi::VERSION).into()
}

/// What can be looked at.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Show the agent, its node and how full its tables are
    #[command(
        after_help = "While no agent runs, shows what of the data plane is in place, and exits with 1.\n\n\
        Example:\n  portolan status -o json"
    )]
    Status(Output),
    /// Look at services, their frontends and backends
    #[command(subcommand)]
    Service(service::Command),
    /// Look at the pods of this node
    #[command(subcommand)]
    Pod(pod::Command),
    /// Look at translated flows; works while no agent runs
    #[command(subcommand)]
    Flow(flow::Command),
    /// Look at what became of packets, and why some were dropped; works while no agent runs
    #[command(subcommand)]
    Drop(drops::Command),
    /// Look at the public addresses of services, and who announces them
    #[command(subcommand)]
    Lb(lb::Command),
    /// Look at what routers are told, and at the sessions with them
    #[command(subcommand)]
    Bgp(bgp::Command),
    /// Compare the kernel's tables, programs and pins with what the objects want; exits with 1 if they differ
    #[command(
        after_help = "The agent does the same every minute (--audit-interval) and mends what differs.\n\n\
        Example:\n  portolan audit -o json"
    )]
    Audit(Output),
    /// Look for what of this node is in the way: rules, sysctls, programs, ports; works while no agent runs
    #[command(
        after_help = "Changes nothing. Give the options that the agent is started with. Exits with 1 if there is an error.\n\n\
        Example:\n  portolan doctor --routing-mode vxlan"
    )]
    Doctor(Box<doctor::Doctor>),
    /// Tell what would become of a packet, and why; works while no agent runs
    #[command(
        after_help = "Nothing is sent: the packet path's own decision is asked with the live tables.\n\n\
        Example:\n  portolan explain default/web-1 10.96.0.10:80"
    )]
    Explain(explain::Explain),
    /// Watch live packets: how they come, what becomes of them, why they are dropped; works while no agent runs
    #[command(
        after_help = "Shows what the programs see, before and after translation. It ends by itself; nothing is slower afterwards.\n\n\
        Example:\n  portolan trace --host 10.96.0.10 --drops"
    )]
    Trace(trace::Trace),
    /// Print the CustomResourceDefinitions of pools, BGP peers and advertisements, as YAML
    #[command(after_help = "Example:\n  portolan crds | kubectl apply -f -")]
    Crds,
    /// Print the completion script of a shell
    #[command(after_help = "Example:\n  portolan completion bash > /etc/bash_completion.d/portolan")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs a command.
///
/// # Errors
/// One line that says what failed and what to do.
pub fn run(command: Command, global: &Global) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status(output) => return status::run(output, global),
        Command::Service(command) => service::run(command, global)?,
        Command::Pod(command) => pod::run(command, global)?,
        Command::Flow(command) => flow::run(command, global)?,
        Command::Drop(command) => drops::run(command, global)?,
        Command::Lb(command) => lb::run(command, global)?,
        Command::Bgp(command) => bgp::run(command, global)?,
        Command::Audit(output) => return audit::run(output, global),
        Command::Doctor(doctor) => return doctor::run(&doctor, global),
        Command::Explain(explain) => explain::run(&explain, global)?,
        Command::Trace(trace) => trace::run(&trace, global)?,
        Command::Crds => output::print(&crds::yaml()?)?,
        Command::Completion { shell } => output::print(&completion::script(shell))?,
    }
    Ok(ExitCode::SUCCESS)
}
