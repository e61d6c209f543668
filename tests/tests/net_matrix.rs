//! What becomes of a new flow: every place that a client can be in asks every kind of address, over TCP and UDP, IPv4
//! and IPv6, under every policy.
//!
//! There is one backend on each node. A test publishes some of them, and states for every cell of the table whether it
//! is served, and by which node's backend, refused, or dropped; the last two are counted where they happen. `portolan
//! explain` has to say the same of every cell.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portolan_tests::lab::{
    AgentOptions, Condition, NODE_ADDRESSES, Netns, Pod, Shop, cluster_address, failure, get, node_address,
    public_address, service, udp_ask,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];

/// How long a client waits before it believes that nobody answers: a SYN is sent again after a second.
const SILENCE: Duration = Duration::from_millis(700);

/// How long it waits for a refusal: that comes at once, but the machine may be busy.
const REFUSAL: Duration = Duration::from_secs(3);

/// Where a client is, by the index of its node; an outside one, by the node that it comes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Pod(usize),
    Host(usize),
    Outside(usize),
}

/// What it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    ClusterIp,
    /// The load balancer's address.
    Public,
    ExternalIp,
    /// The port of the node of that index.
    NodePort(usize),
    /// An address of the service range that no service has.
    Unallocated,
}

use What::{ClusterIp, ExternalIp, NodePort, Public, Unallocated};
use Who::{Host, Outside};

/// One cell of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    who: Who,
    what: What,
}

impl Cell {
    /// The node that takes the flow for one from outside: clients of the cluster are known as such by their own node
    /// only.
    fn entry(self) -> Option<usize> {
        match (self.who, self.what) {
            (Outside(node), _) => Some(node),
            (Who::Pod(own) | Host(own), NodePort(node)) if node != own => Some(node),
            _ => None,
        }
    }

    /// The client's node, or the one it comes through.
    fn home(self) -> usize {
        let (Who::Pod(node) | Host(node) | Outside(node)) = self.who;
        node
    }

    /// The node that decides.
    fn judge(self) -> usize {
        self.entry().unwrap_or(self.home())
    }

    fn address(self, v6: bool) -> SocketAddr {
        let (fixed, text) = match self.what {
            ClusterIp => return cluster_address(v6),
            Public => return public_address(v6),
            NodePort(node) => return node_address(node, v6),
            ExternalIp => (EXTERNAL, "an external address"),
            Unallocated => (["10.96.0.200", "fd00:10:96::200"], "an address nobody has"),
        };
        SocketAddr::new(fixed[usize::from(v6)].parse().expect(text), 80)
    }
}

/// `spec.externalIPs` of the service.
const EXTERNAL: [&str; 2] = ["198.51.100.30", "2001:db8:f::30"];

/// Every cell.
fn cells() -> Vec<Cell> {
    let inside = [Who::Pod(0), Who::Pod(1), Host(0), Host(1)];
    let inside = inside.into_iter().flat_map(|who| {
        [ClusterIp, Public, ExternalIp, NodePort(0), NodePort(1)].map(|what| Cell { who, what })
    });
    let outside = [0, 1].into_iter().flat_map(|node| {
        [ClusterIp, Public, ExternalIp, NodePort(node)].map(|what| Cell { who: Outside(node), what })
    });
    inside.chain(outside).collect()
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The client is told at once; counted under that name.
    Refused(&'static str),
    /// Nothing comes back; counted under that name.
    Dropped(&'static str),
    /// Backends of these nodes answer, and no others.
    Served(&'static [usize]),
}

use Verdict::{Dropped, Refused, Served};

const NO_BACKEND: Verdict = Refused("rejected-no-backend");
const NO_LOCAL: Verdict = Dropped("no-local-backend");
const NOT_ADMITTED: Verdict = Dropped("source-range");
const BOTH: Verdict = Served(&[0, 1]);

/// Backends of that node alone.
fn only(node: usize) -> Verdict {
    Served(if node == 0 { &[0] } else { &[1] })
}

/// The cluster: backends `b0` and `b1`, a client pod on each node.
struct Stage {
    second: Pod,
    shop: Shop,
}

impl Stage {
    /// The service with these lines in its spec, and the backends of these nodes ready.
    fn open(extra: &str, ready: &[usize]) -> Result<Self> {
        Self::open_as(ready, |text| text.replacen("  ports:", &format!("{extra}  ports:"), 1))
    }

    /// As [`open`](Self::open), with any change to the service's text.
    fn open_as(ready: &[usize], change: impl Fn(String) -> String) -> Result<Self> {
        let options = AgentOptions { arguments: vec!["--external-ips".to_owned()], ..Default::default() };
        let shop = Shop::open_with(&[0, 1], &options)?;
        let second = Pod::add(&shop.agents[1], "client2")?;
        let [v4, v6] = EXTERNAL;
        let text = service(&format!("  externalIPs: [{v4}, \"{v6}\"]\n"));
        shop.cluster.write("service.yaml", &change(text))?;
        shop.publish(|index| {
            Some(if ready.contains(&index) { Condition::Ready } else { Condition::NotReady })
        })?;
        shop.settle()?;
        Ok(Self { second, shop })
    }

    fn netns(&self, who: Who) -> &Netns {
        match who {
            Who::Pod(0) => &self.shop.client.netns,
            Who::Pod(_) => &self.second.netns,
            Host(node) => &self.shop.cluster.nodes[node].netns,
            Outside(_) => &self.shop.cluster.client,
        }
    }

    /// The client's own address.
    fn own_address(&self, who: Who, v6: bool) -> Result<IpAddr> {
        Ok(match who {
            Who::Pod(0) => self.shop.client.address(v6),
            Who::Pod(_) => self.second.address(v6),
            Host(node) => NODE_ADDRESSES[node][usize::from(v6)].parse()?,
            Outside(_) => if v6 { "2001:db8:c::10" } else { "203.0.113.10" }.parse()?,
        })
    }

    /// Whom the backend of a node takes for the client: the client itself, unless the answer would not come back the
    /// way that the question took.
    fn seen(&self, cell: Cell, v6: bool, backend: usize) -> Result<IpAddr> {
        match cell.entry() {
            Some(entry) if entry != backend => Ok(NODE_ADDRESSES[entry][usize::from(v6)].parse()?),
            _ => self.own_address(cell.who, v6),
        }
    }

    /// Every cell of the table has the verdict that is expected of it; `None`: not looked at.
    fn holds(&self, expected: impl Fn(Cell) -> Option<Verdict>) -> Result<()> {
        self.hold(&cells(), |it| it, expected)
    }

    /// As [`holds`](Self::holds), for these cells, at other ports.
    fn hold(
        &self,
        cells: &[Cell],
        port: impl Fn(SocketAddr) -> SocketAddr,
        expected: impl Fn(Cell) -> Option<Verdict>,
    ) -> Result<()> {
        let mut asked = Vec::new();
        for (cell, verdict) in cells.iter().filter_map(|cell| Some((*cell, expected(*cell)?))) {
            for v6 in FAMILIES {
                let to = port(cell.address(v6));
                asked.extend([false, true].map(|udp| Question { cell, verdict, v6, udp, to }));
            }
        }
        ensure!(asked.len() >= 16, "a table of {} questions proves little", asked.len());
        let before = self.counted()?;
        // The router leads to one node at a time.
        let (first, second) = asked.iter().partition::<Vec<_>, _>(|it| it.cell.who != Outside(1));
        let mut failures = Vec::new();
        for (node, questions) in [first, second].into_iter().enumerate() {
            self.shop.cluster.route_public_to(node)?;
            self.shop.cluster.route_services_to(node)?;
            failures.extend(self.ask_all(&questions));
        }
        failures.extend(misses(&asked, &before, &self.counted()?));
        failures.extend(self.explain_all(&asked));
        ensure!(failures.is_empty(), "{} of {}: {failures:#?}", failures.len(), asked.len());
        Ok(())
    }

    /// Asks all at once; what was not as expected.
    fn ask_all(&self, questions: &[&Question]) -> Vec<String> {
        let ask = |it: &Question| self.check(it).err().map(|error| format!("{it:?}: {error:#}"));
        std::thread::scope(|scope| {
            let asked: Vec<_> = questions.iter().map(|it| scope.spawn(move || ask(it))).collect();
            asked.into_iter().filter_map(|it| it.join().expect("a question has no bug")).collect()
        })
    }

    fn check(&self, question: &Question) -> Result<()> {
        let Question { cell, verdict, udp, to, .. } = *question;
        let netns = self.netns(cell.who);
        match verdict {
            Served(nodes) => self.is_served(question, nodes),
            Refused(_) => fails(netns, udp, to, ErrorKind::ConnectionRefused, REFUSAL),
            Dropped(_) => fails(netns, udp, to, ErrorKind::TimedOut, SILENCE),
        }
    }

    /// What `explain` says otherwise than is expected.
    fn explain_all(&self, questions: &[Question]) -> Vec<String> {
        let wrong = |it: &Question| self.explain(it).err().map(|error| format!("{it:?}: {error:#}"));
        // A process for each question: not all at once.
        let lanes = questions.chunks(questions.len().div_ceil(4));
        std::thread::scope(|scope| {
            let lanes: Vec<_> = lanes
                .map(|lane| scope.spawn(move || lane.iter().filter_map(wrong).collect::<Vec<_>>()))
                .collect();
            lanes.into_iter().flat_map(|lane| lane.join().expect("a question has no bug")).collect()
        })
    }

    /// Asks the node that decides what it would do with the flow's first packet.
    fn explain(&self, question: &Question) -> Result<()> {
        let Question { cell, verdict, v6, udp, to } = *question;
        let source = match (cell.who, cell.entry()) {
            (Host(_), None) => "host".to_owned(),
            _ => self.own_address(cell.who, v6)?.to_string(),
        };
        let proto = if udp { "udp" } else { "tcp" };
        // A port that no client of before had.
        let line = format!("explain {source} {to} --proto {proto} --source-port 1025 -o json");
        let said: Value = serde_json::from_str(&self.shop.agents[cell.judge()].view(&line)?)?;
        match verdict {
            Refused(name) | Dropped(name) => {
                ensure!(said["outcome"] == name && said["dropped"] == true, "{said:#}");
            }
            Served(nodes) => {
                let port = if udp { 9000 } else { 8080 };
                let backends = self.shop.backends.iter().filter(|it| nodes.contains(&it.node));
                let ends = backends.map(|it| SocketAddr::new(it.pod.address(v6), port).to_string());
                let steps = said["steps"].as_array().context("no steps")?;
                let chosen = steps.iter().find(|step| step["step"] == "backend");
                let chosen = chosen.and_then(|step| step["finding"].as_str()).context("no backend")?;
                let named = ends.into_iter().any(|end| chosen.ends_with(&format!(" is {end}")));
                ensure!(named && said["dropped"] == false, "{said:#}");
            }
        }
        Ok(())
    }

    /// Asks until every expected backend has answered, but at least a few times, to hear of another one.
    fn is_served(&self, question: &Question, nodes: &[usize]) -> Result<()> {
        let Question { cell, v6, udp, to, .. } = *question;
        let mut silent: BTreeSet<usize> = nodes.iter().copied().collect();
        for number in 0..48 {
            let netns = self.netns(cell.who);
            let (server, seen) = if udp { udp_ask(netns, to) } else { get(netns, to) }?;
            let node: usize = server.trim_start_matches('b').parse()?;
            ensure!(nodes.contains(&node), "{server} answered");
            let expected = self.seen(cell, v6, node)?;
            ensure!(seen.parse::<IpAddr>()? == expected, "{server} saw {seen}, not {expected}");
            silent.remove(&node);
            if silent.is_empty() && number >= 5 {
                return Ok(());
            }
        }
        bail!("no answer of the backends of nodes {silent:?}")
    }

    /// Packets by node and outcome.
    fn counted(&self) -> Result<BTreeMap<(usize, String), u64>> {
        let mut all = BTreeMap::new();
        for (node, agent) in self.shop.agents.iter().enumerate() {
            let list: Value = serde_json::from_str(&agent.view("drop list --all -o json")?)?;
            for entry in list.as_array().context("no list")? {
                let (name, packets) = (entry["reason"].as_str(), entry["packets"].as_u64());
                all.insert((node, name.context("no name")?.to_owned()), packets.context("no number")?);
            }
        }
        Ok(all)
    }
}

/// One question, and what is expected of it.
#[derive(Debug)]
struct Question {
    cell: Cell,
    verdict: Verdict,
    v6: bool,
    udp: bool,
    to: SocketAddr,
}

fn fails(netns: &Netns, udp: bool, to: SocketAddr, expected: ErrorKind, patience: Duration) -> Result<()> {
    let outcome = failure(netns, udp, to, patience)?;
    ensure!(outcome == Some(expected), "{outcome:?}");
    Ok(())
}

/// Where the counters do not tell what was refused and dropped. Each question is one packet, unless the machine is so
/// busy that a client without an answer sends again.
fn misses(
    asked: &[Question],
    before: &BTreeMap<(usize, String), u64>,
    after: &BTreeMap<(usize, String), u64>,
) -> Vec<String> {
    let mut expected: BTreeMap<(usize, String), u64> = BTreeMap::new();
    for question in asked {
        if let Refused(name) | Dropped(name) = question.verdict {
            *expected.entry((question.cell.judge(), name.to_owned())).or_default() += 1;
        }
    }
    let wrong = expected.into_iter().filter_map(|(key, count)| {
        let moved = after.get(&key)? - before.get(&key)?;
        (moved < count || moved > 2 * count)
            .then(|| format!("node{} counted {moved} {}, not {count}", key.0 + 1, key.1))
    });
    wrong.collect()
}

#[test]
fn without_a_usable_endpoint_everybody_is_refused_at_every_address() -> Result<()> {
    Stage::open("", &[])?.holds(|_| Some(NO_BACKEND))
}

#[test]
fn without_a_usable_endpoint_local_policies_refuse_as_well() -> Result<()> {
    let both = "  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n";
    Stage::open(both, &[])?.holds(|_| Some(NO_BACKEND))
}

#[test]
fn policy_cluster_leads_everybody_to_backends_of_all_nodes() -> Result<()> {
    Stage::open("", &[0, 1])?.holds(|_| Some(BOTH))
}

#[test]
fn policy_cluster_masquerades_only_what_would_not_come_back() -> Result<()> {
    // With one backend it is certain through which node every answer has to come.
    Stage::open("", &[0])?.holds(|_| Some(only(0)))
}

#[test]
fn internal_policy_local_keeps_the_cluster_address_on_the_node_and_nothing_else() -> Result<()> {
    Stage::open("  internalTrafficPolicy: Local\n", &[0, 1])?.holds(|cell| {
        Some(match cell.what {
            ClusterIp => only(cell.home()),
            _ => BOTH,
        })
    })
}

#[test]
fn internal_policy_local_without_a_local_backend_drops_at_the_cluster_address_alone() -> Result<()> {
    Stage::open("  internalTrafficPolicy: Local\n", &[0])?.holds(|cell| {
        Some(match (cell.what, cell.home()) {
            (ClusterIp, 1) => NO_LOCAL,
            _ => only(0),
        })
    })
}

#[test]
fn external_policy_local_keeps_outside_clients_on_the_node_and_their_addresses() -> Result<()> {
    Stage::open("  externalTrafficPolicy: Local\n", &[0, 1])?.holds(|cell| {
        Some(match (cell.what, cell.entry()) {
            (ClusterIp, _) | (_, None) => BOTH,
            (_, Some(node)) => only(node),
        })
    })
}

#[test]
fn external_policy_local_without_a_local_backend_drops_outside_clients_and_serves_the_nodes_own() -> Result<()>
{
    Stage::open("  externalTrafficPolicy: Local\n", &[0])?.holds(|cell| {
        Some(match (cell.what, cell.entry()) {
            (ClusterIp, _) | (_, Some(0) | None) => only(0),
            (_, Some(_)) => NO_LOCAL,
        })
    })
}

#[test]
fn source_ranges_drop_whom_they_do_not_name_at_the_load_balancer_address_alone() -> Result<()> {
    let nobody = "  loadBalancerSourceRanges: [203.0.113.128/25, \"2001:db8:c:1::/64\"]\n";
    Stage::open(nobody, &[0, 1])?.holds(|cell| {
        Some(match cell.what {
            Public => NOT_ADMITTED,
            _ => BOTH,
        })
    })
}

#[test]
fn source_ranges_admit_the_pods_and_the_node_whose_addresses_they_hold() -> Result<()> {
    let some = "  loadBalancerSourceRanges: [192.0.2.12/32, \"2001:db8:1::12/128\", \" 10.244.1.0/24 \", \
                \"fd00:10:244:1::/64\"]\n";
    Stage::open(some, &[0, 1])?.holds(|cell| {
        Some(match (cell.what, cell.who) {
            (Public, Who::Pod(0) | Host(1)) => BOTH,
            (Public, _) => NOT_ADMITTED,
            _ => BOTH,
        })
    })
}

#[test]
fn a_source_range_of_everything_admits_everybody() -> Result<()> {
    let all = "  loadBalancerSourceRanges: [203.0.113.128/25, \" 0.0.0.0/0\", \"::/0\"]\n";
    Stage::open(all, &[0])?.holds(|cell| (cell.what == Public).then_some(only(0)))
}

#[test]
fn the_annotation_of_source_ranges_counts_where_the_field_is_empty() -> Result<()> {
    let ranges =
        "{service.beta.kubernetes.io/load-balancer-source-ranges: \"203.0.113.0/28, 2001:db8:c::/64\"}";
    let annotated = format!("namespace: shop, annotations: {ranges}}}");
    Stage::open_as(&[0], |text| text.replacen("namespace: shop}", &annotated, 1))?.holds(|cell| {
        Some(match (cell.what, cell.who) {
            (Public, Outside(_)) => only(0),
            (Public, _) => NOT_ADMITTED,
            _ => return None,
        })
    })
}

#[test]
fn an_unknown_port_is_refused_at_every_address_that_is_a_services_own() -> Result<()> {
    let stage = Stage::open("", &[0])?;
    stage.hold(
        &cells(),
        |to| SocketAddr::new(to.ip(), 81),
        |cell| match cell.what {
            // Other ports of a node are its own.
            NodePort(_) => None,
            _ => Some(Refused("rejected-unknown-port")),
        },
    )
}

#[test]
fn an_address_of_the_service_range_that_nobody_has_is_dropped() -> Result<()> {
    let everybody = [Who::Pod(0), Who::Pod(1), Host(0), Host(1), Outside(0), Outside(1)];
    let cells = everybody.map(|who| Cell { who, what: Unallocated });
    let stage = Stage::open("", &[0])?;
    // At any of its ports.
    for port in [80, 443, 8080] {
        stage.hold(&cells, |to| SocketAddr::new(to.ip(), port), |_| Some(Dropped("unknown-service")))?;
    }
    Ok(())
}
