//! The measurements behind docs/benchmarks.md, each in namespaces that it makes itself.

mod cni;
mod document;
mod net;
mod nft;
mod packet;
mod report;
mod scale;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use report::Section;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Topic {
    /// Nanoseconds for each packet in the loaded programs
    Packet,
    /// Time from objects to tables, with 10 to 100,000 services
    Scale,
    /// Connections and streams beside plain forwarding and nftables
    Net,
    /// CNI ADD
    Cni,
}

/// Measures what the README promises, and says what was missed.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// What to measure; all if none is named
    topics: Vec<Topic>,
    /// Fewer and shorter runs: for a first look, not for the record
    #[arg(long)]
    quick: bool,
    /// Put the results into docs/benchmarks.md
    #[arg(long)]
    write: bool,
    /// End well also when a goal is missed
    #[arg(long)]
    no_goals: bool,
    /// One cold start with that many services, reported to the parent process
    #[arg(long, hide = true)]
    round: Option<u32>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(services) = arguments.round {
        scale::round(services, arguments.quick)?;
        return Ok(ExitCode::SUCCESS);
    }
    let topics = if arguments.topics.is_empty() { Topic::value_variants() } else { &arguments.topics };
    let begun = Instant::now();
    let mut missed = Vec::new();
    for topic in topics {
        eprintln!("measuring: {topic:?} …");
        let section = measure(*topic, arguments.quick)?;
        println!("\n## {}\n\n{}\n\n{}", section.title, section.how, section.table());
        missed.extend(section.rows.iter().filter(|row| !row.passes()).map(|row| row.what.clone()));
        if arguments.write {
            document::write(&section)?;
        }
    }
    println!("{} s", begun.elapsed().as_secs());
    if missed.is_empty() {
        println!("every goal is reached");
        return Ok(ExitCode::SUCCESS);
    }
    println!("goals missed: {}\n  {}", missed.len(), missed.join("\n  "));
    Ok(if arguments.no_goals { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(topic: Topic, quick: bool) -> Result<Section> {
    match topic {
        Topic::Packet => packet::measure(quick),
        Topic::Scale => scale::measure(quick),
        Topic::Net => net::measure(quick),
        Topic::Cni => cni::measure(quick),
    }
}
