//! Whether the kernel's tables are what they should be. Reads nothing but the kernel's own dump: what the applier
//! remembers of its writes proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};

use portolan_abi::{FrontendKey, Ring, backend_flag, frontend_flag};
use portolan_core::wire::proto;
use portolan_core::{Address, V4, V6};
use portolan_model::{Family, Protocol, ServiceKey};
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, MapError, Tables};
use portolan_plan::{BackendAddr, NodePlan, ServicePlan, ServicePort, maglev};

use crate::family::{frontend_flags, service_flags};

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// A frontend or an address.
    pub place: String,
    /// What should be there; `None`: nothing.
    pub desired: Option<String>,
    /// What the kernel has; `None`: nothing.
    pub kernel: Option<String>,
}

/// What stands behind a frontend, in words of the objects: no index, no offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Behind {
    flags: u32,
    service_flags: u32,
    affinity: u32,
    /// Slot by slot.
    cluster: Vec<SocketAddr>,
    /// The same.
    local: Vec<SocketAddr>,
    sources: BTreeSet<String>,
    /// What cannot be said in these words: an index that leads nowhere.
    broken: Vec<String>,
}

/// Address (unspecified: a NodePort), port (0: a mark), protocol.
type Place = (IpAddr, u16, u8);

/// Compares the kernel's tables with what these services and addresses of nodes need. Every difference, sorted.
///
/// # Errors
/// A table cannot be read.
pub fn audit<'a>(
    tables: &Tables,
    services: impl IntoIterator<Item = (&'a ServiceKey, &'a ServicePlan)>,
    node: &NodePlan,
) -> Result<Vec<Difference>, MapError> {
    let mut desired = BTreeMap::new();
    for (_, plan) in services {
        for port in &plan.ports {
            want(port, &mut desired);
        }
    }
    let marks = [
        (&node.addresses, frontend_flag::NODE),
        (&node.node_ports, frontend_flag::NODEPORT),
        (&node.peers, frontend_flag::PEER),
    ];
    for (addresses, flag) in marks {
        for address in addresses {
            desired.entry((*address, 0, 0)).or_default().flags |= flag;
        }
    }
    let mut kernel = BTreeMap::new();
    read::<V4>(tables, &tables.v4, &node.addresses, &mut kernel)?;
    read::<V6>(tables, &tables.v6, &node.addresses, &mut kernel)?;
    let places: BTreeSet<&Place> = desired.keys().chain(kernel.keys()).collect();
    let differences = places.into_iter().filter_map(|place| {
        let (desired, kernel) = (desired.get(place), kernel.get(place));
        (desired != kernel).then(|| Difference {
            place: name(place),
            desired: desired.map(Behind::text),
            kernel: kernel.map(Behind::text),
        })
    });
    Ok(differences.collect())
}

/// What a port of a service needs.
fn want(port: &ServicePort, desired: &mut BTreeMap<Place, Behind>) {
    let any: IpAddr = match port.name.family {
        Family::V4 => [0; 4].into(),
        Family::V6 => [0; 16].into(),
    };
    let protocol = match port.name.protocol {
        Protocol::Tcp => proto::TCP,
        Protocol::Udp => proto::UDP,
    };
    let at = |it: &BackendAddr| SocketAddr::new(it.addr, it.port);
    let set = |set: &[BackendAddr]| set.iter().map(at).collect();
    let table =
        |set: &[BackendAddr]| maglev::table(set).iter().map(|place| at(&set[*place as usize])).collect();
    for frontend in &port.frontends {
        let behind = Behind {
            flags: frontend_flags(port, frontend),
            service_flags: service_flags(port),
            affinity: port.affinity.unwrap_or(0),
            cluster: if port.consistent { table(&port.cluster) } else { set(&port.cluster) },
            local: set(&port.local),
            sources: port
                .sources
                .iter()
                .flatten()
                .map(|range| prefix(range.network(), range.prefix()))
                .collect(),
            broken: Vec::new(),
        };
        desired.insert((frontend.addr.unwrap_or(any), frontend.port, protocol), behind);
        if let Some(addr) = frontend.addr {
            let mark = desired.entry((addr, 0, 0)).or_default();
            let answered = mark.flags & frontend_flag::ANSWERS != 0;
            let restricted = frontend_flags(port, frontend) & frontend_flag::SOURCES;
            mark.flags |= frontend_flag::VIP;
            if !port.cluster.is_empty() {
                // One that is open to everybody opens the address to echo.
                let others = if answered { mark.flags } else { frontend_flag::SOURCES };
                mark.flags =
                    (mark.flags & !frontend_flag::SOURCES) | (restricted & others) | frontend_flag::ANSWERS;
            }
        }
    }
}

/// What the kernel has.
fn read<F: NodeFamily>(
    tables: &Tables,
    family: &FamilyTables<F>,
    nodes: &[IpAddr],
    kernel: &mut BTreeMap<Place, Behind>,
) -> Result<(), MapError> {
    let mut sources: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for (key, _) in family.sources.dump()? {
        let text = prefix(F::ip(key.addr), key.bits.saturating_sub(32) as u8);
        sources.entry(key.service).or_default().insert(text);
    }
    for (key, value) in family.frontends.dump()? {
        let FrontendKey { addr, port, proto, .. } = key;
        let place = (F::ip(addr), u16::from_be(port), proto);
        let mut behind = Behind { flags: value.flags, ..Behind::default() };
        let is_mark = port == 0 && proto == 0 && addr != F::Addr::UNSPECIFIED;
        if !is_mark {
            follow(tables, family, nodes, value.service, &mut behind);
            behind.sources = sources.get(&value.service).cloned().unwrap_or_default();
        }
        kernel.insert(place, behind);
    }
    Ok(())
}

/// From a service's index to its backends.
fn follow<F: NodeFamily>(
    tables: &Tables,
    family: &FamilyTables<F>,
    nodes: &[IpAddr],
    index: u32,
    behind: &mut Behind,
) {
    if index >= tables.services.len() {
        behind.broken.push(format!("service #{index} is beyond its table"));
        return;
    }
    let service = tables.services.read(index);
    (behind.service_flags, behind.affinity) = (service.flags, service.affinity);
    behind.cluster = members(tables, family, nodes, service.cluster, &mut behind.broken);
    behind.local = members(tables, family, nodes, service.local, &mut behind.broken);
}

fn members<F: NodeFamily>(
    tables: &Tables,
    family: &FamilyTables<F>,
    nodes: &[IpAddr],
    ring: Ring,
    broken: &mut Vec<String>,
) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    if u64::from(ring.offset()) + u64::from(ring.len()) > u64::from(tables.slab.len()) {
        broken.push(format!("slots {}+{} are beyond the slab", ring.offset(), ring.len()));
        return found;
    }
    for index in tables.slab.slice(ring.offset(), ring.len()) {
        if index >= family.backends.len() {
            broken.push(format!("backend #{index} is beyond its table"));
            continue;
        }
        let backend = family.backends.read(index);
        let addr = F::ip(backend.addr);
        let host = if nodes.contains(&addr) { backend_flag::HOST } else { 0 };
        if backend.flags != backend_flag::LIVE | host {
            broken.push(format!("backend #{index} ({addr}) has flags {:#x}", backend.flags));
        }
        found.push(SocketAddr::new(addr, u16::from_be(backend.port)));
    }
    found
}

impl Behind {
    fn text(&self) -> String {
        let mut parts = vec![format!("flags {:#x}", self.flags)];
        let mut part = |name: &str, text: String, shown: bool| {
            if shown {
                parts.push(format!("{name} {text}"));
            }
        };
        part("service flags", format!("{:#x}", self.service_flags), self.service_flags != 0);
        part("affinity", format!("{} s", self.affinity), self.affinity != 0);
        part("backends", ring(&self.cluster), !self.cluster.is_empty());
        part("local backends", ring(&self.local), !self.local.is_empty());
        let sources: Vec<&str> = self.sources.iter().map(String::as_str).collect();
        part("sources", sources.join(" "), !sources.is_empty());
        part("broken:", self.broken.join("; "), !self.broken.is_empty());
        parts.join(", ")
    }
}

/// Slots that are listed one by one; of more, only who has them.
const LISTED: usize = 200;

fn ring(slots: &[SocketAddr]) -> String {
    let join = |all: &mut dyn Iterator<Item = &SocketAddr>| {
        all.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    if slots.len() <= LISTED {
        return join(&mut slots.iter());
    }
    let mut order = DefaultHasher::new();
    slots.hash(&mut order);
    let backends: BTreeSet<&SocketAddr> = slots.iter().collect();
    format!("{} in {} slots, order {:016x}", join(&mut backends.into_iter()), slots.len(), order.finish())
}

fn prefix(addr: IpAddr, length: u8) -> String {
    format!("{addr}/{length}")
}

fn name((addr, port, protocol): &Place) -> String {
    let protocol = match *protocol {
        0 => return format!("address {addr}"),
        proto::TCP => "TCP".to_owned(),
        proto::UDP => "UDP".to_owned(),
        other => format!("protocol {other}"),
    };
    if addr.is_unspecified() {
        let family = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
        return format!("NodePort {port} {protocol} {family}");
    }
    format!("{} {protocol}", SocketAddr::new(*addr, *port))
}
