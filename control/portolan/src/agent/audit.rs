//! Whether the node is as the objects want it: tables, records of pods, programs, pins. Read from the kernel alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portolan_apply::Difference;
use portolan_node::attach::Interface;

use super::network::Network;
use super::programs::Role;
use super::state::Shared;

/// What is not as it should be, by who mends it.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Services and the node's record.
    pub(super) tables: Vec<Difference>,
    /// Records of pods.
    pub(super) pods: BTreeMap<IpAddr, Difference>,
    /// Interfaces that lack programs.
    pub(super) interfaces: Vec<(Interface, Role, Vec<Difference>)>,
    /// Programs at the cgroup.
    pub(super) sockets: Vec<Difference>,
    /// Tables whose pin is gone.
    pub(super) pins: Vec<(String, Difference)>,
}

impl Findings {
    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Difference> {
        let interfaces = self.interfaces.iter().flat_map(|(_, _, differences)| differences);
        let pins = self.pins.iter().map(|(_, difference)| difference);
        self.tables.iter().chain(self.pods.values()).chain(interfaces).chain(&self.sockets).chain(pins)
    }
}

/// Looks at everything.
pub(super) async fn inspect(shared: &Shared, network: &Network) -> anyhow::Result<Findings> {
    let interfaces = network.links().interfaces().await?;
    let pods = network.audit(&interfaces)?;
    let tables = tokio::task::block_in_place(|| shared.core().audit())?;
    let mut findings = Findings { tables, pods, ..Findings::default() };
    let index = |name: &str| interfaces.iter().find(|it| it.name == name).map(|it| it.ifindex);
    // Without an index it is gone, and what was attached with it.
    let places = places(shared, network).into_iter();
    let places = places.filter_map(|(name, role)| Some((Interface { ifindex: index(&name)?, name }, role)));
    for (interface, role) in places {
        let filters = network.links().own_filters(interface.ifindex).await?;
        let faults = network.programs().faults(&interface, role, filters)?;
        let differences: Vec<Difference> = faults
            .into_iter()
            .map(|(program, direction, fault)| {
                attachment(program, &format!("{} {}", interface.name, direction.name()), fault)
            })
            .collect();
        if !differences.is_empty() {
            findings.interfaces.push((interface, role, differences));
        }
    }
    let cgroup = shared.core().socket_cgroup.clone();
    if let Some(cgroup) = cgroup {
        let faults = network.programs().socket_faults(&cgroup)?.into_iter();
        let place = format!("cgroup {}", cgroup.display());
        findings.sockets = faults.map(|(program, fault)| attachment(program, &place, fault)).collect();
    }
    let lost = network.programs().lost_pins()?.into_iter();
    findings.pins = lost.map(|table| (table.clone(), pin(&table))).collect();
    Ok(findings)
}

/// Names of the interfaces that have programs, pods' among them.
fn places(shared: &Shared, network: &Network) -> Vec<(String, Role)> {
    let own = shared.core().interfaces.clone();
    let own = own.into_iter().filter_map(|(name, role)| Some((name, Role::named(&role)?)));
    own.chain(network.settled_interfaces().into_iter().map(|name| (name, Role::Pod))).collect()
}

fn attachment(program: &str, place: &str, fault: &str) -> Difference {
    Difference {
        place: format!("program {program} at {place}"),
        desired: Some("attached".to_owned()),
        kernel: Some(fault.to_owned()),
    }
}

fn pin(table: &str) -> Difference {
    Difference {
        place: format!("pin of table {table}"),
        desired: Some("the programs' table".to_owned()),
        kernel: Some("nothing, or another table".to_owned()),
    }
}
