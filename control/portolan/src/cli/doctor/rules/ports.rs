//! Ports: those that Portolan listens at, and those that it gives away.

use super::{Report, some};
use crate::cli::doctor::facts::{Facts, Socket};

/// Where BGP speakers listen.
const BGP: u16 = 179;
/// Where MetalLB's speakers tell each other that they live.
const MEMBERLIST: u16 = 7946;

pub(super) fn own(facts: &Facts, report: &mut Report) {
    let expected = &facts.expected;
    let http = [
        (expected.metrics_port, "metrics and status", "--metrics"),
        (expected.health_port, "/healthz and /livez", "--healthz-bind-address"),
    ];
    for (port, what, flag) in http {
        for socket in at(facts, "TCP", port).filter(|socket| !is_ours(facts, socket)) {
            report.error(
                format!("{} has the port of {what}", socket.describe()),
                "the agent cannot listen there, and does not start",
                format!("stop it (kube-proxy has 10249 and 10256), or give the agent another port by {flag}"),
            );
        }
    }
    overlay(facts, report);
    for socket in at(facts, "TCP", BGP).filter(|socket| !socket.is_own()) {
        report.warning(
            format!("{} speaks BGP", socket.describe()),
            "two speakers on one node announce what the other withdraws, and only one can listen at the port",
            "stop it before Portolan announces addresses: remove the other plugin's or MetalLB's speaker",
        );
    }
    let speaker = |socket: &&Socket| socket.process.as_ref().is_none_or(|(name, _)| name == "speaker");
    if let Some(socket) = at(facts, "TCP", MEMBERLIST).find(speaker) {
        report.warning(
            format!("{}, as MetalLB's speakers do", socket.describe()),
            "two announce the same public address: neighbours take now the one's, now the other's",
            "remove MetalLB before Portolan announces addresses: `kubectl delete namespace metallb-system`",
        );
    }
}

fn overlay(facts: &Facts, report: &mut Report) {
    let Some((port, _)) = facts.expected.overlay else { return };
    let device = facts.links.iter().find(|link| link.vxlan_port == Some(port) && !link.is_own());
    let why = "the overlay's device cannot be made, and pods do not reach those of other nodes";
    if let Some(device) = device {
        report.error(
            format!("VXLAN device {} has UDP port {port}", device.name),
            why,
            format!("`ip link delete {}` once its owner is removed, or choose another --overlay-port on all nodes", device.name),
        );
        return;
    }
    // The kernel's own sockets have no process.
    let by_a_process = |socket: &&Socket| socket.process.is_some();
    for socket in at(facts, "UDP", port).filter(by_a_process) {
        report.error(
            format!("{} has the overlay's port", socket.describe()),
            why,
            "stop it, or choose another --overlay-port on all nodes",
        );
    }
}

pub(super) fn ranges(facts: &Facts, report: &mut Report) {
    let listens = |socket: &Socket| at(facts, socket.protocol, socket.port).next().is_some();
    let within = |(first, last): (u16, u16), port: u16| (first..=last).contains(&port);
    let others = || facts.sockets.iter().filter(|socket| !socket.is_own());
    let (nodes, masquerade) = (facts.expected.node_ports, facts.expected.masquerade);
    let mut listeners: Vec<String> =
        others().filter(|socket| socket.open && within(nodes, socket.port)).map(Socket::describe).collect();
    // The same over both families.
    listeners.sort_unstable();
    listeners.dedup();
    if !listeners.is_empty() {
        report.warning(
            format!("listening at NodePorts ({}-{}): {}", nodes.0, nodes.1, some(&listeners)),
            "once a service has that NodePort, its clients come to the service and not to the process",
            "have it listen at another port, or choose another --node-port-range, as the API server's \
             --service-node-port-range",
        );
    }
    // A listener's connections have its port; only those that took one as their source are of interest.
    let connections = |range| {
        let taken = move |socket: &&Socket| !socket.open && within(range, socket.port) && !listens(socket);
        let mut found: Vec<String> = others().filter(taken).map(Socket::describe).collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let at_nodes = connections(nodes);
    if !at_nodes.is_empty() {
        report.warning(
            format!("connections from NodePorts ({}-{}): {}", nodes.0, nodes.1, some(&at_nodes)),
            "once a service has that NodePort, what comes back to them is taken for its clients' requests",
            "restart these processes once the agent has reserved the ports; one that chooses its port itself needs another",
        );
    }
    // Flows are not given a port that a socket of the node has (`bpf_sk_lookup`), and a listener's is in nobody's way.
    let masqueraded = connections(masquerade);
    if !masqueraded.is_empty() {
        report.note(format!(
            "connections from masquerade ports ({}-{}), which are left to them: {}",
            masquerade.0,
            masquerade.1,
            some(&masqueraded)
        ));
    }
}

/// Sockets without peer at a port.
fn at<'a>(facts: &'a Facts, protocol: &'a str, port: u16) -> impl Iterator<Item = &'a Socket> {
    facts
        .sockets
        .iter()
        .filter(move |socket| socket.open && socket.protocol == protocol && socket.port == port)
}

/// Without a name (another PID namespace) it is taken for the agent's while one runs.
fn is_ours(facts: &Facts, socket: &Socket) -> bool {
    socket.is_own() || (facts.running && socket.process.is_none())
}
