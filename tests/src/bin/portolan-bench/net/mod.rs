//! Real connections: through the hooks, beside plain forwarding, beside nftables.

mod between;
pub(crate) mod node;
mod plain;
mod traffic;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use portolan_tests::lab::Netns;

use crate::nft::service;
use crate::report::{Goal, Row, Section, Unit, median, seconds, thousands};
use node::Node;
use plain::Forwarding;
use traffic::{Task, measure as ask};

const HOW: &str = "Client and server are threads on one CPU, in namespaces of their own. *Ours*: two pods of a node with \
a running agent, tables of the default size. *Plain*: two veth pairs and a namespace that forwards, without conntrack. \
*nft*: the same as plain, with a ruleset of kube-proxy's nftables shape (map of verdicts, chain for each service and \
endpoint, random choice, DNAT, conntrack) in the forwarding namespace. All three take turns in each round; a ratio is of \
one round. All services have one endpoint, and the last one loaded is asked. Connect: connect, one byte each way, close \
by the client. *Two nodes*: a pod of one and a pod of the other, whose uplinks are veth pairs to one bridge; plain is the \
same with nodes that only forward, *vxlan* the same with `--routing-mode vxlan`; bytes of a packet are those that the first \
node's uplink counts, which are many times the MTU as long as segments travel together (GSO). *Sockets*: a pod in the agent's \
socket cgroup, beside one of the same node that is not and connects to the backend's own address; a node with few services and \
one with many, in turns. IPv4.";

/// Numbers of services.
const SIZES: [u32; 2] = [10, 10_000];
/// Numbers of services with balanced sockets.
const SOCKET_SIZES: [u32; 2] = [10, 100_000];
const PORT: u16 = 8080;

/// How often and how long.
struct Effort {
    rounds: u32,
    connects: u32,
    round_trips: u32,
    stream: Duration,
}

impl Effort {
    /// What is measured of pods without services.
    fn tasks(&self) -> [Task; 3] {
        [Task::Stream(self.stream), Task::RoundTrip(self.round_trips), Task::Connect(self.connects)]
    }

    /// Streams vary less, and take longer.
    fn rounds_of(&self, task: Task) -> u32 {
        if let Task::Stream(_) = task { self.rounds.min(21) } else { self.rounds }
    }
}

pub(crate) fn measure(quick: bool) -> Result<Section> {
    let effort = if quick {
        Effort { rounds: 3, connects: 500, round_trips: 2000, stream: Duration::from_millis(200) }
    } else {
        // Short turns, and many: what else the machine does then hits all of them alike.
        Effort { rounds: 41, connects: 400, round_trips: 2500, stream: Duration::from_millis(250) }
    };
    let lab = Lab { ours: Node::new()?, plain: Forwarding::new("plain")?, nft: Forwarding::new("nft")? };
    let mut rows = lab.direct(&effort)?;
    rows.extend(two_nodes(&effort)?);
    rows.extend(sockets(&effort)?);
    for services in SIZES {
        rows.extend(lab.services(services, &effort)?);
    }
    Ok(Section { name: "net", title: "Connections: pod to pod and pod to ClusterIP", how: HOW, rows })
}

/// The three ways.
struct Lab {
    ours: Node,
    plain: Forwarding,
    nft: Forwarding,
}

/// A client and where it sends to.
type Way<'a> = (&'a Netns, SocketAddr);

impl Lab {
    fn ours(&self, to: SocketAddr) -> Way<'_> {
        (&self.ours.client.netns, to)
    }

    fn plain(&self) -> Way<'_> {
        (&self.plain.client, self.plain.server())
    }

    /// Pod to pod without a service.
    fn direct(&self, effort: &Effort) -> Result<Vec<Row>> {
        let ways = [self.ours(self.ours.server()), self.plain()];
        for (netns, to) in ways {
            traffic::wait(netns, to, Duration::from_secs(10))?;
        }
        let row = |task: Task| {
            let [ours, plain] = rounds(ways, task, effort.rounds_of(task))?;
            Ok(rate("pod to pod", task, ("ours", &ours), ("plain", &plain)).goal(Goal::AtLeast(1.0)))
        };
        effort.tasks().into_iter().map(row).collect()
    }

    /// Pod to ClusterIP, with so many services.
    fn services(&self, count: u32, effort: &Effort) -> Result<Vec<Row>> {
        let to: SocketAddr = (service(count - 1), PORT).into();
        let loaded = [self.ours.load_services(count)?, self.nft.load_rules(count)?];
        let ways = [self.ours(to), self.plain(), (&self.nft.client, to)];
        for (netns, to) in ways {
            traffic::wait(netns, to, Duration::from_secs(10))?;
        }
        let at = format!("{} services: ", thousands(count));
        let [ours, plain, nft] = rounds(ways, Task::Connect(effort.connects), effort.rounds)?;
        let [trip, plain_trip, nft_trip] = rounds(ways, Task::RoundTrip(effort.round_trips), effort.rounds)?;
        let [moved, added] = self.nft.change_rules(count)?;
        let beside = |a: &[f64], name: &str, b: &[f64]| beside(("ours", a), (name, b));
        Ok(vec![
            Row::new(format!("{at}connect ÷ plain"), Unit::Times, ratios(&ours, &plain))
                .goal(Goal::AtMost(1.05))
                .beside(beside(&ours, "plain", &plain)),
            Row::new(format!("{at}connect ÷ nft"), Unit::Times, ratios(&ours, &nft))
                .goal(Goal::AtMost(1.0))
                .beside(beside(&ours, "nft", &nft)),
            Row::new(format!("{at}round trip ÷ plain"), Unit::Times, ratios(&trip, &plain_trip))
                .beside(beside(&trip, "plain", &plain_trip)),
            Row::new(format!("{at}round trip ÷ nft"), Unit::Times, ratios(&trip, &nft_trip))
                .beside(beside(&trip, "nft", &nft_trip)),
            Row::new(format!("{at}from YAML to answers"), Unit::Seconds, vec![loaded[0].as_secs_f64()])
                .beside(format!(
                    "nft -f {}, then one endpoint {}, one service {}",
                    seconds(loaded[1].as_secs_f64()),
                    seconds(moved),
                    seconds(added)
                )),
        ])
    }
}

/// Pod to pod of another node, without services: by routes, by plain forwarding, by the overlay.
fn two_nodes(effort: &Effort) -> Result<Vec<Row>> {
    let (native, plain) = (between::Ours::new(&[])?, between::Plain::new()?);
    let vxlan = between::Ours::new(&["--routing-mode", "vxlan"])?;
    let ways = [native.way(), plain.way(), vxlan.way()];
    for (netns, to) in ways {
        traffic::wait(netns, to, Duration::from_secs(10))?;
    }
    let sent = || Ok::<_, anyhow::Error>([native.sent()?, plain.sent()?, vxlan.sent()?]);
    let mut rows = Vec::new();
    for task in effort.tasks() {
        let before = sent()?;
        let [ours, forwarded, overlaid] = rounds(ways, task, effort.rounds_of(task))?;
        let after = sent()?;
        let sizes: [String; 3] =
            std::array::from_fn(|way| format!("{:.0}", after[way].size_since(before[way])));
        let mut pair = [
            rate("two nodes", task, ("ours", &ours), ("plain", &forwarded)).goal(Goal::AtLeast(1.0)),
            rate("two nodes, vxlan", task, ("vxlan", &overlaid), ("native", &ours)).goal(Goal::AtLeast(0.9)),
        ];
        if let Task::Stream(_) = task {
            let [ours, plain, vxlan] = sizes;
            pair[0].beside += &format!("; bytes of a packet: {ours}, {plain}");
            pair[1].beside += &format!("; bytes of a packet: {vxlan}, {ours}");
        }
        rows.extend(pair);
    }
    Ok(rows)
}

/// Pod to ClusterIP by balanced sockets, beside pod to pod: with few services and with many.
fn sockets(effort: &Effort) -> Result<Vec<Row>> {
    let nodes = [Node::with_sockets()?, Node::with_sockets()?];
    let loaded = [nodes[0].load_services(SOCKET_SIZES[0])?, nodes[1].load_services(SOCKET_SIZES[1])?];
    let way = |at: usize| (&nodes[at].client.netns, (service(SOCKET_SIZES[at] - 1), PORT).into());
    let direct = |at: usize| (&nodes[at].outside.netns, nodes[at].server());
    let ways = [way(0), direct(0), way(1), direct(1)];
    let tasks = [
        ("connect", Task::Connect(effort.connects), Some(1.02)),
        ("UDP round trip", Task::Datagrams(effort.round_trips), Some(1.02)),
        // Two hooks for each round trip.
        ("UDP round trip, unconnected", Task::Addressed(effort.round_trips), None),
    ];
    let [few, many] = SOCKET_SIZES.map(|count| format!("sockets, {} services", thousands(count)));
    let mut rows = Vec::new();
    for (name, task, goal) in tasks {
        let samples = rounds(ways, task, effort.rounds)?;
        let [a, direct_a, b, direct_b] = samples.each_ref();
        for (at, ours, direct) in [(&few, a, direct_a), (&many, b, direct_b)] {
            let row = Row::new(format!("{at}: {name} ÷ direct"), Unit::Times, ratios(ours, direct))
                .beside(beside(("ours", ours), ("direct", direct)));
            rows.push(match goal {
                Some(most) => row.goal(Goal::AtMost(most)),
                None => row,
            });
        }
    }
    for (at, loaded) in [&few, &many].into_iter().zip(loaded) {
        rows.push(Row::new(format!("{at}: from YAML to answers"), Unit::Seconds, vec![loaded.as_secs_f64()]));
    }
    Ok(rows)
}

/// The ratio of two rates, so that more is better whatever was measured.
fn rate(what: &str, task: Task, ours: (&str, &[f64]), other: (&str, &[f64])) -> Row {
    let name = match task {
        Task::Stream(_) => "stream",
        Task::Connect(_) => "connects a second",
        Task::RoundTrip(_) | Task::Datagrams(_) | Task::Addressed(_) => "requests a second",
    };
    let what = format!("{what}, {name} ÷ {}", other.0);
    if let Task::Stream(_) = task {
        let gigabits =
            |(name, samples): (&str, &[f64])| format!("{name} {:.1} Gbit/s", median(samples) * 8e-9);
        return Row::new(what, Unit::Times, ratios(ours.1, other.1)).beside(format!(
            "{}, {}",
            gigabits(ours),
            gigabits(other)
        ));
    }
    Row::new(what, Unit::Times, ratios(other.1, ours.1)).beside(beside(ours, other))
}

/// Medians of two times with their names.
fn beside(ours: (&str, &[f64]), other: (&str, &[f64])) -> String {
    let text = |(name, samples): (&str, &[f64])| format!("{name} {}", seconds(median(samples)));
    format!("{}, {}", text(ours), text(other))
}

/// Each way once in each round, after one round that does not count.
fn rounds<const N: usize>(ways: [Way<'_>; N], task: Task, count: u32) -> Result<[Vec<f64>; N]> {
    let mut samples = [const { Vec::new() }; N];
    for round in 0..=count {
        for (samples, (netns, to)) in samples.iter_mut().zip(ways) {
            let value = ask(netns, to, task)?;
            if round > 0 {
                samples.push(value);
            }
        }
    }
    Ok(samples)
}

fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(over, under)| over / under).collect()
}
