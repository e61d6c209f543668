//! Real connections: through the hooks, beside plain forwarding, beside nftables.

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
by the client. *Sockets*: a pod in the agent's socket cgroup, beside \
one of the same node that is not and connects to the backend's own address. IPv4.";

/// Numbers of services.
const SIZES: [u32; 2] = [10, 10_000];
const PORT: u16 = 8080;

/// How often and how long.
struct Effort {
    rounds: u32,
    connects: u32,
    round_trips: u32,
    stream: Duration,
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
        let [ours, plain] = rounds(ways, Task::Stream(effort.stream), effort.rounds.min(21))?;
        let gigabits = |samples: &[f64]| format!("{:.1} Gbit/s", median(samples) * 8e-9);
        let stream = Row::new("pod to pod, stream ÷ plain", Unit::Times, ratios(&ours, &plain))
            .goal(Goal::AtLeast(1.0))
            .beside(format!("ours {}, plain {}", gigabits(&ours), gigabits(&plain)));
        let [ours, plain] = rounds(ways, Task::RoundTrip(effort.round_trips), effort.rounds)?;
        // A rate, so that more is better in both rows.
        let trips = Row::new("pod to pod, requests a second ÷ plain", Unit::Times, ratios(&plain, &ours))
            .goal(Goal::AtLeast(1.0))
            .beside(format!("ours {}, plain {}", seconds(median(&ours)), seconds(median(&plain))));
        let [ours, plain] = rounds(ways, Task::Connect(effort.connects), effort.rounds)?;
        let connects = Row::new("pod to pod, connect ÷ plain", Unit::Times, ratios(&ours, &plain))
            .beside(format!("ours {}, plain {}", seconds(median(&ours)), seconds(median(&plain))));
        Ok(vec![stream, trips, connects])
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
        let beside = |a: &[f64], name: &str, b: &[f64]| {
            format!("ours {}, {name} {}", seconds(median(a)), seconds(median(b)))
        };
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

/// Pod to ClusterIP by balanced sockets, beside pod to pod.
fn sockets(effort: &Effort) -> Result<Vec<Row>> {
    let node = Node::with_sockets()?;
    let ways = [(&node.client.netns, node.load_pair()?), (&node.outside.netns, node.server())];
    let tasks = [
        ("connect", Task::Connect(effort.connects), Some(1.02)),
        ("UDP round trip", Task::Datagrams(effort.round_trips), Some(1.02)),
        // Two hooks for each round trip.
        ("UDP round trip, unconnected", Task::Addressed(effort.round_trips), None),
    ];
    let row = |(name, task, goal): (&str, Task, Option<f64>)| {
        let [ours, direct] = rounds(ways, task, effort.rounds)?;
        let row = Row::new(format!("sockets: {name} ÷ direct"), Unit::Times, ratios(&ours, &direct))
            .beside(format!("ours {}, direct {}", seconds(median(&ours)), seconds(median(&direct))));
        Ok(match goal {
            Some(most) => row.goal(Goal::AtMost(most)),
            None => row,
        })
    };
    tasks.into_iter().map(row).collect()
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
