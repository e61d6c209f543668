//! `portolan service …`.

mod show;
#[cfg(test)]
pub(super) mod tests;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::text::{BAD, Cell, Column, GOOD, Table, WARN, count, join, or_dash};
use super::{Global, Output, client};
use crate::api::{FrontendView, PortView, ServiceView};

/// Looking at services.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List services: one row for each port and family
    #[command(after_help = "Example:\n  portolan service list -n default")]
    List(List),
    /// Show the frontends and backends of one service, and how flows spread over them
    #[command(after_help = "Example:\n  portolan service show default/web")]
    Show(Show),
}

/// Options of `portolan service list`.
#[derive(Args, Clone, Debug)]
pub struct List {
    /// Only services of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Options of `portolan service show`.
#[derive(Args, Clone, Debug)]
pub struct Show {
    /// NAME, or NAMESPACE/NAME
    name: String,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(command: Command, global: &Global) -> anyhow::Result<()> {
    let mut services = client::services(&global.socket)?;
    match command {
        Command::List(List { namespace, output }) => {
            if let Some(namespace) = namespace {
                services.retain(|service| service.namespace == namespace);
            }
            output.emit(services.as_slice(), table)
        }
        Command::Show(Show { name, output }) => output.emit(find(&services, &name)?, show::text),
    }
}

/// The service that a name means.
///
/// # Errors
/// There is none, or there are more: then the message lists them.
pub(super) fn find<'a>(services: &'a [ServiceView], name: &str) -> anyhow::Result<&'a ServiceView> {
    let means = |service: &&ServiceView| match name.split_once('/') {
        Some((namespace, name)) => service.namespace == namespace && service.name == name,
        None => service.name == name,
    };
    let found: Vec<&ServiceView> = services.iter().filter(means).collect();
    match found.as_slice() {
        [service] => Ok(service),
        [] => bail!("there is no service {name}: `portolan service list` lists them all"),
        several => bail!(
            "{name} is the name of several services: choose one of {}",
            join(several.iter().map(full_name))
        ),
    }
}

/// `namespace/name`.
pub(super) fn full_name(service: &&ServiceView) -> String {
    format!("{}/{}", service.namespace, service.name)
}

fn table(services: &[ServiceView]) -> String {
    if services.is_empty() {
        return "no services\n".to_owned();
    }
    let mut table = Table::new([
        Column::Left("NAMESPACE"),
        Column::Left("NAME"),
        Column::Left("PORT"),
        Column::Left("PROTOCOL"),
        Column::Left("FAMILY"),
        Column::Left("FRONTENDS"),
        Column::Left("BACKENDS"),
        Column::Right("FLOWS"),
        Column::Left("NOTE"),
    ]);
    for service in services {
        if service.ports.is_empty() {
            let names = [service.namespace.as_str().into(), service.name.as_str().into()];
            let [namespace, name] = names;
            let none = || or_dash("");
            table.row([
                namespace,
                name,
                none(),
                none(),
                none(),
                none(),
                none(),
                none(),
                service_note(service),
            ]);
        }
        for port in &service.ports {
            table.row([
                service.namespace.as_str().into(),
                service.name.as_str().into(),
                or_dash(&port.name),
                port.protocol.as_str().into(),
                port.family.as_str().into(),
                or_dash(&join(port.frontends.iter().map(frontend))),
                backends(port),
                port.flows.to_string().into(),
                service_note(service),
            ]);
        }
    }
    table.render()
}

/// `10.96.0.10:80`, `*:30080` for every address of the node.
pub(super) fn frontend(frontend: &FrontendView) -> String {
    match frontend.address {
        Some(address) => std::net::SocketAddr::new(address, frontend.port).to_string(),
        None => format!("*:{}", frontend.port),
    }
}

fn backends(port: &PortView) -> Cell {
    let local = port.backends.iter().filter(|backend| backend.local).count();
    match port.backends.len() {
        0 => Cell::styled("none", BAD),
        all => Cell::styled(format!("{all} ({local} local)"), GOOD),
    }
}

fn service_note(service: &ServiceView) -> Cell {
    match service.conditions.len() {
        0 => "".into(),
        conditions => Cell::styled(count(conditions, "condition"), WARN),
    }
}
