//! A node with a running agent, two pods, and services in front of one of them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use portolan_tests::lab::{Agent, AgentOptions, Cluster, Pod};

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
    backend: Pod,
    _agent: Agent,
    cluster: Cluster,
}

impl Node {
    pub(crate) fn new() -> Result<Self> {
        let (cluster, agent) = start()?;
        let (client, backend) = (Pod::add(&agent, "client")?, Pod::add(&agent, "server")?);
        traffic::ready(&client.netns)?;
        let server = Server::start(&backend.netns, PORT)?;
        Ok(Self { _server: server, client, backend, _agent: agent, cluster })
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
    let agent =
        cluster.start_agent(&cluster.nodes[0], &AgentOptions { arguments, ..AgentOptions::default() })?;
    Ok((cluster, agent))
}
