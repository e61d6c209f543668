//! The rules: pure functions from facts to findings.

mod others;
mod path;
mod ports;
mod programs;
mod sysctls;
#[cfg(test)]
mod tests;

use super::facts::Facts;
use super::{Finding, Severity};

/// A rule: its name, what is said when it finds nothing, and what it looks for.
struct Rule {
    name: &'static str,
    fine: &'static str,
    look: fn(&Facts, &mut Report),
}

const RULES: [Rule; 20] = [
    rule("readable", "all that is to be looked at could be read", readable),
    rule("kernel", "kernel, BTF, capabilities, bpffs and cgroup v2 are as needed", programs::kernel),
    rule("bpf-jit", "eBPF programs are compiled", programs::jit),
    rule("netns-mount", "network namespaces of later pods reach the agent", programs::netns_mount),
    rule("programs", "no other program stands before Portolan's on an uplink", programs::order),
    rule("xdp", "no uplink has an XDP program", programs::xdp),
    rule("kube-proxy", "no rule of kube-proxy", others::kube_proxy),
    rule("other-cni", "no chain or device of another network plugin", others::plugins),
    rule("cni-config", "no other CNI configuration comes first", others::conflists),
    rule("firewall", "no policy drops packets for the node or sent on by it", path::firewall),
    rule("forwarding", "packets are forwarded", sysctls::forwarding),
    rule("rp-filter", "no reverse-path filter in the way", sysctls::reverse_path),
    rule("accept-ra", "router advertisements are not lost to forwarding", sysctls::advertisements),
    rule("route-localnet", "loopback addresses stay on the node", sysctls::loopback),
    rule("bridge-netfilter", "no uplink is a bridge whose packets pass netfilter twice", sysctls::bridges),
    rule("reserved-ports", "NodePorts and masquerade ports are no local connection's", sysctls::reserved),
    rule("conntrack", "the kernel's connection table has room, or is not used", sysctls::conntrack),
    rule("ports", "the agent's own ports are free, or its own", ports::own),
    rule("sockets", "nobody else's socket is at a NodePort", ports::ranges),
    rule("network", "MTU, default routes and address ranges fit each other", path::network),
];

const fn rule(name: &'static str, fine: &'static str, look: fn(&Facts, &mut Report)) -> Rule {
    Rule { name, fine, look }
}

/// What one rule found.
struct Report {
    check: &'static str,
    findings: Vec<Finding>,
}

impl Report {
    fn error(&mut self, found: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, found.into(), why.into(), remedy.into());
    }

    fn warning(&mut self, found: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, found.into(), why.into(), remedy.into());
    }

    /// Something to be known, of which nothing is to be mended.
    fn note(&mut self, found: impl Into<String>) {
        self.add(Severity::Ok, found.into(), String::new(), String::new());
    }

    fn add(&mut self, severity: Severity, found: String, why: String, remedy: String) {
        self.findings.push(Finding { severity, check: self.check, found, why, remedy });
    }
}

/// What all rules find, the worst first. A rule that finds nothing says that.
pub(super) fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = RULES.iter().flat_map(|rule| apply(rule, facts)).collect();
    // Stable: rules stay in their order.
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn apply(rule: &Rule, facts: &Facts) -> Vec<Finding> {
    let mut report = Report { check: rule.name, findings: Vec::new() };
    (rule.look)(facts, &mut report);
    if report.findings.is_empty() {
        report.note(rule.fine);
    }
    report.findings
}

fn readable(facts: &Facts, report: &mut Report) {
    for (what, remedy) in &facts.unread {
        report.warning(what, "what is wrong there is not told", remedy);
    }
}

/// The first ones, and how many more there are.
fn some(items: &[String]) -> String {
    const NAMED: usize = 4;
    match items.len().checked_sub(NAMED) {
        None | Some(0) => items.join(", "),
        Some(more) => format!("{} and {more} more", items[..NAMED].join(", ")),
    }
}

/// `net.ipv4.ip_forward` of `net/ipv4/ip_forward`; an interface's dots become slashes, as sysctl(8) takes them.
fn dotted(path: &str) -> String {
    path.chars()
        .map(|character| match character {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect()
}
