//! Sysctls. What the agent sets when it starts is a fault only if somebody set it otherwise afterwards.

use super::{Report, dotted};
use crate::cli::doctor::facts::Facts;

const KEPT: &str = "and look for the file in /etc/sysctl.d that sets it";
/// From this share of its size on, the kernel's connection table is said to be full soon.
const ALMOST_FULL: u64 = 90;

pub(super) fn forwarding(facts: &Facts, report: &mut Report) {
    let uplinks: Vec<&str> = facts.uplinks().map(|link| link.name.as_str()).collect();
    let of =
        |family: &str| uplinks.iter().map(|name| format!("net/{family}/conf/{name}/forwarding")).collect();
    let (v4, v6): (Vec<String>, Vec<String>) = (of("ipv4"), of("ipv6"));
    let all = ["net/ipv4/ip_forward".to_owned(), "net/ipv6/conf/all/forwarding".to_owned()];
    // What holds for all says it for each.
    for (all, each) in all.into_iter().zip([v4, v6]) {
        let off = |path: &&String| facts.sysctl(path) == Some("0");
        let Some(path) = std::iter::once(&all).chain(&each).find(off) else { continue };
        let name = dotted(path);
        if facts.prepared {
            report.error(
                format!("{name} is 0, which the agent had set to 1"),
                "nothing is sent on between pods and the network",
                format!("`sysctl -w {name}=1`, {KEPT}"),
            );
        } else {
            report.note(format!("{name} is 0: the agent sets it when it starts"));
        }
    }
}

pub(super) fn reverse_path(facts: &Facts, report: &mut Report) {
    let path = "net/ipv4/conf/all/rp_filter";
    let all = facts.sysctl(path).filter(|value| *value != "0");
    match all {
        Some(value) if facts.prepared => report.error(
            format!("{} is {value}, which the agent had set to 0", dotted(path)),
            "the kernel takes the stricter of this and an interface's own: packets that come back to pods and services by \
             another way are dropped without a word",
            format!("`sysctl -w {}=0`, {KEPT}", dotted(path)),
        ),
        Some(value) => report.warning(
            format!("{} is {value}", dotted(path)),
            "the agent moves it to the other interfaces when it starts; whatever set it may set it again",
            format!("look for the file in /etc/sysctl.d that sets it, and have it set {} instead", dotted("net/ipv4/conf/default/rp_filter")),
        ),
        None => {}
    }
    for link in facts.links.iter().filter(|link| link.is_own()) {
        let path = format!("net/ipv4/conf/{}/rp_filter", link.name);
        if let Some(value) = facts.sysctl(&path).filter(|value| *value != "0") {
            report.error(
                format!("{} is {value}", dotted(&path)),
                "packets that come back to pods and services by another way are dropped without a word",
                format!("`sysctl -w {}=0`, and have nothing set it for Portolan's devices", dotted(&path)),
            );
        }
    }
    if facts.uplinks().count() < 2 {
        return;
    }
    for link in facts.uplinks() {
        let path = format!("net/ipv4/conf/{}/rp_filter", link.name);
        if facts.sysctl(&path) == Some("1") {
            report.warning(
                format!("{} is 1 (strict), and there are several uplinks", dotted(&path)),
                "clients and nodes whose packets come by one uplink while the way back leads by another are not heard",
                format!("`sysctl -w {}=2`", dotted(&path)),
            );
        }
    }
}

pub(super) fn advertisements(facts: &Facts, report: &mut Report) {
    for link in facts.uplinks() {
        let own = |key: &str| facts.sysctl(&format!("net/ipv6/conf/{}/{key}", link.name));
        if own("forwarding") == Some("1") && own("accept_ra") == Some("1") {
            let name = dotted(&format!("net/ipv6/conf/{}/accept_ra", link.name));
            report.warning(
                format!("{name} is 1 on an interface that forwards"),
                "router advertisements are ignored then: a default route that came by one runs out",
                format!("`sysctl -w {name}=2`, unless the node's IPv6 routes are set by hand"),
            );
        }
    }
}

pub(super) fn loopback(facts: &Facts, report: &mut Report) {
    for (path, _) in facts.sysctls.iter().filter(|(path, value)| {
        path.starts_with("net/ipv4/conf/") && path.ends_with("/route_localnet") && *value == "1"
    }) {
        report.warning(
            format!("{} is 1", dotted(path)),
            "neighbours reach services that listen on 127.0.0.1 (CVE-2020-8558); kube-proxy sets it, and Portolan does not need it",
            format!("`sysctl -w {}=0`, once kube-proxy is gone", dotted(path)),
        );
    }
}

pub(super) fn bridges(facts: &Facts, report: &mut Report) {
    for (path, tool) in [
        ("net/bridge/bridge-nf-call-iptables", "iptables"),
        ("net/bridge/bridge-nf-call-ip6tables", "ip6tables"),
    ] {
        if facts.sysctl(path) != Some("1") {
            continue;
        }
        match facts.uplinks().find(|link| link.kind.as_deref() == Some("bridge")) {
            Some(uplink) => report.warning(
                format!("{} is 1, and uplink {} is a bridge", dotted(path), uplink.name),
                format!("{tool} rules of FORWARD also decide on what only crosses the bridge"),
                format!("`sysctl -w {}=0`, unless somebody else needs it", dotted(path)),
            ),
            None => report.note(format!("{} is 1: Portolan has no bridge", dotted(path))),
        }
    }
}

pub(super) fn reserved(facts: &Facts, report: &mut Report) {
    const PATH: &str = "net/ipv4/ip_local_reserved_ports";
    let Some(list) = facts.sysctl(PATH) else { return };
    for (name, (first, last)) in
        [("NodePorts", facts.expected.node_ports), ("masquerade ports", facts.expected.masquerade)]
    {
        if covers(list, first, last) {
            continue;
        }
        if facts.prepared {
            report.error(
                format!("{name} {first}-{last} are not all in {} ({list:?})", dotted(PATH)),
                "a local connection may take one as its source, and its answers are then taken for a service's",
                format!("restart the agent, which reserves them, {KEPT}; or `sysctl -w {}={first}-{last}` with what else is to be in it", dotted(PATH)),
            );
        } else {
            report.note(format!(
                "{name} {first}-{last} are not reserved yet: the agent does so when it starts"
            ));
        }
    }
}

pub(super) fn conntrack(facts: &Facts, report: &mut Report) {
    let number = |path| facts.sysctl(path)?.parse::<u64>().ok();
    let path = "net/netfilter/nf_conntrack_max";
    let (Some(used), Some(most)) = (number("net/netfilter/nf_conntrack_count"), number(path)) else { return };
    if used.saturating_mul(100) < most.saturating_mul(ALMOST_FULL) {
        report.note(format!(
            "{used} of {most} entries of the kernel's connection table are used, none by Portolan"
        ));
    } else {
        report.warning(
            format!("{used} of {most} entries of the kernel's connection table are used"),
            "when it is full the kernel drops new connections that pass its rules, pods' too",
            format!(
                "`sysctl -w {}={}`, or remove the rules that need it",
                dotted(path),
                most.saturating_mul(2)
            ),
        );
    }
}

/// Whether a list as in `ip_local_reserved_ports` (`1,5-7`, sorted and joined by the kernel) has all of a range.
fn covers(list: &str, first: u16, last: u16) -> bool {
    list.split(',').any(|entry| {
        let (from, to) = entry.split_once('-').unwrap_or((entry, entry));
        matches!((from.trim().parse::<u16>(), to.trim().parse::<u16>()), (Ok(from), Ok(to)) if from <= first && last <= to)
    })
}
