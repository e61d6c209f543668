//! A node with a running agent, two pods, and services in front of one of them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use portolan_tests::lab::{Agent, AgentOptions, Cluster, Netns, Pod};

use super::traffic::{self, Server};
use crate::nft::service;

/// Port of the server, and of the services.
const PORT: u16 = 8080;
/// Reading ten thousand documents takes a while.
const DEADLINE: Duration = Duration::from_secs(60);

/// The node. Fields in the order in which they have to end.
pub(crate) struct Node {
    _server: Server,
    pub(crate) client: Pod,
    /// A client whose sockets are left alone.
    pub(crate) outside: Pod,
    backend: Pod,
    _agent: Agent,
    cluster: Cluster,
}

impl Node {
    pub(crate) fn new() -> Result<Self> {
        Self::with(&AgentOptions::default())
    }

    /// With sockets balanced.
    pub(crate) fn with_sockets() -> Result<Self> {
        Self::with(&AgentOptions { sockets: true, ..AgentOptions::default() })
    }

    fn with(options: &AgentOptions) -> Result<Self> {
        let (cluster, agent) = start_with(options)?;
        let (client, backend) = (Pod::add(&agent, "client")?, Pod::add(&agent, "server")?);
        let apart = Netns::new("outside")?;
        apart.keep_out_of_cgroups();
        let outside = Pod::add_to(&agent, "outside", apart)?;
        traffic::ready(&client.netns)?;
        traffic::ready(&outside.netns)?;
        let server = Server::start(&backend.netns, PORT)?;
        Ok(Self { _server: server, client, outside, backend, _agent: agent, cluster })
    }

    /// The server pod itself.
    pub(crate) fn server(&self) -> SocketAddr {
        (self.backend.address(false), PORT).into()
    }

    /// Has that many services; how long it took until the last of them answered.
    pub(crate) fn load_services(&self, count: u32) -> Result<Duration> {
        let objects = self.objects(count);
        let begun = Instant::now();
        self.cluster.write("services.yaml", &objects)?;
        traffic::wait(&self.client.netns, (service(count - 1), PORT).into(), DEADLINE)?;
        Ok(begun.elapsed())
    }

    /// Has one service, over TCP and UDP; its address.
    pub(crate) fn load_pair(&self) -> Result<SocketAddr> {
        let (address, backend) = (service(0), self.backend.address(false));
        let ports = format!("[{{name: t, port: {PORT}}}, {{name: u, port: {PORT}, protocol: UDP}}]");
        let objects = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: pair}}\nspec: {{clusterIP: {address}, ports: {ports}}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: pair-1, labels: {{kubernetes.io/service-name: pair}}}}\n\
             ports: {ports}\nendpoints: [{{addresses: [{backend}], nodeName: node1}}]\n"
        );
        self.cluster.write("services.yaml", &objects)?;
        let to = (address, PORT).into();
        traffic::wait(&self.client.netns, to, DEADLINE)?;
        Ok(to)
    }

    fn objects(&self, count: u32) -> String {
        let mut text = String::new();
        for number in 0..count {
            let (address, backend) = (service(number), self.backend.address(false));
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\n\
                 spec: {{clusterIP: {address}, ports: [{{port: {PORT}}}]}}\n\
                 ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {{name: s{number}-1, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
                 ports: [{{port: {PORT}}}]\nendpoints: [{{addresses: [{backend}], nodeName: node1}}]\n"
            );
        }
        text
    }
}

/// A cluster whose first node has an agent with tables of the default size.
pub(crate) fn start() -> Result<(Cluster, Agent)> {
    start_with(&AgentOptions::default())
}

fn start_with(options: &AgentOptions) -> Result<(Cluster, Agent)> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let sizes = portolan_node::Sizes::default();
    let mut arguments = Vec::new();
    for (name, value) in [
        ("services", sizes.services),
        ("slots", sizes.slots),
        ("backends", sizes.backends),
        ("frontends", sizes.frontends),
        ("flows", sizes.flows),
    ] {
        arguments.extend([format!("--{name}"), value.to_string()]);
    }
    let agent = cluster.start_agent(&cluster.nodes[0], &AgentOptions { arguments, ..options.clone() })?;
    Ok((cluster, agent))
}
