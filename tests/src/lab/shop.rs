//! A cluster with a service and its pods: what most suites start from.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::{Agent, AgentOptions, Cluster, Pod, SERVICE_ADDRESSES, UdpEcho, WebServer, get, poll};

/// Cluster addresses of the service.
pub const CLUSTER_ADDRESSES: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
/// Port of the service at its own addresses, TCP and UDP.
pub const PORT: u16 = 80;
/// Its port on the nodes.
pub const NODE_PORT: u16 = 30_080;

/// The service `shop/web` on a cluster of two nodes.
#[derive(Debug)]
pub struct Shop {
    /// Pods that answer, over TCP port 8080 and UDP port 9000.
    pub backends: Vec<Backend>,
    /// A pod of the first node that asks.
    pub client: Pod,
    /// The agents.
    pub agents: [Agent; 2],
    /// The cluster. Its directory of objects has `nodes.yaml`, `service.yaml` and `slices.yaml`.
    pub cluster: Cluster,
}

/// A pod that answers.
#[derive(Debug)]
pub struct Backend {
    /// The web server; `None` after it was stopped.
    pub web: Option<WebServer>,
    /// The UDP server; `None` after it was stopped.
    pub echo: Option<UdpEcho>,
    /// The pod.
    pub pod: Pod,
    /// Index of its node.
    pub node: usize,
}

impl Backend {
    /// Adds a pod with servers on a node.
    ///
    /// # Errors
    /// The plugin says why.
    pub fn add(agents: &[Agent; 2], node: usize, name: &str) -> Result<Self> {
        let pod = Pod::add(&agents[node], name)?;
        let web = Some(WebServer::start(&pod.netns, 8080, name)?);
        let echo = Some(UdpEcho::start(&pod.netns, 9000, name)?);
        Ok(Self { web, echo, pod, node })
    }
}

/// What an EndpointSlice says of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It takes new connections.
    Ready,
    /// It is ending, and still answers.
    Terminating,
    /// It does not answer.
    NotReady,
}

impl Shop {
    /// Makes the cluster, a pod called `b0`, `b1`, … on each of these nodes (0 or 1), and publishes them all.
    ///
    /// # Errors
    /// Something does not come up; the error says what.
    pub fn open(nodes: &[usize]) -> Result<Self> {
        Self::open_with(nodes, &AgentOptions::default())
    }

    /// As [`open`](Self::open), with options of the agents.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(nodes: &[usize], options: &AgentOptions) -> Result<Self> {
        Self::open_in(Cluster::new()?, nodes, options)
    }

    /// As [`open_with`](Self::open_with), in a cluster that is there.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(cluster: Cluster, nodes: &[usize], options: &AgentOptions) -> Result<Self> {
        cluster.write_example("nodes.yaml")?;
        cluster.write("service.yaml", &service(""))?;
        let agents = cluster.start_agents(options)?;
        let client = Pod::add(&agents[0], "client")?;
        let backends = nodes.iter().enumerate();
        let backends = backends.map(|(number, node)| Backend::add(&agents, *node, &format!("b{number}")));
        let shop = Self { backends: backends.collect::<Result<_>>()?, client, agents, cluster };
        shop.publish(|_| Some(Condition::Ready))?;
        shop.wait_for_backends(nodes.len())?;
        if !nodes.is_empty() {
            for v6 in [false, true] {
                shop.wait_for_answer(v6)?;
            }
        }
        Ok(shop)
    }

    /// Writes what the service's slices say of each backend, by its index; `None`: nothing.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn publish(&self, condition: impl Fn(usize) -> Option<Condition>) -> Result<()> {
        let text: String = [false, true].map(|v6| self.slice(v6, &condition)).concat();
        self.cluster.write("slices.yaml", &text)
    }

    fn slice(&self, v6: bool, condition: impl Fn(usize) -> Option<Condition>) -> String {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{}\n  namespace: shop\n  \
             labels: {{kubernetes.io/service-name: web}}\naddressType: {family}\nports:\n\
             - {{name: http, port: 8080, protocol: TCP}}\n- {{name: echo, port: 9000, protocol: UDP}}\nendpoints:\n",
            family.to_lowercase()
        );
        for (index, backend) in self.backends.iter().enumerate() {
            let conditions = match condition(index) {
                Some(Condition::Ready) => "ready: true",
                Some(Condition::Terminating) => "ready: false, serving: true, terminating: true",
                Some(Condition::NotReady) => "ready: false, serving: false",
                None => continue,
            };
            text += &format!(
                "- {{addresses: [\"{}\"], nodeName: node{}, conditions: {{{conditions}}}}}\n",
                backend.pod.address(v6),
                backend.node + 1
            );
        }
        text + "---\n"
    }

    /// Waits until the client gets an answer at the cluster address.
    ///
    /// # Errors
    /// It does not within 20 s.
    pub fn wait_for_answer(&self, v6: bool) -> Result<()> {
        let to = cluster_address(v6);
        let answer = || get(&self.client.netns, to).ok();
        poll(Duration::from_secs(20), "the service answers", answer).map(drop)
    }

    /// Waits until both agents have in their tables whatever was written before.
    ///
    /// # Errors
    /// They do not within 20 s.
    pub fn settle(&self) -> Result<()> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // A service that nobody asks for, written last. Each file is read after what was written before it.
        let name = format!("settled-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: lab}}\n\
             spec: {{clusterIP: 10.96.255.254, ports: [{{port: 9}}]}}\n"
        );
        self.cluster.write("settled.yaml", &text)?;
        for agent in &self.agents {
            let there = || agent.view("service list -o json").ok()?.contains(&name).then_some(());
            poll(Duration::from_secs(20), "the objects are in the tables", there)?;
        }
        Ok(())
    }

    /// Waits until both agents say that a service port has this many backends in all.
    ///
    /// # Errors
    /// They do not within 20 s.
    pub fn wait_for_backends(&self, count: usize) -> Result<()> {
        for agent in &self.agents {
            let all = || {
                let services: serde_json::Value =
                    serde_json::from_str(&agent.view("service list -o json").ok()?).ok()?;
                let web = services.as_array()?.iter().find(|service| service["name"] == "web")?;
                let mut ports = web["ports"].as_array()?.iter();
                ports
                    .all(|port| port["backends"].as_array().is_some_and(|it| it.len() == count))
                    .then_some(())
            };
            poll(Duration::from_secs(20), &format!("the agents have {count} backends"), all)?;
        }
        Ok(())
    }
}

/// The service: addresses of all kinds, port 80 over TCP (`http`) and UDP (`echo`). `extra` is put into its spec:
/// lines indented by two.
#[must_use]
pub fn service(extra: &str) -> String {
    let ([v4, v6], [lb4, lb6]) = (CLUSTER_ADDRESSES, SERVICE_ADDRESSES);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  type: LoadBalancer\n  \
         clusterIP: {v4}\n  clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilyPolicy: PreferDualStack\n  \
         ipFamilies: [IPv4, IPv6]\n{extra}  ports:\n  \
         - {{name: http, port: 80, nodePort: {NODE_PORT}, protocol: TCP}}\n  \
         - {{name: echo, port: 80, nodePort: {NODE_PORT}, protocol: UDP}}\n\
         status: {{loadBalancer: {{ingress: [{{ip: {lb4}}}, {{ip: \"{lb6}\"}}]}}}}\n",
    )
}

/// The service's cluster address and port.
#[must_use]
pub fn cluster_address(v6: bool) -> SocketAddr {
    at(CLUSTER_ADDRESSES[usize::from(v6)], PORT)
}

/// The service's public address and port.
#[must_use]
pub fn public_address(v6: bool) -> SocketAddr {
    at(SERVICE_ADDRESSES[usize::from(v6)], PORT)
}

/// The service's port on a node.
#[must_use]
pub fn node_address(node: usize, v6: bool) -> SocketAddr {
    at(super::NODE_ADDRESSES[node][usize::from(v6)], NODE_PORT)
}

fn at(address: &str, port: u16) -> SocketAddr {
    let address: IpAddr = address.parse().expect("the constants are addresses");
    SocketAddr::new(address, port)
}
