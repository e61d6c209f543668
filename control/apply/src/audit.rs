//! Whether the kernel's tables are what they should be. Reads nothing but the kernel's own dump: what the applier
//! remembers of its writes proves nothing.

mod node;
mod pods;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};

use portolan_abi::{Config, Frontend, FrontendKey, Ring, backend_flag, frontend_flag};
use portolan_core::wire::proto;
use portolan_core::{Address, V4, V6};
use portolan_model::{Family, Protocol, ServiceKey};
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, MapError, Tables};
use portolan_plan::{BackendAddr, NodePlan, Scope, ServicePlan, ServicePort, maglev};

use crate::family::{frontend_flags, service_flags};
use crate::realms;
pub use pods::audit_pods;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// A frontend, an address, a field of the node's record, a pod.
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

/// What is wanted at each place.
#[derive(Default)]
struct Desired {
    places: BTreeMap<Place, Behind>,
    /// Source ranges of the services of an address whose mark may name them; it has room for one.
    admitted: BTreeMap<IpAddr, Vec<BTreeSet<String>>>,
}

/// What the kernel has at each place, and what belongs to none.
#[derive(Default)]
struct Kernel {
    places: BTreeMap<Place, Behind>,
    astray: Vec<Difference>,
}

/// Compares the kernel's tables with what these services and the node need. Every difference: first those of the
/// node's own record, which is `config` once it is known, then by place, then what belongs to no place. Pods are compared by [`audit_pods`].
///
/// # Errors
/// A table cannot be read.
pub fn audit<'a>(
    tables: &Tables,
    services: impl IntoIterator<Item = (&'a ServiceKey, &'a ServicePlan)>,
    node: &NodePlan,
    config: Option<Config>,
) -> Result<Vec<Difference>, MapError> {
    let mut desired = Desired::default();
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
            desired.places.entry((*address, 0, 0)).or_default().flags |= flag;
        }
    }
    let mut kernel = Kernel::default();
    read::<V4>(tables, &tables.v4, &node.addresses, &mut kernel)?;
    read::<V6>(tables, &tables.v6, &node.addresses, &mut kernel)?;
    choose_sources(&mut desired, &kernel);
    let (wanted, there) = (&desired.places, &kernel.places);
    let places: BTreeSet<&Place> = wanted.keys().chain(there.keys()).collect();
    let differences = places.into_iter().filter_map(|place| {
        let (desired, kernel) = (wanted.get(place), there.get(place));
        (desired != kernel).then(|| Difference {
            place: name(place),
            desired: desired.map(Behind::text),
            kernel: kernel.map(Behind::text),
        })
    });
    let own = config.map(|config| node::differences(&config, &tables.config.read(0)));
    let mut found: Vec<_> = own.into_iter().flatten().chain(differences).chain(kernel.astray).collect();
    found.extend(realms::differences(&tables.v4, &node.realms)?);
    found.extend(realms::differences(&tables.v6, &node.realms)?);
    Ok(found)
}

/// Of several restricted services on one address, any may be the one whose ranges guard echo.
fn choose_sources(desired: &mut Desired, kernel: &Kernel) {
    for (addr, choices) in &desired.admitted {
        let place = (*addr, 0, 0);
        let Some(mark) = desired.places.get_mut(&place) else { continue };
        if mark.flags & frontend_flag::SOURCES == 0 {
            continue;
        }
        let there = kernel.places.get(&place).map(|mark| &mark.sources);
        let chosen = choices.iter().find(|choice| Some(*choice) == there).or(choices.first());
        mark.sources = chosen.cloned().unwrap_or_default();
    }
}

/// What a port of a service needs.
fn want(port: &ServicePort, desired: &mut Desired) {
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
    let ranges = port.sources.iter().flatten().map(|range| prefix(range.network(), range.prefix()));
    let ranges: BTreeSet<String> = ranges.collect();
    for frontend in &port.frontends {
        let behind = Behind {
            flags: frontend_flags(port, frontend),
            service_flags: service_flags(port),
            affinity: port.affinity.unwrap_or(0),
            cluster: if port.consistent { table(&port.cluster) } else { set(&port.cluster) },
            local: set(&port.local),
            sources: ranges.clone(),
            broken: Vec::new(),
        };
        desired.places.insert((frontend.addr.unwrap_or(any), frontend.port, protocol), behind);
        if let Some(addr) = frontend.addr.filter(|_| frontend.scope != Scope::HostPort) {
            let mark = desired.places.entry((addr, 0, 0)).or_default();
            let answered = mark.flags & frontend_flag::ANSWERS != 0;
            let restricted = frontend_flags(port, frontend) & frontend_flag::SOURCES;
            mark.flags |= frontend_flag::VIP;
            if !port.cluster.is_empty() {
                // One that is open to everybody opens the address to echo.
                let others = if answered { mark.flags } else { frontend_flag::SOURCES };
                mark.flags =
                    (mark.flags & !frontend_flag::SOURCES) | (restricted & others) | frontend_flag::ANSWERS;
                if restricted != 0 {
                    desired.admitted.entry(addr).or_default().push(ranges.clone());
                }
            }
        }
    }
}

/// Source ranges by the index of their service.
type Sources = BTreeMap<u32, BTreeSet<String>>;

/// What the kernel has.
fn read<F: NodeFamily>(
    tables: &Tables,
    family: &FamilyTables<F>,
    nodes: &[IpAddr],
    kernel: &mut Kernel,
) -> Result<(), MapError> {
    let mut sources = Sources::new();
    for (key, _) in family.sources.dump()? {
        let text = prefix(F::ip(key.addr), key.bits.saturating_sub(32) as u8);
        sources.entry(key.service).or_default().insert(text);
    }
    let is_mark =
        |key: &FrontendKey<F::Addr>| key.port == 0 && key.proto == 0 && key.addr != F::Addr::UNSPECIFIED;
    let (marks, frontends): (Vec<_>, Vec<_>) =
        family.frontends.dump()?.into_iter().partition(|(key, _)| is_mark(key));
    for (key, value) in &frontends {
        let mut behind = Behind { flags: value.flags, ..Behind::default() };
        follow(tables, family, nodes, value.service, &mut behind);
        behind.sources = sources.get(&value.service).cloned().unwrap_or_default();
        kernel.places.insert((F::ip(key.addr), u16::from_be(key.port), key.proto), behind);
    }
    let owners: HashSet<(F::Addr, u32)> =
        frontends.iter().map(|(key, value)| (key.addr, value.service)).collect();
    for (key, value) in marks {
        let owned = owners.contains(&(key.addr, value.service));
        kernel.places.insert((F::ip(key.addr), 0, 0), mark(&value, owned, &sources));
    }
    let used: HashSet<u32> = frontends.iter().map(|(_, value)| value.service).collect();
    let astray = sources.into_iter().filter(|(index, _)| !used.contains(index));
    kernel.astray.extend(astray.map(|(index, ranges)| Difference {
        place: format!(
            "{} source ranges of service #{index}, which has no frontend",
            F::SUFFIX.replace('V', "IPv")
        ),
        desired: None,
        kernel: Some(list(&ranges)),
    }));
    Ok(())
}

/// What an address's mark says; `owned`: the service it names has a frontend at that address.
fn mark(value: &Frontend, owned: bool, sources: &Sources) -> Behind {
    let mut behind = Behind { flags: value.flags, ..Behind::default() };
    if value.flags & frontend_flag::SOURCES == 0 {
        if value.service != 0 {
            behind.broken.push(format!("names service #{}, whose ranges nobody asks for", value.service));
        }
        return behind;
    }
    behind.sources = sources.get(&value.service).cloned().unwrap_or_default();
    if !owned {
        behind.broken.push(format!("names service #{}, which is not at this address", value.service));
    }
    behind
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
        part("sources", list(&self.sources), !self.sources.is_empty());
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

fn list(ranges: &BTreeSet<String>) -> String {
    ranges.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
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
