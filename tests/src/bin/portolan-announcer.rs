//! A node that announces addresses on layer 2, as a process: one that can be stopped and killed.
//!
//! Reads one wish as JSON from each line of its standard input and answers with one line. Ends with its input, without a word to
//! others.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use portolan_l2::{Announcer, Eligible, Interface, Invalid, Member, Settings, Vip};
use portolan_node::link::Links;
use serde::Deserialize;

/// Announces addresses on layer 2, for tests.
#[derive(Parser)]
struct Arguments {
    /// This node's name
    #[arg(long)]
    node_name: String,
    /// An interface to announce on
    #[arg(long = "interface")]
    interfaces: Vec<String>,
}

/// What the other end of the standard input wants.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Wish {
    /// These are the members: names and addresses.
    Members(BTreeMap<String, Vec<IpAddr>>),
    /// These are the addresses.
    Vips(Vec<Address>),
    /// Tell the status.
    Status,
    /// Give all up and end.
    Withdraw,
}

#[derive(Deserialize)]
struct Address {
    address: IpAddr,
    eligible: Option<BTreeSet<String>>,
    interfaces: Option<BTreeSet<String>>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let announcer = Arc::new(Announcer::start(Settings::new(arguments.node_name))?);
    let watching = runtime.spawn(watch(Arc::clone(&announcer), arguments.interfaces));
    for line in std::io::stdin().lines() {
        let line = line?;
        match serde_json::from_str(&line).with_context(|| format!("reading {line}"))? {
            Wish::Status => say(&serde_json::to_string(&announcer.status())?)?,
            Wish::Members(members) => say(&set_members(&announcer, members))?,
            Wish::Vips(vips) => say(&set_vips(&announcer, vips))?,
            Wish::Withdraw => {
                watching.abort();
                // With its task, the only other owner is gone.
                let _ = runtime.block_on(watching);
                let announcer = Arc::into_inner(announcer).context("somebody else has the announcer")?;
                runtime.block_on(announcer.withdraw());
                return say(DONE);
            }
        }
    }
    Ok(())
}

fn set_members(announcer: &Announcer, members: BTreeMap<String, Vec<IpAddr>>) -> String {
    let members = members.into_iter().map(|(name, addresses)| Member { name, addresses });
    told(announcer.set_members(members.collect()))
}

fn set_vips(announcer: &Announcer, vips: Vec<Address>) -> String {
    told(announcer.set_vips(vips.into_iter().map(Address::into_vip).collect()))
}

fn told(outcome: Result<(), Invalid>) -> String {
    outcome.map_or_else(|error| error.to_string(), |()| DONE.to_owned())
}

const DONE: &str = "done";

impl Address {
    fn into_vip(self) -> Vip {
        let Self { address, eligible, interfaces } = self;
        Vip { address, eligible: eligible.map_or(Eligible::All, Eligible::Only), interfaces }
    }
}

/// Tells the announcer what becomes of the interfaces.
async fn watch(announcer: Arc<Announcer>, names: Vec<String>) -> Result<()> {
    let links = Links::new()?;
    let mut events = links.watch().await?;
    loop {
        let all = links.interfaces().await?;
        let chosen = all.into_iter().filter(|link| names.contains(&link.name)).filter_map(|link| {
            let (mac, operational) = (link.mac?, link.operational);
            Some(Interface { name: link.name, ifindex: link.ifindex, mac, operational })
        });
        announcer.set_interfaces(chosen.collect());
        events.next().await?;
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
