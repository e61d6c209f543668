//! Client, router and two nodes.
//!
//! ```text
//! client 203.0.113.10 ── 203.0.113.1 router 192.0.2.1 ──┬── 192.0.2.11 node1  pods 10.244.1.0/24
//!        2001:db8:c::10           2001:db8:1::1         └── 192.0.2.12 node2  pods 10.244.2.0/24
//! ```
//! The router sends the public range 198.51.100.0/24 (and 2001:db8:f::/64) to a node of choice.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{Agent, AgentOptions, Netns, run};

/// Addresses of the nodes.
pub const NODE_ADDRESSES: [[&str; 2]; 2] =
    [["192.0.2.11", "2001:db8:1::11"], ["192.0.2.12", "2001:db8:1::12"]];
/// Public addresses of the fixture service.
pub const SERVICE_ADDRESSES: [&str; 2] = ["198.51.100.10", "2001:db8:f::10"];
/// Ranges of cluster addresses, as agents have them by default.
const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/112"];

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// `node1` or `node2`.
    pub name: String,
    /// Its namespace; the uplink is `eth0`.
    pub netns: Netns,
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// An outside client.
    pub client: Netns,
    /// The router between the client and the nodes.
    pub router: Netns,
    /// Two nodes.
    pub nodes: [Node; 2],
    directory: TempDir,
}

impl Cluster {
    /// Makes namespaces, links, addresses and routes. Agents are started by [`start_agents`](Self::start_agents).
    ///
    /// # Errors
    /// Not root, or a tool is missing: `cargo xtask setup` installs them.
    pub fn new() -> Result<Self> {
        let node = |number| -> Result<Node> {
            Ok(Node { name: format!("node{number}"), netns: Netns::new(&format!("n{number}"))? })
        };
        let cluster = Self {
            client: Netns::new("client")?,
            router: Netns::new("router")?,
            nodes: [node(1)?, node(2)?],
            directory: tempfile::Builder::new()
                .prefix("portolan-")
                .tempdir()
                .context("making a directory")?,
        };
        std::fs::create_dir(cluster.objects())?;
        cluster.wire()?;
        Ok(cluster)
    }

    /// The directory of objects that both agents watch.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.directory.path().join("objects")
    }

    /// A directory for whatever a test needs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Writes an object file: beside, then renamed, as an editor does.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let fresh = self.directory.path().join("fresh");
        std::fs::write(&fresh, text)?;
        std::fs::rename(fresh, self.objects().join(name)).context("putting an object file in place")
    }

    /// Copies a file of `examples/` to the objects.
    ///
    /// # Errors
    /// There is no such file.
    pub fn write_example(&self, name: &str) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples").join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        self.write(name, &text)
    }

    /// Starts an agent on each node and waits until both are ready. Objects must name the nodes already.
    ///
    /// # Errors
    /// An agent does not get ready; the error has its log.
    pub fn start_agents(&self, options: &AgentOptions) -> Result<[Agent; 2]> {
        let [one, two] = &self.nodes;
        let (one, two) = (self.start_agent(one, options)?, self.start_agent(two, options)?);
        Ok([one, two])
    }

    /// Starts the agent of one node.
    ///
    /// # Errors
    /// As [`start_agents`](Self::start_agents).
    pub fn start_agent(&self, node: &Node, options: &AgentOptions) -> Result<Agent> {
        Agent::start(node, &self.objects(), &self.directory.path().join(&node.name), options)
    }

    /// Sends the public range to a node.
    ///
    /// # Errors
    /// As [`run`].
    pub fn route_public_to(&self, node: usize) -> Result<()> {
        let [v4, v6] = NODE_ADDRESSES[node];
        self.router.ip(&format!("route replace 198.51.100.0/24 via {v4}"))?;
        self.router.ip(&format!("route replace 2001:db8:f::/64 via {v6}"))?;
        Ok(())
    }

    /// Parts the nodes: they share no link any more, and reach each other by the router alone, which knows no pod.
    ///
    /// # Errors
    /// As [`run`].
    pub fn part_nodes(&self) -> Result<()> {
        for (number, (node, [v4, v6])) in self.nodes.iter().zip(NODE_ADDRESSES).enumerate() {
            self.router.run(&format!("bridge link set dev n{number} isolated on"))?;
            node.netns.ip(&format!("route add 192.0.2.1 dev eth0 src {v4}"))?;
            node.netns.ip("route del 192.0.2.0/24 dev eth0")?;
            node.netns.ip(&format!("route add 2001:db8:1::1 dev eth0 src {v6}"))?;
            node.netns.ip("-6 route del 2001:db8:1::/64 dev eth0")?;
        }
        // What goes back by where it came is nothing to be told of here.
        self.router.sysctl("net/ipv4/conf/br0/send_redirects", "0")?;
        self.router.sysctl("net/ipv4/conf/all/send_redirects", "0")
    }

    /// Sends the service ranges to a node, as a network does that is told to lead outside clients to cluster addresses.
    ///
    /// # Errors
    /// As [`run`].
    pub fn route_services_to(&self, node: usize) -> Result<()> {
        for (range, via) in SERVICE_RANGES.into_iter().zip(NODE_ADDRESSES[node]) {
            self.router.ip(&format!("route replace {range} via {via}"))?;
        }
        Ok(())
    }

    fn wire(&self) -> Result<()> {
        self.router.ip("link add br0 type bridge")?;
        self.router.ip("link set br0 up")?;
        self.link(&self.client, "c0")?;
        for (number, node) in self.nodes.iter().enumerate() {
            let port = format!("n{number}");
            self.link(&node.netns, &port)?;
            self.router.ip(&format!("link set {port} master br0"))?;
        }
        address(&self.router, "c0", &["203.0.113.1/24", "2001:db8:c::1/64"])?;
        address(&self.router, "br0", &["192.0.2.1/24", "2001:db8:1::1/64"])?;
        address(&self.client, "eth0", &["203.0.113.10/24", "2001:db8:c::10/64"])?;
        self.client.ip("route add default via 203.0.113.1")?;
        self.client.ip("route add default via 2001:db8:c::1")?;
        for (node, [v4, v6]) in self.nodes.iter().zip(NODE_ADDRESSES) {
            address(&node.netns, "eth0", &[&format!("{v4}/24"), &format!("{v6}/64")])?;
            node.netns.ip("route add default via 192.0.2.1")?;
            node.netns.ip("route add default via 2001:db8:1::1")?;
        }
        self.router.sysctl("net/ipv4/ip_forward", "1")?;
        self.router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.route_public_to(0)
    }

    /// A veth pair: `eth0` here, `port` at the router.
    fn link(&self, netns: &Netns, port: &str) -> Result<()> {
        let line = format!("link add eth0 type veth peer name {port} netns {}", self.router.name());
        netns.ip(&line)?;
        netns.ip("link set eth0 up")?;
        self.router.ip(&format!("link set {port} up"))?;
        Ok(())
    }
}

/// Adds addresses, without duplicate address detection: a test cannot wait for it.
fn address(netns: &Netns, device: &str, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        let mut command = Command::new("ip");
        command.args(["-n", netns.name(), "address", "add", address, "dev", device]);
        if address.contains(':') {
            command.arg("nodad");
        }
        run(&mut command)?;
    }
    Ok(())
}
