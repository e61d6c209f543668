//! `portolan flow …`: translated flows, from the pinned tables.

mod names;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::bail;
use clap::{Args, Subcommand};
use portolan_abi::NO_SERVICE;
use portolan_core::{V4, V6};
use portolan_node::{Tables, clock};

use super::text::{Cell, Column, FAINT, GOOD, Table, WARN};
use super::{Global, Output, client, output, service};
use crate::api::ServiceView;
pub(super) use names::{Ends, Names};
use view::{FlowView, State};

/// Looking at flows.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List flow entries, two for each flow: one for each direction; the most recently used first
    #[command(after_help = "A service is named by its agent; while none runs, name it by its index.\n\n\
        Example:\n  portolan flow list --service default/web --limit 20")]
    List(List),
}

/// Options of `portolan flow list`.
#[derive(Args, Clone, Debug)]
pub struct List {
    /// How many entries to list at most; 0: all
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Only flows of this service: NAME, NAMESPACE/NAME, or its index
    #[arg(long, value_name = "NAME", conflicts_with = "address")]
    service: Option<String>,
    /// Only flows with this address at either end, before or after translation
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(command: Command, global: &Global) -> anyhow::Result<()> {
    let Command::List(list) = command;
    let tables = Tables::open(&global.pins)?;
    let services = client::services(&global.socket);
    let names = match &services {
        Ok(services) => Names::new(services, &tables.v4.frontends.dump()?, &tables.v6.frontends.dump()?),
        Err(_) => Names::default(),
    };
    let filter = Filter::new(&list, services.as_deref(), &names)?;
    if let Err(error) = &services {
        output::note(&format!("services are shown by index: {error}"));
    }
    let now = clock::ticks();
    let mut flows = view::all::<V4>(&tables.v4.flows.dump()?, now);
    flows.extend(view::all::<V6>(&tables.v6.flows.dump()?, now));
    flows.retain(|flow| filter.admits(flow));
    let found = flows.len();
    select(&mut flows, list.limit);
    for flow in &mut flows {
        flow.service = names.get(flow.service_index).map(str::to_owned);
    }
    list.output.emit(flows.as_slice(), table)?;
    if flows.len() < found {
        output::note(&format!("{} of {found} entries are listed; --limit 0 lists all", flows.len()));
    }
    Ok(())
}

/// Which flows are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    All,
    /// Of these services, by index.
    Services(BTreeSet<u32>),
    Address(IpAddr),
}

impl Filter {
    fn new<E: std::fmt::Display>(
        list: &List,
        services: Result<&[ServiceView], E>,
        names: &Names,
    ) -> anyhow::Result<Self> {
        if let Some(address) = list.address {
            return Ok(Self::Address(address));
        }
        let Some(name) = &list.service else { return Ok(Self::All) };
        // Names of services start with a letter (RFC 1035), so a number is an index.
        if let Ok(index) = name.parse() {
            return Ok(Self::Services([index].into()));
        }
        match services {
            Ok(services) => {
                let service = service::find(services, name)?;
                Ok(Self::Services(names.indexes(&service::full_name(&service))))
            }
            Err(error) => bail!(
                "names of services come from the agent, and {error}; \
                 or use the index that `portolan flow list` shows"
            ),
        }
    }

    fn admits(&self, flow: &FlowView) -> bool {
        match self {
            Self::All => true,
            Self::Services(indexes) => indexes.contains(&flow.service_index),
            Self::Address(address) => flow.addresses().contains(address),
        }
    }
}

/// The most recently used first, both directions of a flow together, at most so many; 0: all.
fn select(flows: &mut Vec<FlowView>, limit: usize) {
    flows.sort_by_cached_key(|flow| {
        (flow.idle_seconds, flow.as_client_sees(), flow.protocol.clone(), flow.direction)
    });
    if limit > 0 {
        flows.truncate(limit);
    }
}

fn table(flows: &[FlowView]) -> String {
    if flows.is_empty() {
        return "no flows\n".to_owned();
    }
    let mut table = Table::new([
        Column::Left("PROTOCOL"),
        Column::Left("ORIGINAL"),
        Column::Left("TRANSLATED"),
        Column::Left("DIRECTION"),
        Column::Left("STATE"),
        Column::Right("IDLE"),
        Column::Left("EXIT"),
        Column::Left("SERVICE"),
    ]);
    for flow in flows {
        let style = match flow.state {
            State::Established => GOOD,
            State::Opening | State::Closing => WARN,
            State::Closed => FAINT,
        };
        let exit = match flow.interface_index {
            Some(index) => format!("{} (interface {index})", flow.exit),
            None => flow.exit.clone(),
        };
        let service = match &flow.service {
            Some(service) => service.clone(),
            None if flow.service_index == NO_SERVICE => "none: out of the cluster".to_owned(),
            None => format!("#{}", flow.service_index),
        };
        table.row([
            flow.protocol.as_str().into(),
            flow.original.to_string().into(),
            flow.translated.to_string().into(),
            flow.direction.to_string().into(),
            Cell::styled(flow.state.to_string(), style),
            format!("{}s", flow.idle_seconds).into(),
            exit.into(),
            service.into(),
        ]);
    }
    table.render()
}
