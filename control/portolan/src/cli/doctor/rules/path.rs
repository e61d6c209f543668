//! The way of packets through the node: firewall, sizes, routes, address ranges.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use portolan_node::link::OVERLAY_DEVICE;

use super::{Report, some};
use crate::cli::doctor::facts::{Chain, Facts, Gate, Keeper};

pub(super) fn firewall(facts: &Facts, report: &mut Report) {
    for chain in facts.chains.iter().filter(|chain| chain.drops) {
        let (why, remedy) = match chain.gate {
            Some(Gate::Forward) => (
                "what Portolan does not send on itself, as pods' direct packets over native routes, passes there"
                    .to_owned(),
                [accept(chain, "-i ptl+", "iifname \"ptl*\""), accept(chain, "-o ptl+", "oifname \"ptl*\"")],
            ),
            Some(Gate::Input) => (input_needs(facts), accept_input(facts, chain)),
            None => continue,
        };
        let remedy = remedy.into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(" and ");
        let place = match chain.keeper {
            Keeper::Nft => format!("nftables chain {} {} {}", chain.family, chain.table, chain.name),
            Keeper::Legacy => {
                format!("iptables-legacy ({}) chain {} {}", chain.family, chain.table, chain.name)
            }
        };
        if chain.rules == 0 {
            report.error(format!("{place} drops everything"), why, remedy);
        } else {
            let found = format!("{place} drops what none of its {} rules accepts", chain.rules);
            report.warning(found, why, format!("unless one of them does, {remedy}"));
        }
    }
}

fn input_needs(facts: &Facts) -> String {
    let health = facts.expected.health_port;
    let overlay =
        facts.expected.overlay.map(|(port, _)| format!(", other nodes reach UDP port {port} (the overlay)"));
    format!(
        "load balancers and the kubelet reach TCP port {health} (/healthz){}; services' own ports need nothing",
        overlay.unwrap_or_default()
    )
}

fn accept_input(facts: &Facts, chain: &Chain) -> [String; 2] {
    let port = |protocol: &str, port: u16| {
        accept(chain, &format!("-p {protocol} --dport {port}"), &format!("{protocol} dport {port}"))
    };
    let overlay = facts.expected.overlay.map(|(number, _)| port("udp", number));
    [port("tcp", facts.expected.health_port), overlay.unwrap_or_default()]
}

/// The command that lets something through before all else.
fn accept(chain: &Chain, iptables: &str, nft: &str) -> String {
    let Chain { keeper, family, table, name, .. } = chain;
    match keeper {
        Keeper::Nft => format!("`nft insert rule {family} {table} {name} {nft} accept`"),
        Keeper::Legacy => {
            let tool = if *family == "ip6" { "ip6tables-legacy" } else { "iptables-legacy" };
            format!("`{tool} -I {name} {iptables} -j ACCEPT`")
        }
    }
}

pub(super) fn network(facts: &Facts, report: &mut Report) {
    sizes(facts, report);
    default_routes(facts, report);
    overlaps(facts, report);
}

fn sizes(facts: &Facts, report: &mut Report) {
    let Some(uplink) = facts.uplink_mtu() else {
        report.warning(
            "no uplink: no interface has a default route",
            "the agent finds uplinks by default routes and by the Node object's addresses",
            "add a default route, or see that the Node object has an address of this node",
        );
        return;
    };
    let overhead = facts.expected.overlay.map_or(0, |(_, overhead)| overhead);
    let fits = uplink.saturating_sub(overhead);
    let wanted = if facts.expected.mtu == 0 { fits } else { facts.expected.mtu };
    if wanted > fits {
        report.warning(
            format!("--mtu {wanted} is more than the uplinks carry ({fits})"),
            "longer packets are lost where nobody may cut them, or cut",
            format!("start the agent with --mtu {fits}, or without"),
        );
    }
    let long =
        facts.links.iter().filter(|link| (link.is_pods() || link.name == OVERLAY_DEVICE) && link.mtu > fits);
    let long: Vec<String> = long.map(|link| format!("{} ({})", link.name, link.mtu)).collect();
    if !long.is_empty() {
        report.warning(
            format!("MTU above what the uplinks carry ({fits}): {}", some(&long)),
            "their longer packets are lost where nobody may cut them, or cut; pods keep the MTU of when they were made",
            "start these pods anew, and the agent with the same --routing-mode and --mtu as here",
        );
    }
}

fn default_routes(facts: &Facts, report: &mut Report) {
    let mut same: BTreeMap<(bool, u32), Vec<String>> = BTreeMap::new();
    for route in &facts.default_routes {
        let devices = same.entry((route.v4, route.metric)).or_default();
        let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        devices.push(format!("{}{via}", route.device));
    }
    for ((v4, metric), mut ways) in same {
        ways.sort();
        ways.dedup();
        if ways.len() > 1 {
            let (family, tool) = if v4 { ("IPv4", "ip") } else { ("IPv6", "ip -6") };
            report.warning(
                format!("{} default routes of {family} with metric {metric}: {}", ways.len(), ways.join(", ")),
                "which of them what leaves the cluster takes is chance, and the other's network may refuse the source address",
                format!("give one of them a higher metric: `{tool} route change default via GATEWAY dev DEVICE metric 200`; \
                         routes that are one multipath route are fine"),
            );
        }
    }
}

fn overlaps(facts: &Facts, report: &mut Report) {
    let ranges = |kind, ranges: &[IpNetwork]| ranges.iter().map(|range| (kind, *range)).collect::<Vec<_>>();
    let mut all = ranges("podCIDR", &facts.expected.pod_cidrs);
    all.extend(ranges("service CIDR", &facts.expected.service_cidrs));
    for link in facts.links.iter().filter(|link| !link.is_own()) {
        for address in link.addresses.iter().filter(|it| it.prefix() < full(it)) {
            let meets =
                |range: &IpNetwork| range.contains(address.network()) || address.contains(range.network());
            for (kind, range) in all.iter().filter(|(_, range)| meets(range)) {
                report.error(
                    format!("{kind} {range} overlaps {address} of {}", link.name),
                    "what is for one is sent to the other",
                    format!("remove the address (`ip address delete {address} dev {}`), or choose other ranges for the cluster", link.name),
                );
            }
        }
    }
}

fn full(network: &IpNetwork) -> u8 {
    if network.is_ipv4() { 32 } else { 128 }
}
