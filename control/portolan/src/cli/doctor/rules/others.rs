//! What others left: kube-proxy and other network plugins.

use std::collections::BTreeMap;

use super::{Report, some};
use crate::agent::CONFLIST;
use crate::cli::doctor::facts::{Chain, Facts, Keeper};

/// Chains that only kube-proxy makes, behind `KUBE-`. The kubelet's own (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`,
/// `KUBE-IPTABLES-HINT`, `KUBE-MARK-DROP`) translate nothing, and older ones also made `KUBE-MARK-MASQ` and
/// `KUBE-POSTROUTING` (KEP-3178).
const KUBE_PROXY: [&str; 15] = [
    "CLUSTER-IP",
    "EXT-",
    "EXTERNAL-SERVICES",
    "FORWARD",
    "FW-",
    "IPVS-",
    "LOAD-BALANCER",
    "NODE-PORT",
    "NODEPORTS",
    "PROXY-",
    "SEP-",
    "SERVICES",
    "SVC-",
    "SVL-",
    "XLB-",
];
/// Table of kube-proxy's mode nftables.
const KUBE_PROXY_TABLE: &str = "kube-proxy";
/// Device that kube-proxy's mode ipvs puts service addresses on.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// How chains of other plugins begin, and whose they are.
const PLUGIN_CHAINS: [(&str, &str); 9] = [
    ("CILIUM_", "Cilium"),
    ("CNI-", "a CNI chained plugin (portmap or bridge)"),
    ("FLANNEL-", "flannel"),
    ("KUBE-NWPLCY-", "kube-router"),
    ("KUBE-POD-FW-", "kube-router"),
    ("KUBE-ROUTER-", "kube-router"),
    ("OLD_CILIUM_", "Cilium"),
    ("WEAVE-", "Weave Net"),
    ("cali-", "Calico"),
];
/// Devices of other plugins, by their whole names or beginnings, and whose they are.
const PLUGIN_DEVICES: [(&str, &str); 12] = [
    ("antrea-gw0", "Antrea"),
    ("cali", "Calico"),
    ("cbr0", "the bridge plugin"),
    ("cilium_", "Cilium"),
    ("cni0", "the bridge plugin (flannel)"),
    ("flannel", "flannel"),
    ("kube-bridge", "kube-router"),
    ("lxc_health", "Cilium"),
    ("ovn-k8s-mp0", "OVN-Kubernetes"),
    ("vxlan.calico", "Calico"),
    ("vxlan-v6.calico", "Calico"),
    ("weave", "Weave Net"),
];

const STOP_KUBE_PROXY: &str =
    "stop kube-proxy (`kubectl -n kube-system delete daemonset kube-proxy`), then on this node";
const PROXY_WHY: &str = "what the node itself and outside clients send to services is translated there, to backends that \
                         nobody keeps up to date, before or after Portolan has decided";

pub(super) fn kube_proxy(facts: &Facts, report: &mut Report) {
    let is_proxys = |chain: &&Chain| {
        let own = |rest: &str| KUBE_PROXY.iter().any(|known| rest.starts_with(known));
        let of_router = plugin_of(&chain.name).is_some();
        chain.table == KUBE_PROXY_TABLE || (!of_router && chain.name.strip_prefix("KUBE-").is_some_and(own))
    };
    for ((keeper, family, table), names) in grouped(facts.chains.iter().filter(is_proxys)) {
        let remedy = match table {
            KUBE_PROXY_TABLE => format!("`nft delete table {family} {table}`"),
            _ => without(keeper, family, "KUBE-"),
        };
        let found = format!("kube-proxy's rules in {}: {}", place(keeper, family, table), some(&names));
        report.error(found, PROXY_WHY, format!("{STOP_KUBE_PROXY} {remedy}"));
    }
    if facts.ipvs > 0 {
        let found = format!("{} virtual services of IPVS (/proc/net/ip_vs)", facts.ipvs);
        report.error(found, PROXY_WHY, format!("{STOP_KUBE_PROXY} `ipvsadm --clear`"));
    }
    if facts.links.iter().any(|link| link.name == IPVS_DEVICE) {
        report.error(
            format!("device {IPVS_DEVICE}"),
            "it carries service addresses: what the node sends to them ends at the node itself",
            format!("{STOP_KUBE_PROXY} `ip link delete {IPVS_DEVICE}`"),
        );
    }
}

pub(super) fn plugins(facts: &Facts, report: &mut Report) {
    let mut owners: BTreeMap<&str, Vec<&Chain>> = BTreeMap::new();
    for chain in &facts.chains {
        if let Some(owner) = plugin_of(&chain.name) {
            owners.entry(owner).or_default().push(chain);
        }
    }
    for (owner, chains) in owners {
        for ((keeper, family, table), names) in grouped(chains.into_iter()) {
            let prefixes = PLUGIN_CHAINS.iter().filter(|(_, whose)| *whose == owner);
            let prefix = prefixes.map(|(prefix, _)| *prefix).find(|prefix| names[0].starts_with(prefix));
            report.warning(
                format!("rules of {owner} in {}: {}", place(keeper, family, table), some(&names)),
                "they may drop pods' packets or give them another source address",
                format!(
                    "remove {owner} from the cluster, then {}",
                    without(keeper, family, prefix.unwrap_or(""))
                ),
            );
        }
    }
    // Some have one for each of their pods.
    let mut devices: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for link in &facts.links {
        if let Some((_, owner)) = PLUGIN_DEVICES.iter().find(|(name, _)| link.name.starts_with(name)) {
            devices.entry(owner).or_default().push(link.name.clone());
        }
    }
    for (owner, names) in devices {
        report.warning(
            format!("devices of {owner}: {}", some(&names)),
            "their routes may lead to pods that are not there any more",
            format!(
                "remove {owner} from the cluster, then `ip link delete {}`{}",
                names[0],
                match names.len() {
                    1 => "",
                    _ => " and so on, or restart the machine",
                }
            ),
        );
    }
}

pub(super) fn conflists(facts: &Facts, report: &mut Report) {
    let directory = facts.expected.cni_conf_dir.display();
    let (before, after): (Vec<&String>, Vec<&String>) =
        facts.conflists.iter().filter(|name| *name != CONFLIST).partition(|name| name.as_str() < CONFLIST);
    for name in before {
        report.error(
            format!("{directory}/{name} comes before {CONFLIST}"),
            "runtimes take the first file in order of names: pods are given to the other plugin",
            format!("`mv {directory}/{name} {directory}/{name}.off`"),
        );
    }
    if after.is_empty() {
        return;
    }
    let names = some(&after.into_iter().cloned().collect::<Vec<_>>());
    if facts.conflists.iter().any(|name| name == CONFLIST) {
        report.note(format!("{names} in {directory}: {CONFLIST} comes first"));
    } else {
        report.warning(
            format!("{names} in {directory}, and no {CONFLIST}"),
            "until the agent is ready for the first time, pods are given to the other plugin",
            format!("move it out of {directory} once the other plugin is removed"),
        );
    }
}

fn plugin_of(chain: &str) -> Option<&'static str> {
    PLUGIN_CHAINS.iter().find(|(prefix, _)| chain.starts_with(prefix)).map(|(_, owner)| *owner)
}

/// Names of chains by who keeps them.
fn grouped<'a>(
    chains: impl Iterator<Item = &'a Chain>,
) -> BTreeMap<(Keeper, &'static str, &'a str), Vec<String>> {
    let mut groups: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for chain in chains {
        groups
            .entry((chain.keeper, chain.family, chain.table.as_str()))
            .or_default()
            .push(chain.name.clone());
    }
    groups
}

fn place(keeper: Keeper, family: &str, table: &str) -> String {
    match keeper {
        Keeper::Nft => format!("nftables, table {family} {table}"),
        Keeper::Legacy => format!("iptables-legacy ({family}), table {table}"),
    }
}

/// The command that takes out all chains and rules with this in their names.
fn without(keeper: Keeper, family: &str, prefix: &str) -> String {
    let tool = if family == "ip6" { "ip6tables" } else { "iptables" };
    let kind = if keeper == Keeper::Nft { "nft" } else { "legacy" };
    format!("`{tool}-{kind}-save | grep -v {prefix} | {tool}-{kind}-restore`")
}
