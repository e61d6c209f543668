//! Very many nodes: the ways to their pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnetwork::IpNetwork;
use portolan_abi::{PrefixKey, Words};
use portolan_apply::Applier;
use portolan_model::{Event, Family, Labels, Node, Object as Kubernetes, Store};
use portolan_node::link::{Links, ServiceSources, Target, overhead};
use portolan_node::{Object, Sizes};
use portolan_plan::{Extent, NodePlan, Options, Planner};
use portolan_tests::lab::Netns;
use tokio::runtime::Runtime;

use super::{Agent, cluster, timed};
use crate::report::{Goal, Row, Unit, median, quantile, seconds, thousands};

/// Other nodes, each with an address and a podCIDR of both families.
const NODES: u32 = 10_000;
/// The port of the overlay, and the uplink's MTU.
const PORT: u16 = 8472;
const MTU: u32 = 1500;

/// The first complete state, and then one node that gets other podCIDRs, by routes and by the overlay.
pub(super) fn ways(rounds: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (mode, overlay) in [("native", false), ("vxlan", true)] {
        let (mut first, mut changes) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let netns = Netns::new("nodes")?;
            wire(&netns)?;
            let (cold, warm) = netns.enter(move || round(overlay, rounds * 2))??;
            first.push(cold);
            changes.extend(warm);
        }
        let at = format!("{} other nodes, {mode}", thousands(NODES));
        rows.push(row(format!("{at}: all ways"), &first).goal(Goal::AtMost(1.0)));
        let total: Vec<f64> = changes.iter().map(Parts::total).collect();
        let p99 = seconds(quantile(&total, 0.99));
        let mut change = row(format!("{at}: one node changes"), &changes).goal(Goal::AtMost(0.005));
        change.beside += &format!("; p99 {p99}");
        rows.push(change);
    }
    Ok(rows)
}

fn row(what: String, parts: &[Parts]) -> Row {
    let part = |name: &str, pick: fn(&Parts) -> Duration| {
        let times: Vec<f64> = parts.iter().map(|parts| pick(parts).as_secs_f64()).collect();
        format!("{name} {}", seconds(median(&times)))
    };
    let each = [part("plan", |it| it.plan), part("tables", |it| it.tables), part("routes", |it| it.routes)];
    Row::new(what, Unit::Seconds, parts.iter().map(Parts::total).collect()).beside(each.join(", "))
}

/// An uplink whose network has all nodes.
fn wire(netns: &Netns) -> Result<()> {
    netns.ip("link add eth0 type veth peer name wire")?;
    netns.ip("link set eth0 up")?;
    netns.ip("link set wire up")?;
    netns.ip(&format!("address add {}/16 dev eth0", v4(0)))?;
    netns.ip(&format!("address add {}/64 dev eth0 nodad", v6(0))).map(drop)
}

/// How long each of the agent's parts took.
#[derive(Clone, Copy, Debug)]
struct Parts {
    plan: Duration,
    tables: Duration,
    routes: Duration,
}

impl Parts {
    /// Seconds of all of them: they follow one another.
    fn total(&self) -> f64 {
        (self.plan + self.tables + self.routes).as_secs_f64()
    }
}

/// In the namespace of the calling thread: the first state, and each of so many changes.
fn round(overlay: bool, changes: u32) -> Result<(Parts, Vec<Parts>)> {
    let mut ways = Ways::new(overlay)?;
    for number in 0..=NODES {
        ways.agent.store.apply(Event::Upsert(node(number, number)));
    }
    let first = ways.bring(None)?;
    ways.check(NODES / 2, NODES / 2)?;
    let change = |number: u32| {
        let (which, cidr) = (1 + number * 7919 % NODES, NODES + 1 + number);
        let parts = ways.bring(Some(Event::Upsert(node(which, cidr))))?;
        ways.check(which, cidr)?;
        Ok(parts)
    };
    Ok((first, (0..changes).map(change).collect::<Result<_>>()?))
}

/// The agent's parts that make the ways to other nodes.
struct Ways {
    agent: Agent,
    links: Links,
    runtime: Runtime,
    /// Index of the overlay device, if there is an overlay.
    overlay: Option<u32>,
    _object: Object,
}

impl Ways {
    fn new(overlay: bool) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let (links, object) = (Links::new()?, Object::load(None, Sizes::default())?);
        let device = links.ensure_overlay(PORT, MTU - overhead(true));
        let device = overlay.then(|| runtime.block_on(device)).transpose()?;
        let options = Options { overlay: overlay.then_some(Family::V4), ..Options::default() };
        let agent = Agent {
            store: Store::default(),
            planner: Planner::with_options(cluster::NODE, options),
            applier: Applier::open(object.tables()?)?,
        };
        Ok(Self { agent, links, runtime, overlay: device, _object: object })
    }

    /// From an event, or from everything there is, to tables and routes.
    fn bring(&mut self, event: Option<Event>) -> Result<Parts> {
        let (changes, plan) = timed(|| match event {
            Some(event) => {
                let touched = self.agent.store.apply(event);
                self.agent.planner.plan(&self.agent.store, Extent::Touched(&touched))
            }
            None => self.agent.planner.plan(&self.agent.store, Extent::All),
        });
        let (applied, tables) = timed(|| self.agent.apply(&changes));
        applied?;
        let (routed, routes) = timed(|| self.route());
        routed?;
        Ok(Parts { plan, tables, routes })
    }

    /// As the agent does after each change of nodes.
    fn route(&self) -> Result<()> {
        let plan: &NodePlan = self.agent.planner.node();
        let native: Vec<_> = match self.overlay {
            Some(_) => Vec::new(),
            None => plan.routes.iter().map(|route| (route.prefix, route.via)).collect(),
        };
        let mut failed = self.runtime.block_on(self.links.ensure_routes(&native, &[]))?.failed;
        if let Some(device) = self.overlay {
            let prefixes: Vec<IpNetwork> = plan.routes.iter().map(|route| route.prefix).collect();
            let sources = ServiceSources { v4: Some(v4(0)), v6: Some(v6(0)) };
            let ways = self.links.ensure_overlay_routes(device, &prefixes, sources);
            failed.extend(self.runtime.block_on(ways)?.failed);
        }
        ensure!(failed.is_empty(), "{} routes refused, the first: {:?}", failed.len(), failed.first());
        Ok(())
    }

    /// Whether the kernel has a way to each node, and to one of them this one.
    fn check(&self, number: u32, cidr: u32) -> Result<()> {
        let own = |target: &Target| match target {
            Target::Via(_) => self.overlay.is_none(),
            Target::Device { ifindex, .. } => self.overlay == Some(*ifindex),
            Target::Unreachable => false,
        };
        let routes = self.runtime.block_on(self.links.routes())?;
        let ours: Vec<_> = routes.iter().filter(|route| own(&route.target)).collect();
        ensure!(ours.len() == 2 * NODES as usize, "{} routes", ours.len());
        for (prefix, at) in [(pods_v4(cidr), v4(number).into()), (pods_v6(cidr), v6(number).into())] {
            let route = ours.iter().find(|route| route.prefix == prefix);
            let is_right =
                route.is_some_and(|route| self.overlay.is_some() || route.target == Target::Via(at));
            ensure!(is_right, "the way to {prefix} of node {number}: {route:?}");
        }
        let network = Words::<1>::from_octets(pods_v4_network(cidr).octets());
        let realm = self.agent.applier.tables().v4.realms.get(&PrefixKey { bits: 24, addr: network })?;
        let wanted =
            if self.overlay.is_some() { Words::<1>::from_octets(v4(number).octets()).0[0] } else { 0 };
        ensure!(
            realm.is_some_and(|realm| realm.node.0[0] == wanted),
            "the node of {}: {realm:?}",
            pods_v4(cidr)
        );
        Ok(())
    }
}

/// A node, by its number, with podCIDRs by theirs. Number 0 is the one that is measured.
fn node(number: u32, cidr: u32) -> Kubernetes {
    Kubernetes::Node(Node {
        name: format!("node-{number}").into(),
        addresses: vec![v4(number).into(), v6(number).into()],
        external: Vec::new(),
        pod_cidrs: vec![pods_v4(cidr), pods_v6(cidr)],
        zone: None,
        labels: Labels::new(),
        unschedulable: false,
        taints: Vec::new(),
        deleting: false,
    })
}

fn v4(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 1).to_bits() + number)
}

fn v6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1).to_bits() + u128::from(number))
}

fn pods_v4(number: u32) -> IpNetwork {
    prefix(pods_v4_network(number).into(), 24)
}

fn pods_v4_network(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(11, 0, 0, 0).to_bits() + (number << 8))
}

fn pods_v6(number: u32) -> IpNetwork {
    let first = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0).to_bits();
    prefix(Ipv6Addr::from_bits(first + (u128::from(number) << 64)).into(), 64)
}

fn prefix(network: IpAddr, bits: u8) -> IpNetwork {
    IpNetwork::new(network, bits).expect("the length is one of the family's")
}
