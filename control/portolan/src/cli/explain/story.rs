//! The diary of a decision in words.

use std::net::{IpAddr, SocketAddr};

use portolan_abi::{
    Affinity, Backend, Config, Flow, FlowKey, Frontend, FrontendKey, Realm, Service, backend_flag, counter,
    exit, frontend_flag, realm_flag, service_flag, state,
};
use portolan_core::conntrack::is_forgotten;
use portolan_core::{Exit, Hook, Verdict};
use portolan_node::clock;
use portolan_node::maps::NodeFamily;
use serde::Serialize;

use super::frame::Probe;
use super::live::Look;
use super::place::{Place, is_any};
use super::{Node, Protocol};
use crate::api::Why;
use crate::cli::text::{BAD, Cell, Column, FAINT, GOOD, HEAD, Table, count};

/// What became of the packet, step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explanation {
    /// The packet asked about.
    pub(super) packet: String,
    /// Where it is caught first.
    pub(super) caught: String,
    /// What was looked at, and what was found.
    pub(super) steps: Vec<Step>,
    /// Name of the outcome, as counters have it.
    pub(super) outcome: &'static str,
    /// It does not reach who it was sent to.
    pub(super) dropped: bool,
    /// What happens to it.
    pub(super) result: String,
    /// What the outcome means and, if it is a drop, what would change it.
    pub(super) meaning: &'static str,
}

impl Explanation {
    /// Another program sees the packet after the first one left it alone.
    pub(super) fn goes_on(&mut self, next: Self, caught: &str) {
        self.steps.push(Step { step: "caught", finding: caught.to_owned() });
        self.steps.extend(next.steps);
        (self.outcome, self.dropped) = (next.outcome, next.dropped);
        (self.result, self.meaning) = (next.result, next.meaning);
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    /// What was asked.
    pub(super) step: &'static str,
    /// The answer.
    pub(super) finding: String,
}

/// All that a telling needs beside the diary.
pub(super) struct Story<'a> {
    pub(super) node: &'a Node,
    pub(super) place: &'a Place,
    pub(super) probe: &'a Probe,
    pub(super) config: Option<Config>,
}

/// What earlier steps found.
struct Found<'a> {
    service: Option<&'a Service>,
    frontend: Option<&'a Frontend>,
    /// The packet's own flow was looked up already.
    flow: bool,
}

impl Story<'_> {
    pub(super) fn tell<F: NodeFamily>(&self, looks: &[Look<F::Addr>], verdict: Verdict<F>) -> Explanation {
        let mut steps: Vec<Step> = Vec::new();
        let mut found = Found { service: None, frontend: None, flow: false };
        for look in looks {
            if let Some((step, finding)) = self.step::<F>(look, &mut found) {
                let step = Step { step, finding };
                if !steps.contains(&step) {
                    steps.push(step);
                }
            }
            // What follows the new entries reads them back.
            if matches!(look, Look::Write(_, flow) if flow.state & state::REPLY == 0) {
                break;
            }
        }
        let outcome = &counter::ALL[verdict.outcome() as usize];
        let protocol = match self.probe.protocol {
            Protocol::Tcp => "TCP SYN",
            Protocol::Udp => "UDP datagram",
        };
        Explanation {
            packet: format!("{protocol} {} → {}", end(self.probe.source), end(self.probe.destination)),
            caught: self.place.text.clone(),
            steps,
            outcome: outcome.name,
            dropped: outcome.is_drop(),
            result: self.result::<F>(looks, verdict),
            meaning: outcome.meaning.trim(),
        }
    }

    fn step<'l, F: NodeFamily>(
        &self,
        look: &'l Look<F::Addr>,
        found: &mut Found<'l>,
    ) -> Option<(&'static str, String)> {
        Some(match look {
            // Later looks ask for the way back.
            Look::Flow(_, flow) if !std::mem::replace(&mut found.flow, true) => {
                ("flow", flow_text(flow.as_ref()))
            }
            Look::Frontend(key, frontend) => {
                found.frontend = frontend.as_ref().filter(|_| key.port != 0).or(found.frontend);
                ("frontend", self.frontend::<F>(key, frontend.as_ref())?)
            }
            Look::Service(index, service) => {
                found.service = service.as_ref();
                let why = |local| self.node.names.why(*index, local);
                ("policy", policy(*index, found.service, found.frontend, self.place.hook, why))
            }
            Look::Source(_, true) => ("client", "in one of loadBalancerSourceRanges".to_owned()),
            Look::Source(_, false) => ("client", "in none of loadBalancerSourceRanges".to_owned()),
            Look::Affinity(_, memory) => ("affinity", affinity(memory.as_ref(), found.service)),
            Look::Slot(slot, backend) => ("ring", ring(*slot, *backend, found.service)),
            Look::Backend(index, Some(backend)) => ("backend", backend_text::<F>(*index, backend)),
            Look::Endpoint(addr, Some(endpoint)) if F::ip(*addr) != self.probe.source.0 => {
                let ip = F::ip(*addr);
                let pod = self.node.pod(ip).map_or_else(String::new, |pod| format!(" {pod}"));
                (
                    "way",
                    format!(
                        "{ip} is pod{pod} of this node, behind {}",
                        self.node.interface(endpoint.ifindex)
                    ),
                )
            }
            Look::Route(addr, Some(ifindex)) => {
                ("way", format!("{} is routed to {}", F::ip(*addr), self.node.interface(*ifindex)))
            }
            Look::Realm(addr, realm) => ("cluster", realm_text(F::ip(*addr), realm.as_ref())),
            Look::Route(addr, None) => ("way", format!("the node has no route to {}", F::ip(*addr))),
            Look::Write(key, flow) if flow.state & state::REPLY == 0 => {
                ("source", self.source::<F>(key, flow))
            }
            _ => return None,
        })
    }

    fn frontend<F: NodeFamily>(
        &self,
        key: &FrontendKey<F::Addr>,
        found: Option<&Frontend>,
    ) -> Option<String> {
        let (ip, port) = (F::ip(key.addr), u16::from_be(key.port));
        if key.port == 0 {
            let flags = found.map_or(0, |mark| mark.flags);
            return Some(if flags & frontend_flag::VIP != 0 {
                format!("{ip} belongs to services, but none of them has this port")
            } else if flags & frontend_flag::NODE != 0 && flags & frontend_flag::NODEPORT == 0 {
                format!("{ip} is an address of this node that answers no NodePorts (--nodeport-addresses)")
            } else if flags & frontend_flag::NODE != 0 {
                format!("{ip} is an address of this node")
            } else {
                format!("{ip} is no service's address")
            });
        }
        let place = if is_any(key.addr) { format!("NodePort {port}") } else { end((ip, port)) };
        let frontend = found?;
        Some(format!("{place} is a frontend of service {}", self.node.service(frontend.service)))
    }

    /// What the backend sees as its client, and why.
    fn source<F: NodeFamily>(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> String {
        let seen = end((F::ip(flow.src), port(flow.ports).0));
        if flow.state & state::MASQUERADE == 0 && port(flow.ports).0 == port(key.ports).0 {
            return format!("the backend sees the client itself, {seen}");
        }
        if flow.state & state::MASQUERADE == 0 {
            return format!(
                "the backend sees {seen}: the client's own port is taken by another flow to this backend"
            );
        }
        if flow.src == F::hairpin_address() {
            return format!(
                "the backend is the client: it sees {seen}, because a host drops what claims to be its own"
            );
        }
        let range = self.config.map_or_else(String::new, |config| {
            let (first, count) = (config.masquerade_first, config.masquerade_count);
            format!(" (ports {first}–{})", first.saturating_add(count.saturating_sub(1)))
        });
        format!("the backend sees this node, {seen}{range}, so that its answers come back this way")
    }

    fn result<F: NodeFamily>(&self, looks: &[Look<F::Addr>], verdict: Verdict<F>) -> String {
        match verdict {
            Verdict::Pass(_) => "left as it is to the host's network stack".to_owned(),
            Verdict::Deliver(exit) => format!("sent as it is {}", self.exit(exit)),
            Verdict::Forward(new, exit) => {
                let (from, to) = (F::ip(new.src), F::ip(new.dst));
                let ports = port(new.ports);
                format!("{} → {}, sent {}", end((from, ports.0)), end((to, ports.1)), self.exit(exit))
            }
            Verdict::Reject(exit, _) => {
                let answer = match self.probe.protocol {
                    Protocol::Tcp => "a TCP reset",
                    Protocol::Udp => "an ICMP port unreachable",
                };
                format!("rejected: {answer} is sent {}", self.exit(exit))
            }
            Verdict::Drop(_) => "dropped".to_owned(),
            Verdict::Wait | Verdict::Release => "put off until all fragments are there".to_owned(),
            Verdict::Encapsulate(exit) => {
                let to = looks.iter().rev().find_map(|look| match look {
                    Look::Flow(_, Some(flow)) | Look::Write(_, flow) => Some(F::ip(flow.dst)),
                    _ => None,
                });
                let to = to.map_or_else(String::new, |to| format!(" to {to}"));
                format!("encapsulated{to}, sent {}; answers return directly", self.exit(exit))
            }
            Verdict::TooBig(exit) => {
                format!("an ICMP error with the size that fits is sent {}", self.exit(exit))
            }
            Verdict::ForwardError(_, exit) | Verdict::AnswerEcho(exit) => format!("sent {}", self.exit(exit)),
        }
    }

    fn exit(&self, way: Exit) -> String {
        match way.kind {
            exit::POD => format!("into the pod behind {}", self.node.interface(way.ifindex)),
            exit::UPLINK | exit::TUNNEL => format!("out of {}", self.node.interface(way.ifindex)),
            exit::OVERLAY => "to its node by the overlay".to_owned(),
            exit::HOST => "to the host".to_owned(),
            _ => "on to the host's network stack".to_owned(),
        }
    }
}

/// Whether an address is of the cluster, and how it is reached.
fn realm_text(addr: IpAddr, realm: Option<&Realm>) -> String {
    match realm {
        None => format!(
            "{addr} is outside: what pods send there leaves with the node's address, if it masquerades"
        ),
        Some(realm) if realm.flags & !realm_flag::INSIDE != 0 => {
            format!("{addr} is another node's, by the overlay")
        }
        Some(_) => format!("{addr} is inside: pods keep their addresses"),
    }
}

fn flow_text<A>(flow: Option<&Flow<A>>) -> String {
    match flow {
        None => "none: the packet opens one".to_owned(),
        Some(flow) if flow.state & state::REPLY != 0 => "the packet answers a flow in the table".to_owned(),
        Some(_) => "the packet is of a flow in the table, which keeps its backend".to_owned(),
    }
}

/// Which set the policy allows: the names of Kubernetes' fields, and whom they concern.
fn policy(
    index: u32,
    service: Option<&Service>,
    frontend: Option<&Frontend>,
    hook: Hook,
    why: impl Fn(bool) -> Why,
) -> String {
    let Some(service) = service else { return format!("service #{index} is missing: report this") };
    let external = frontend.is_some_and(|frontend| frontend.flags & frontend_flag::EXTERNAL != 0);
    let (field, flag) = match external {
        true => ("externalTrafficPolicy", service_flag::EXTERNAL_LOCAL),
        false => ("internalTrafficPolicy", service_flag::INTERNAL_LOCAL),
    };
    let value = if service.flags & flag != 0 { "Local" } else { "Cluster" };
    let local = value == "Local" && !(external && hook != Hook::Uplink);
    let ring = if local { service.local } else { service.cluster };
    let aside = match (value, local) {
        ("Local", false) => ", which does not bind clients inside of the cluster",
        _ => "",
    };
    format!("{field}: {value}{aside}; {} {}", count(ring.len() as usize, "backend"), whose(local, why(local)))
}

/// Where the backends of a set are, and why it has those and no others.
fn whose(local: bool, why: Why) -> String {
    let place = match (local, why) {
        (true, _) => "on this node",
        (false, Why::SameNode) => "meant for this node",
        (false, Why::SameZone) => "meant for this node's zone",
        (false, Why::Ready | Why::Terminating) => "on all nodes together",
    };
    why.as_text().map_or_else(|| place.to_owned(), |reason| format!("{place} ({reason})"))
}

fn affinity(memory: Option<&Affinity>, service: Option<&Service>) -> String {
    let seconds = service.map_or(0, |service| service.affinity);
    match memory {
        None => format!("on for {seconds} s; no earlier flow of this client is known"),
        Some(memory) if is_forgotten(memory, seconds, clock::ticks()) => {
            format!("on for {seconds} s; the client's last flow is longer ago")
        }
        Some(memory) => format!("on for {seconds} s; the client's last flow had backend #{}", memory.backend),
    }
}

fn ring(slot: u32, backend: Option<u32>, service: Option<&Service>) -> String {
    let rings =
        service.map(|service| [("all backends", service.cluster), ("this node's backends", service.local)]);
    let holding = rings
        .into_iter()
        .flatten()
        .find(|(_, ring)| (ring.offset()..ring.offset().saturating_add(ring.len())).contains(&slot));
    let place = match holding {
        Some((set, ring)) => format!("slot {} of {} in the ring of {set}", slot - ring.offset(), ring.len()),
        None => format!("slot {slot} of the slab"),
    };
    match backend {
        Some(backend) => format!("the flow's hash falls on {place}: backend #{backend}"),
        None => format!("{place} is beyond the slab: report this"),
    }
}

fn backend_text<F: NodeFamily>(index: u32, backend: &Backend<F::Addr>) -> String {
    let place = end((F::ip(backend.addr), u16::from_be(backend.port)));
    let kind = match backend.flags {
        flags if flags & backend_flag::LIVE == 0 => ", which is gone",
        flags if flags & backend_flag::HOST != 0 => ", a process of this node's host",
        _ => "",
    };
    format!("#{index} is {place}{kind}")
}

/// Source and destination port, host byte order.
fn port(ports: u32) -> (u16, u16) {
    let (source, destination) = portolan_core::wire::split_ports(ports);
    (u16::from_be(source), u16::from_be(destination))
}

fn end((address, port): (IpAddr, u16)) -> String {
    SocketAddr::new(address, port).to_string()
}

/// For people.
pub(super) fn text(explanation: &Explanation) -> String {
    let mut table = Table::new([Column::Left("STEP"), Column::Left("FOUND")]);
    table.row(["packet".into(), Cell::styled(&explanation.packet, HEAD)]);
    table.row(["caught".into(), explanation.caught.as_str().into()]);
    for step in &explanation.steps {
        table.row([step.step.into(), step.finding.as_str().into()]);
    }
    let style = if explanation.dropped { BAD } else { GOOD };
    table.row(["result".into(), Cell::styled(&explanation.result, style)]);
    let meaning = format!("{}: {}", explanation.outcome, explanation.meaning);
    table.row(["counted as".into(), Cell::styled(meaning, FAINT)]);
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_told_with_what_narrowed_it() {
        let told = [
            (false, Why::Ready, "on all nodes together"),
            (false, Why::SameNode, "meant for this node (same node only: all hints name nodes)"),
            (false, Why::SameZone, "meant for this node's zone (same zone only: all hints name zones)"),
            (false, Why::Terminating, "on all nodes together (terminating backends: none is ready)"),
            (true, Why::Ready, "on this node"),
            (true, Why::Terminating, "on this node (terminating backends: none is ready)"),
        ];
        for (local, why, text) in told {
            assert_eq!(whose(local, why), text);
        }
    }
}
