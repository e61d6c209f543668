//! `portolan pod …`.

use clap::Subcommand;
use portolan_ipam::HostPort;

use super::text::{Column, Table, join, or_dash};
use super::{Global, Output, client};
use crate::api::PodView;

/// Looking at pods.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List the pods of this node with their addresses and interfaces
    #[command(after_help = "Example:\n  portolan pod list")]
    List(Output),
}

pub(super) fn run(command: Command, global: &Global) -> anyhow::Result<()> {
    let Command::List(output) = command;
    let mut pods = client::pods(&global.socket)?;
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.container).cmp(&(&b.namespace, &b.name, &b.container)));
    output.emit(pods.as_slice(), table)
}

fn table(pods: &[PodView]) -> String {
    if pods.is_empty() {
        return "no pods on this node\n".to_owned();
    }
    let headings = ["NAMESPACE", "NAME", "ADDRESSES", "HOST PORTS", "HOST INTERFACE", "MAC", "CONTAINER"];
    let mut table = Table::new(headings.map(Column::Left));
    for pod in pods {
        table.row([
            or_dash(&pod.namespace),
            or_dash(&pod.name),
            join(&pod.addresses).into(),
            or_dash(&join(pod.host_ports.iter().map(port))),
            interface(pod).into(),
            pod.mac.as_str().into(),
            short(&pod.container).into(),
        ]);
    }
    table.render()
}

fn port(port: &HostPort) -> String {
    format!("{port} → {}", port.container_port)
}

fn interface(pod: &PodView) -> String {
    if pod.interface_present { pod.host_interface.clone() } else { format!("{} (gone)", pod.host_interface) }
}

/// As container runtimes shorten their ids.
fn short(container: &str) -> &str {
    container.get(..12).unwrap_or(container)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::plain;

    #[test]
    fn pods_are_listed_with_both_families_and_what_is_unknown_is_a_dash() {
        let pods = [
            PodView {
                namespace: "default".into(),
                name: "web-0".into(),
                container: "0123456789abcdef0123456789abcdef".into(),
                interface: "eth0".into(),
                host_interface: "ptl0a1b2c3d4e".into(),
                addresses: vec!["10.244.1.2".parse().unwrap(), "fd00:10:244:1::2".parse().unwrap()],
                mac: "02:0a:00:00:00:01".into(),
                host_ports: vec![HostPort {
                    host_ip: Some("192.0.2.11".parse().unwrap()),
                    host_port: 80,
                    container_port: 8080,
                    protocol: portolan_ipam::Transport::Tcp,
                }],
                interface_present: true,
            },
            PodView {
                namespace: String::new(),
                name: String::new(),
                container: "c1".into(),
                interface: "eth0".into(),
                host_interface: "ptlffffffffff".into(),
                addresses: vec!["10.244.1.3".parse().unwrap()],
                mac: "02:0a:00:00:00:02".into(),
                host_ports: Vec::new(),
                interface_present: false,
            },
        ];
        assert_eq!(
            plain(&table(&pods)),
            "\
NAMESPACE  NAME   ADDRESSES                     HOST PORTS                HOST INTERFACE        MAC                CONTAINER
default    web-0  10.244.1.2, fd00:10:244:1::2  192.0.2.11:80/TCP → 8080  ptl0a1b2c3d4e         02:0a:00:00:00:01  0123456789ab
-          -      10.244.1.3                    -                         ptlffffffffff (gone)  02:0a:00:00:00:02  c1
"
        );
        assert_eq!(table(&[]), "no pods on this node\n");
    }
}
