//! `portolan explain`: what would become of a packet, and why.
//!
//! The same decision as in the kernel, on the live tables: [`portolan_core::decide`] reads them through a recorder
//! and writes into a copy. Nothing is sent and nothing changes.

mod frame;
mod live;
mod place;
mod socket;
mod story;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use portolan_core::{V4, V6, Verdict, decide};
use portolan_node::link::{Interface, Links};
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, Tables, clock};

use super::flow::Names;
use super::{Global, Output, client, output};
use frame::Probe;
use live::Recorder;
use place::Place;
use story::{Explanation, Story};

/// Options of `portolan explain`.
#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// Who sends: an address, or NAMESPACE/NAME of a pod of this node, or `host`
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where to: ADDRESS:PORT, with brackets around an IPv6 address
    #[arg(value_name = "ADDRESS:PORT")]
    destination: SocketAddr,
    /// Protocol
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    proto: Protocol,
    /// Source port; another one may lead to another backend
    #[arg(long, value_name = "PORT", default_value_t = 40_000)]
    source_port: u16,
    #[command(flatten)]
    output: Output,
}

/// A protocol that services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// The packet is a SYN
    Tcp,
    /// The packet is a datagram
    Udp,
}

pub(super) fn run(explain: &Explain, global: &Global) -> anyhow::Result<()> {
    let tables = Tables::open(&global.pins)?;
    let node = Node::read(global, &tables)?;
    let source = node.source(&explain.source, explain.destination.ip())?;
    let explanation = match explain.destination.ip() {
        IpAddr::V4(_) => about::<V4>(explain, source, &node, &tables, &tables.v4),
        IpAddr::V6(_) => about::<V6>(explain, source, &node, &tables, &tables.v6),
    }?;
    explain.output.emit(&explanation, story::text)
}

/// What names things, and where packets are routed.
struct Node {
    links: Links,
    runtime: tokio::runtime::Runtime,
    interfaces: Vec<Interface>,
    pods: Vec<crate::api::PodView>,
    names: Names,
    /// The cgroup whose sockets are balanced.
    socket_cgroup: Option<String>,
}

impl Node {
    fn read(global: &Global, tables: &Tables) -> anyhow::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().build().context("starting the runtime")?;
        let links = Links::new().context("opening netlink in the node's network namespace")?;
        let interfaces = runtime.block_on(links.interfaces()).context("listing interfaces")?;
        let (names, pods) = match (client::services(&global.socket), client::pods(&global.socket)) {
            (Ok(services), Ok(pods)) => {
                let (v4, v6) = (tables.v4.frontends.dump()?, tables.v6.frontends.dump()?);
                (Names::new(&services, &v4, &v6), pods)
            }
            (Err(error), _) | (_, Err(error)) => {
                output::note(&format!("services and pods are shown without names: {error}"));
                (Names::default(), Vec::new())
            }
        };
        // What the agent does not tell was said to be unknown already.
        let socket_cgroup = client::status(&global.socket).ok().and_then(|status| status.socket_cgroup);
        Ok(Self { links, runtime, interfaces, pods, names, socket_cgroup })
    }

    /// The address that a source stands for, in the family of the destination.
    fn source(&self, text: &str, to: IpAddr) -> anyhow::Result<IpAddr> {
        let fits = |address: &IpAddr| address.is_ipv4() == to.is_ipv4();
        if let Ok(address) = text.parse::<IpAddr>() {
            if !fits(&address) {
                bail!("{address} and {to} are of different families: name a source of the destination's");
            }
            return Ok(address);
        }
        if text == "host" {
            return self.route(to)?.1.with_context(|| format!("the host has no address to reach {to} from"));
        }
        let named = |pod: &&crate::api::PodView| format!("{}/{}", pod.namespace, pod.name) == text;
        let pod = self.pods.iter().find(named).with_context(|| {
            format!(
                "no pod {text} on this node: name an address, `host`, or a pod that `portolan pod list` shows"
            )
        })?;
        pod.addresses
            .iter()
            .copied()
            .find(fits)
            .with_context(|| format!("pod {text} has no address of the family of {to}"))
    }

    /// The interface that the host's packets to an address leave by, and the address they come from.
    fn route(&self, to: IpAddr) -> anyhow::Result<(Option<u32>, Option<IpAddr>)> {
        Ok(self.runtime.block_on(self.links.route_to(to))?)
    }

    /// A service by its index.
    fn service(&self, index: u32) -> String {
        self.names.get(index).map_or_else(|| format!("#{index}"), str::to_owned)
    }

    fn interface(&self, ifindex: u32) -> String {
        let named = self.interfaces.iter().find(|interface| interface.ifindex == ifindex);
        named.map_or_else(|| format!("interface {ifindex}"), |interface| interface.name.clone())
    }

    /// The pod that has an address, if it is one of this node.
    fn pod(&self, address: IpAddr) -> Option<String> {
        let pod = self.pods.iter().find(|pod| pod.addresses.contains(&address))?;
        Some(format!("{}/{}", pod.namespace, pod.name))
    }
}

fn about<F: NodeFamily>(
    explain: &Explain,
    source: IpAddr,
    node: &Node,
    tables: &Tables,
    family: &FamilyTables<F>,
) -> anyhow::Result<Explanation> {
    let to = explain.destination.ip();
    let place = Place::find(node, family, source, to)?;
    let routes = |address: IpAddr| node.route(address).ok().and_then(|route| route.0);
    let recorder = Recorder::new(tables, family, &routes);
    let ports = (explain.source_port, explain.destination.port());
    let probe = Probe::new(explain.proto, (source, ports.0), (to, ports.1), place.mac);
    let story = Story { node, place: &place, probe: &probe, config: recorder.config };
    let verdict = decide::<F, _, _>(place.hook, place.ifindex, &probe, &recorder, clock::ticks());
    let mut explanation = story.tell::<F>(&recorder.looks(), verdict);
    // What the first program leaves to the stack may meet another one where the stack sends it.
    if let Verdict::Pass(_) = verdict
        && let Some(next) = place.next(node, to)
    {
        let recorder = Recorder::new(tables, family, &routes);
        let verdict = decide::<F, _, _>(next.hook, next.ifindex, &probe, &recorder, clock::ticks());
        explanation.goes_on(story.tell::<F>(&recorder.looks(), verdict), &next.text);
    }
    if let Some(step) = socket::step::<F>(node, &place, &probe, &Recorder::new(tables, family, &routes)) {
        explanation.steps.insert(0, step);
    }
    Ok(explanation)
}
