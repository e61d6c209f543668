//! A node with a running agent, two pods, and services in front of one of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use portolan_tests::lab::{Agent, AgentOptions, Cluster, Netns, Pod};

use super::traffic::{self, Server};
use crate::nft::service;

/// Port of the server, and of the services.
const PORT: u16 = 8080;
/// Services in one file: a file may have 16 MiB.
const EACH: usize = 10_000;
/// Reading a hundred thousand documents takes a while.
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

    /// Has that many services, of which the last one answers over UDP as well; how long it took until that one answered.
    pub(crate) fn load_services(&self, count: u32) -> Result<Duration> {
        let files: Vec<String> = (0..count)
            .step_by(EACH)
            .map(|from| {
                (from..count).take(EACH).map(|number| self.objects(number, number + 1 == count)).collect()
            })
            .collect();
        let begun = Instant::now();
        for (number, text) in files.iter().enumerate() {
            self.cluster.write(&format!("services-{number}.yaml"), text)?;
        }
        traffic::wait(&self.client.netns, (service(count - 1), PORT).into(), DEADLINE)?;
        Ok(begun.elapsed())
    }

    /// A service in front of the server, over TCP and perhaps UDP.
    fn objects(&self, number: u32, both: bool) -> String {
        let (address, backend) = (service(number), self.backend.address(false));
        let udp = if both { format!(", {{name: u, port: {PORT}, protocol: UDP}}") } else { String::new() };
        let ports = format!("[{{name: t, port: {PORT}}}{udp}]");
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\n\
             spec: {{clusterIP: {address}, ports: {ports}}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: s{number}-1, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
             ports: {ports}\nendpoints: [{{addresses: [{backend}], nodeName: node1}}]\n"
        )
    }
}

/// A cluster whose first node has an agent with tables of the default size.
fn start_with(options: &AgentOptions) -> Result<(Cluster, Agent)> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let agent = cluster.start_agent(&cluster.nodes[0], &sized(options.clone()))?;
    Ok((cluster, agent))
}

/// The same options with tables of the default size.
pub(crate) fn sized(mut options: AgentOptions) -> AgentOptions {
    let sizes = portolan_node::Sizes::default();
    for (name, value) in [
        ("services", sizes.services),
        ("slots", sizes.slots),
        ("backends", sizes.backends),
        ("frontends", sizes.frontends),
        ("flows", sizes.flows),
    ] {
        options.arguments.extend([format!("--{name}"), value.to_string()]);
    }
    options
}
