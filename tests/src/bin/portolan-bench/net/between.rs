//! Two nodes on one network, and a pod of each.

use anyhow::{Context, Result};
use portolan_tests::lab::{Agent, AgentOptions, Cluster, NODE_ADDRESSES, Netns, Pod};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};

use super::Way;
use super::node;
use super::traffic::{self, Server};

/// Port of the server.
const PORT: u16 = 8080;

/// Nodes with running agents, whose tables have the default size. Fields in the order in which they have to end.
pub(super) struct Ours {
    _server: Server,
    client: Pod,
    backend: Pod,
    _agents: [Agent; 2],
    cluster: Cluster,
}

impl Ours {
    /// With these arguments of both agents besides.
    pub(super) fn new(arguments: &[&str]) -> Result<Self> {
        let cluster = Cluster::new()?;
        cluster.write_example("nodes.yaml")?;
        let arguments = arguments.iter().map(|&it| it.to_owned()).collect();
        let agents =
            cluster.start_agents(&node::sized(AgentOptions { arguments, ..AgentOptions::default() }))?;
        let (client, backend) = (Pod::add(&agents[0], "client")?, Pod::add(&agents[1], "server")?);
        traffic::ready(&client.netns)?;
        let server = Server::start(&backend.netns, PORT)?;
        Ok(Self { _server: server, client, backend, _agents: agents, cluster })
    }

    /// From the one pod to the other.
    pub(super) fn way(&self) -> Way<'_> {
        (&self.client.netns, (self.backend.address(false), PORT).into())
    }

    /// See [`sent`].
    pub(super) fn sent(&self) -> Result<Sent> {
        sent(&self.cluster)
    }
}

/// The same network, whose nodes forward and do nothing else. Fields in the order in which they have to end.
pub(super) struct Plain {
    _server: Server,
    pods: [Netns; 2],
    cluster: Cluster,
}

impl Plain {
    pub(super) fn new() -> Result<Self> {
        let cluster = Cluster::new()?;
        let pods = [Netns::new("client")?, Netns::new("server")?];
        for (number, (pod, node)) in pods.iter().zip(&cluster.nodes).enumerate() {
            let other = 1 - number;
            pod.ip(&format!("link add eth0 type veth peer name pod0 netns {}", node.netns.name()))?;
            for (netns, device, host) in [(pod, "eth0", 2), (&node.netns, "pod0", 1)] {
                netns.ip(&format!("link set {device} up"))?;
                netns.ip(&format!("address add 10.244.{number}.{host}/24 dev {device}"))?;
            }
            pod.ip(&format!("route add default via 10.244.{number}.1"))?;
            node.netns.ip(&format!("route add 10.244.{other}.0/24 via {}", NODE_ADDRESSES[other][0]))?;
            node.netns.sysctl("net/ipv4/ip_forward", "1")?;
        }
        traffic::ready(&pods[0])?;
        let server = Server::start(&pods[1], PORT)?;
        Ok(Self { _server: server, pods, cluster })
    }

    /// From the one pod to the other.
    pub(super) fn way(&self) -> Way<'_> {
        let server: SocketAddr = (Ipv4Addr::new(10, 244, 1, 2), PORT).into();
        (&self.pods[0], server)
    }

    /// See [`sent`].
    pub(super) fn sent(&self) -> Result<Sent> {
        sent(&self.cluster)
    }
}

/// What an uplink has sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    bytes: f64,
    packets: f64,
}

impl Sent {
    /// Bytes of a packet, since an earlier count. Many times the MTU: segments travel together (GSO).
    pub(super) fn size_since(self, earlier: Self) -> f64 {
        (self.bytes - earlier.bytes) / (self.packets - earlier.packets)
    }
}

/// What the first node's uplink has sent until now.
fn sent(cluster: &Cluster) -> Result<Sent> {
    let links: Value = serde_json::from_str(&cluster.nodes[0].netns.run("ip -j -s link show dev eth0")?)?;
    let count = |name: &str| links[0]["stats64"]["tx"][name].as_f64().context("the uplink has no counters");
    Ok(Sent { bytes: count("bytes")?, packets: count("packets")? })
}
