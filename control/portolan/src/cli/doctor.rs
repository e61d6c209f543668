//! `portolan doctor`: what of this node is in the way of pods' and services' traffic, why, and how to mend it.
//!
//! [`gather`] reads the node and changes nothing; [`rules`] judge the [`facts`], each by itself. What the agent sets when it
//! starts is no fault while it has not started.

mod facts;
mod gather;
mod legacy;
mod rules;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ipnetwork::IpNetwork;
use serde::Serialize;

use super::text::{BAD, GOOD, HEAD, WARN, clean, count, paint};
use super::{Global, Output};
use crate::agent::{Overlay, SERVICE_CIDRS, ports};

/// Options of `portolan doctor`. Give those that the agent is started with.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// Where container runtimes look for CNI configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Address ranges of services
    #[arg(long = "service-cidr", value_delimiter = ',', default_values = SERVICE_CIDRS)]
    service_cidrs: Vec<IpNetwork>,
    /// Address ranges of this node's pods; not given: what a running agent says
    #[arg(long = "pod-cidr", value_name = "CIDR", value_delimiter = ',')]
    pod_cidrs: Vec<IpNetwork>,
    /// Range of NodePorts
    #[arg(long, default_value = "30000-32767", value_parser = ports)]
    node_port_range: (u16, u16),
    /// Source ports for masqueraded traffic
    #[arg(long, default_value = "10240-29999", value_parser = ports)]
    masquerade_range: (u16, u16),
    /// Address of metrics and status
    #[arg(long, default_value = "127.0.0.1:10249")]
    metrics: SocketAddr,
    /// Address of /healthz and /livez
    #[arg(long, default_value = "0.0.0.0:10256")]
    healthz_bind_address: SocketAddr,
    /// MTU of pods; 0: that of the smallest uplink
    #[arg(long, default_value_t = 0)]
    mtu: u32,
    #[command(flatten)]
    overlay: Overlay,
    /// Mount point of the bpf file system, if not the usual one
    #[arg(long)]
    bpffs: Option<PathBuf>,
    /// cgroup v2 mount, if not in a usual place
    #[arg(long)]
    cgroup_root: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// How bad it is. The order is that of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
enum Severity {
    /// Traffic is lost or goes wrong, or the agent does not start.
    Error,
    /// It may, under circumstances that are said.
    Warning,
    /// Nothing is to be done.
    Ok,
}

/// What a rule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    severity: Severity,
    /// Name of the rule.
    check: &'static str,
    /// What was found.
    found: String,
    /// Why it matters; empty if all is well.
    why: String,
    /// How to mend it; empty if all is well.
    remedy: String,
}

pub(super) fn run(doctor: &Doctor, global: &Global) -> anyhow::Result<ExitCode> {
    let findings = rules::examine(&gather::facts(doctor, global)?);
    doctor.output.emit(findings.as_slice(), text)?;
    let sick = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if sick { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { severity, check, found, why, remedy } in findings {
        let (word, style) = match severity {
            Severity::Error => ("error", BAD),
            Severity::Warning => ("warning", WARN),
            Severity::Ok => ("ok", GOOD),
        };
        text.extend([&*paint(word, style), &" ".repeat(9 - word.len()), &*paint(check, HEAD), ": "]);
        text.extend([&*clean(found), "\n"]);
        for (name, line) in [("why", why), ("mend", remedy)] {
            if !line.is_empty() {
                text.extend([&*" ".repeat(9), name, &" ".repeat(6 - name.len()), &*clean(line), "\n"]);
            }
        }
    }
    let of = |wanted| findings.iter().filter(|finding| finding.severity == wanted).count();
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    text.extend(["\n", &*count(errors, "error"), ", ", &*count(warnings, "warning"), "\n"]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::plain;

    #[test]
    fn each_finding_is_told_with_its_reason_and_its_remedy() {
        let finding = |severity, why: &str, remedy: &str| Finding {
            severity,
            check: "forwarding",
            found: "net.ipv4.ip_forward is 0".into(),
            why: why.into(),
            remedy: remedy.into(),
        };
        let findings = [
            finding(Severity::Error, "nothing is sent on", "sysctl -w net.ipv4.ip_forward=1"),
            finding(Severity::Ok, "", ""),
        ];
        assert_eq!(
            plain(&text(&findings)),
            "\
error    forwarding: net.ipv4.ip_forward is 0
         why   nothing is sent on
         mend  sysctl -w net.ipv4.ip_forward=1
ok       forwarding: net.ipv4.ip_forward is 0

1 error, 0 warnings
"
        );
    }
}
