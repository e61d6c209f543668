//! `portolan lb …`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::text::{BAD, Cell, Column, Table, WARN, join, or_dash};
use super::{Global, Output, client};
use crate::agent::{ANNOUNCED, SourceSpec};
use crate::api::{ConditionView, LoadBalancerAddressView, LoadBalancerView};
use crate::controller::{self, Status};

/// Looking at public addresses.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List services of type LoadBalancer: one row for each address
    #[command(
        after_help = "Says what this node's agent knows, and by whom each address is announced. With --source or --state, what \
        the controller wrote: then it works without the agent and the controller.\n\n\
        Example:\n  portolan lb list"
    )]
    List(List),
}

/// Options of `portolan lb list`.
#[derive(Args, Clone, Debug)]
pub struct List {
    #[command(flatten)]
    from: From,
    /// Only services of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Where what was given is written.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
struct From {
    /// Source of the controller: dir:PATH
    #[arg(long, value_name = "SOURCE")]
    source: Option<SourceSpec>,
    /// State file of the controller
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
}

pub(super) fn run(command: Command, global: &Global) -> anyhow::Result<()> {
    let Command::List(List { from, namespace, output }) = command;
    let mut services = from.services(global)?;
    if let Some(namespace) = namespace {
        services.retain(|service| service.namespace == namespace);
    }
    output.emit(services.as_slice(), table)
}

impl From {
    fn services(&self, global: &Global) -> anyhow::Result<Vec<LoadBalancerView>> {
        let path = match (&self.state, &self.source) {
            (Some(path), _) => path.clone(),
            (None, Some(SourceSpec::Dir(directory))) => controller::default_state(directory),
            (None, None) => return Ok(client::load_balancers(&global.socket)?),
            (None, _) => bail!("--source kubernetes: name a directory (dir:PATH), or the file with --state"),
        };
        let status = controller::read(&path)?.with_context(|| {
            format!(
                "there is no {}: no controller has given anything; see `portolan controller --help`",
                path.display()
            )
        })?;
        Ok(views(&status))
    }
}

/// Of what a controller wrote.
fn views(status: &Status) -> Vec<LoadBalancerView> {
    let view = |service: &controller::Service| {
        let addresses = service.status.addresses.iter().map(|address| LoadBalancerAddressView {
            address: address.ip,
            pool: address.pool.clone(),
            requested: address.requested,
            shared: address.shared,
            own: address.own,
            announced: Vec::new(),
        });
        let conditions = service.status.conditions.iter().map(|condition| ConditionView {
            kind: condition.kind.clone(),
            status: condition.status == "True",
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        });
        LoadBalancerView {
            namespace: service.key().namespace().to_owned(),
            name: service.metadata.name.clone(),
            addresses: addresses.collect(),
            conditions: conditions.collect(),
        }
    };
    status.services.iter().map(view).collect()
}

fn table(services: &[LoadBalancerView]) -> String {
    if services.is_empty() {
        return "no services of type LoadBalancer\n".to_owned();
    }
    let mut table = Table::new([
        Column::Left("NAMESPACE"),
        Column::Left("NAME"),
        Column::Left("ADDRESS"),
        Column::Left("POOL"),
        Column::Left("HOW"),
        Column::Left("ANNOUNCED"),
        Column::Left("NOTE"),
    ]);
    for service in services {
        let names = || [service.namespace.as_str().into(), service.name.as_str().into()];
        if service.addresses.is_empty() {
            let [namespace, name] = names();
            let none = || or_dash("");
            table.row([namespace, name, none(), none(), none(), none(), note(service)]);
        }
        for (number, address) in service.addresses.iter().enumerate() {
            let [namespace, name] = names();
            table.row([
                namespace,
                name,
                address.address.to_string().into(),
                or_dash(address.pool.as_deref().unwrap_or_default()),
                or_dash(&how(address)),
                or_dash(&join(&address.announced)),
                if number == 0 { note(service) } else { "".into() },
            ]);
        }
    }
    table.render()
}

fn how(address: &LoadBalancerAddressView) -> String {
    let words =
        [(address.requested, "requested"), (address.shared, "shared"), (address.own, "in its document")];
    join(words.into_iter().filter(|(is_so, _)| *is_so).map(|(_, word)| word))
}

/// What is wrong, or worth knowing.
fn note(service: &LoadBalancerView) -> Cell {
    let given = |it: &ConditionView| it.kind == portolan_pool::condition::GIVEN;
    let is_fine = |it: &ConditionView| given(it) && it.status && it.reason == portolan_pool::reason::GIVEN;
    let silent = |it: &ConditionView| it.kind == ANNOUNCED && !it.status;
    let said = service.conditions.iter().filter(|it| !is_fine(it) && (given(it) || it.status || silent(it)));
    let text = said.map(|it| format!("{}: {}", it.reason, it.message)).collect::<Vec<_>>().join("; ");
    let is_bad = service.conditions.iter().any(|it| given(it) && !it.status);
    Cell::styled(text, if is_bad { BAD } else { WARN })
}

#[cfg(test)]
mod tests {
    use super::super::text::plain;
    use super::*;

    fn condition(kind: &str, status: bool, reason: &str, message: &str) -> ConditionView {
        ConditionView { kind: kind.into(), status, reason: reason.into(), message: message.into() }
    }

    #[test]
    fn each_address_has_a_row_and_who_has_none_says_why() {
        let address = |text: &str, pool: Option<&str>, requested, shared| LoadBalancerAddressView {
            address: text.parse().unwrap(),
            pool: pool.map(Into::into),
            requested,
            shared,
            own: false,
            announced: Vec::new(),
        };
        let service = |name: &str, addresses, conditions| LoadBalancerView {
            namespace: "shop".into(),
            name: name.into(),
            addresses,
            conditions,
        };
        use portolan_pool::{condition as about, reason};
        let services = [
            service(
                "a",
                vec![
                    address("198.51.100.1", Some("p"), true, true),
                    address("2001:db8:f::1", None, false, false),
                ],
                vec![
                    condition(about::GIVEN, true, reason::GIVEN, "all of it"),
                    condition(about::KEPT, true, reason::NOT_IN_A_POOL, "2001:db8:f::1 stays"),
                ],
            ),
            service("b", vec![], vec![condition(about::GIVEN, false, reason::NO_POOL, "no pool")]),
        ];
        let expected = "\
NAMESPACE  NAME  ADDRESS        POOL  HOW                ANNOUNCED  NOTE
shop       a     198.51.100.1   p     requested, shared  -          NotInAPool: 2001:db8:f::1 stays
shop       a     2001:db8:f::1  -     -                  -
shop       b     -              -     -                  -          NoPool: no pool
";
        assert_eq!(plain(&table(&services)), expected);
        assert_eq!(table(&[]), "no services of type LoadBalancer\n");
    }
}
