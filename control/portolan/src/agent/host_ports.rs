//! hostPorts: what CNI asks for, what is recorded of it, what the planner makes of that.

use std::net::{IpAddr, SocketAddr};

use portolan_cni::spec::{PortMapping, Protocol};
use portolan_cni::{CniError, Code};
use portolan_ipam::{Allocation, HostPort, Transport};
use portolan_model as model;
use portolan_plan::{self as plan, HostPortConflict};

use super::state::Core;

/// The ports of the node that a runtime asks for, without repetition.
///
/// # Errors
/// Code 2 for a protocol that is not carried, code 7 for ports that exclude each other.
pub(super) fn wanted(mappings: &[PortMapping]) -> Result<Vec<HostPort>, CniError> {
    let mut wanted: Vec<HostPort> = Vec::new();
    // Runtimes list ports of containers that have no port of the node, too.
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let port = recorded(mapping)?;
        if wanted.contains(&port) {
            continue;
        }
        if let Some(other) = wanted.iter().find(|other| other.meets(&port)) {
            let msg = format!(
                "portMappings {other} and {port} of this pod meet: give one of them another hostPort, protocol or hostIP"
            );
            return Err(CniError::new(Code::InvalidConfig, msg));
        }
        wanted.push(port);
    }
    Ok(wanted)
}

fn recorded(mapping: &PortMapping) -> Result<HostPort, CniError> {
    let protocol = match mapping.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => {
            let msg = format!(
                "portMappings: hostPort {} is of SCTP, which is not carried: use TCP or UDP, or no hostPort",
                mapping.host_port
            );
            return Err(CniError::new(Code::UnsupportedField, msg));
        }
    };
    Ok(HostPort {
        host_ip: mapping.host_ip.map(|addr| addr.to_canonical()),
        host_port: mapping.host_port,
        container_port: mapping.container_port.get(),
        protocol,
    })
}

/// What the planner is to know of a pod's ports: each in every family that it is for and the pod has.
pub(super) fn planned(allocation: &Allocation) -> Vec<plan::HostPort> {
    let meta = &allocation.meta;
    let pod = if meta.pod_name.is_empty() { allocation.id.container() } else { &meta.pod_name };
    let name = plan::HostPort::name(&meta.pod_namespace, pod);
    let of = |port: &HostPort, addr: IpAddr| {
        is_for(port, addr.is_ipv4()).then(|| plan::HostPort {
            name: name.clone(),
            addr: port.host_ip.filter(|host| !host.is_unspecified()),
            port: port.host_port,
            protocol: match port.protocol {
                Transport::Tcp => model::Protocol::Tcp,
                Transport::Udp => model::Protocol::Udp,
            },
            backend: SocketAddr::new(addr, port.container_port),
        })
    };
    let addresses = || allocation.addresses.iter();
    meta.host_ports.iter().flat_map(|port| addresses().filter_map(move |addr| of(port, addr))).collect()
}

fn is_for(port: &HostPort, v4: bool) -> bool {
    port.host_ip.is_none_or(|host| host.is_ipv4() == v4)
}

/// Whether the node can have these ports, asked with an address of each family that the pod will have; other pods' ports are
/// compared when they are recorded.
///
/// # Errors
/// Code 7: not this node's address, a service's NodePort, or a loopback address while sockets are not balanced.
pub(super) fn check(core: &Core, allocation: &Allocation) -> Result<(), CniError> {
    let invalid = |msg: String| Err(CniError::new(Code::InvalidConfig, msg));
    for port in &allocation.meta.host_ports {
        if !allocation.addresses.iter().any(|addr| is_for(port, addr.is_ipv4())) {
            return invalid(format!(
                "portMappings: {port} is of a family of which this node's pods have no address"
            ));
        }
        if port.host_ip.is_some_and(|host| host.is_loopback()) && core.socket_cgroup.is_none() {
            return invalid(format!(
                "portMappings: {port} is a loopback address, which leads to pods only where the agent runs with --socket-cgroup"
            ));
        }
    }
    for port in planned(allocation) {
        let text = format!("{}/{}", port.port, port.protocol);
        match core.planner.host_port_conflict(&port) {
            None => {}
            Some(HostPortConflict::NodePort(service)) => {
                return invalid(format!(
                    "portMappings: {text} is the NodePort of service {service}: give one of them another port"
                ));
            }
            Some(HostPortConflict::ForeignAddress(own)) => {
                let own: Vec<String> = own.iter().map(ToString::to_string).collect();
                return invalid(format!(
                    "portMappings: hostIP of {text} is no address of this node, which has {}: use one of these, or none",
                    own.join(", ")
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(text: &str) -> PortMapping {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn ports_are_recorded_once_and_only_if_they_are_of_the_node() {
        let all = [
            mapping(r#"{"hostPort": 0, "containerPort": 1}"#),
            mapping(
                r#"{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": "::ffff:192.0.2.1"}"#,
            ),
            mapping(r#"{"hostPort": 80, "containerPort": 8080, "protocol": "TCP", "hostIP": "192.0.2.1"}"#),
            mapping(r#"{"hostPort": 80, "containerPort": 8080, "protocol": "udp"}"#),
        ];
        let wanted: Vec<String> = wanted(&all).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(wanted, ["192.0.2.1:80/TCP", "80/UDP"]);
    }

    #[test]
    fn sctp_and_ports_that_meet_are_refused() {
        let sctp = [mapping(r#"{"hostPort": 80, "containerPort": 80, "protocol": "sctp"}"#)];
        assert_eq!(wanted(&sctp).unwrap_err().code, Code::UnsupportedField);
        let two = [
            mapping(r#"{"hostPort": 80, "containerPort": 80}"#),
            mapping(r#"{"hostPort": 80, "containerPort": 81, "hostIP": "127.0.0.1"}"#),
        ];
        let refused = wanted(&two).unwrap_err();
        assert_eq!(refused.code, Code::InvalidConfig);
        assert!(refused.msg.contains("80/TCP and 127.0.0.1:80/TCP"), "{refused}");
    }
}
