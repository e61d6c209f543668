//! The demo: a two-node cluster in network namespaces that carries service traffic and tells what it does.
//!
//! Every promise it shows is a claim that is checked: one that does not hold is named at the end, and the exit
//! status is 1.

mod chart;
mod keep;
mod objects;
mod say;
mod serve;
mod stage;
mod story;
mod traffic;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;

use keep::Record;
use say::Say;
use stage::Stage;

/// Shows a two-node cluster at work on this machine, in network namespaces of its own.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "cargo xtask demo",
    after_help = "Exit codes: 0 everything held, 1 something did not, 2 wrong usage, 130 interrupted."
)]
struct Arguments {
    /// Fewer requests
    #[arg(long)]
    fast: bool,
    /// Leave the cluster up and tell how to enter it
    #[arg(long)]
    keep: bool,
    /// Take down what --keep left, and what an earlier run could not clean up
    #[arg(long, conflicts_with_all = ["fast", "keep"])]
    down: bool,
    /// Be the web server of a pod, with this name, until told to end
    #[arg(long, hide = true, value_name = "NAME")]
    serve: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.serve {
        Some(name) => serve::until_told(name),
        None => show(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn show(arguments: &Arguments) -> Result<ExitCode> {
    let mut say = Say::new()?;
    if arguments.down {
        keep::down(&mut say)?;
        return Ok(say.verdict());
    }
    let begun = Instant::now();
    let mut stage = None;
    let told = tell(&mut say, &mut stage, arguments);
    match told {
        Err(error) => say.stopped(&error),
        Ok(()) if arguments.keep => {
            stage.take().map_or(Ok(()), |stage| keep::leave(&mut say, stage))?;
            return Ok(say.verdict());
        }
        Ok(()) => {}
    }
    clean_up(&mut say, stage)?;
    say.note(&format!("{:.1} s in all", begun.elapsed().as_secs_f64()));
    Ok(say.verdict())
}

/// The whole story. Whatever it made is in `stage`, also when it ends early.
fn tell(say: &mut Say, stage: &mut Option<Stage>, arguments: &Arguments) -> Result<()> {
    let pace = traffic::Pace::new(arguments.fast);
    let stage = story::topology(say, stage)?;
    story::pods(say, stage)?;
    story::cluster_address(say, stage)?;
    story::node_port(say, stage)?;
    story::public_address(say, stage, &pace)?;
    traffic::rollout(say, stage, &pace)?;
    traffic::crash(say, stage, &pace)?;
    story::seeing(say, stage)?;
    if !arguments.keep {
        story::uninstall(say, stage)?;
    }
    Ok(())
}

fn clean_up(say: &mut Say, stage: Option<Stage>) -> Result<()> {
    let Some(stage) = stage else { return Ok(()) };
    let record: Record = stage.record();
    drop(stage);
    let left = record.leftovers()?;
    say.check_always("the machine is as before: no namespace, process, pin or file is left", &left);
    record.done(&left);
    Ok(())
}
