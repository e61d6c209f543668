//! What can be chosen when the agent starts.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ipnetwork::IpNetwork;
use portolan_node::Sizes;

/// Options of `portolan agent`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  portolan agent --node-name node1 --source dir:/etc/portolan/objects")]
pub struct Options {
    /// Name of this node's Node object
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where objects come from: dir:PATH, a directory of Kubernetes YAML
    #[arg(long, value_name = "dir:PATH")]
    pub source: SourceSpec,
    /// Address ranges of services, routed to the service device
    #[arg(long = "service-cidr", value_delimiter = ',', default_values = ["10.96.0.0/12", "fd00:10:96::/112"])]
    pub service_cidrs: Vec<IpNetwork>,
    #[command(flatten)]
    pub(super) directories: Directories,
    /// Do not install the CNI plugin and its configuration
    #[arg(long)]
    pub no_cni_install: bool,
    /// Address of metrics and status
    #[arg(long, default_value = "127.0.0.1:10249")]
    pub metrics: SocketAddr,
    /// MTU of pods; 0: that of the smallest uplink
    #[arg(long, default_value_t = 0)]
    pub mtu: u32,
    /// Range of NodePorts
    #[arg(long, default_value = "30000-32767", value_parser = ports)]
    pub node_port_range: (u16, u16),
    /// Source ports for masqueraded service traffic; outside of the kernel's ephemeral range and of NodePorts
    #[arg(long, default_value = "10240-29999", value_parser = ports)]
    pub masquerade_range: (u16, u16),
    /// Serve `spec.externalIPs`: whoever may write a Service can then take over any address
    #[arg(long)]
    pub external_ips: bool,
    /// How outside clients reach backends on other nodes; the same on all nodes
    #[arg(long, value_enum, default_value_t = ExternalMode::Snat)]
    pub external_mode: ExternalMode,
    /// Attach by the clsact qdisc also where the kernel has tcx
    #[arg(long)]
    pub force_clsact: bool,
    /// Mount point of the bpf file system, if not the usual one
    #[arg(long)]
    pub bpffs: Option<PathBuf>,
    /// cgroup v2 mount, if not in a usual place
    #[arg(long)]
    pub cgroup_root: Option<PathBuf>,
    /// Room for services: one for each port and family
    #[arg(long, default_value_t = Sizes::default().services)]
    pub services: u32,
    /// Room for backend slots of all services together
    #[arg(long, default_value_t = Sizes::default().slots)]
    pub slots: u32,
    /// Room for backends of each family
    #[arg(long, default_value_t = Sizes::default().backends)]
    pub backends: u32,
    /// Room for frontends of each family
    #[arg(long, default_value_t = Sizes::default().frontends)]
    pub frontends: u32,
    /// Room for source ranges of each family
    #[arg(long, default_value_t = Sizes::default().sources)]
    pub sources: u32,
    /// Room for clients of services with session affinity, of each family
    #[arg(long, default_value_t = Sizes::default().clients)]
    pub clients: u32,
    /// Room for flow entries of each family, two for each flow
    #[arg(long, default_value_t = Sizes::default().flows)]
    pub flows: u32,
    /// Form of the log on stderr; RUST_LOG chooses what is logged
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Options {
    pub(super) fn sizes(&self) -> Sizes {
        let Self { services, slots, backends, frontends, sources, clients, flows, .. } = *self;
        Sizes { services, slots, backends, frontends, sources, clients, flows }
    }

    pub(super) fn node_ports(&self) -> RangeInclusive<u16> {
        self.node_port_range.0..=self.node_port_range.1
    }
}

/// Where the agent keeps and installs files.
#[derive(Args, Clone, Debug)]
pub(super) struct Directories {
    /// Durable state: addresses given to pods, queued requests
    #[arg(long, default_value = "/var/lib/portolan")]
    pub(super) state_dir: PathBuf,
    /// Where the CNI configuration is written when the agent is ready
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub(super) cni_conf_dir: PathBuf,
    /// Where the CNI plugin is installed
    #[arg(long, default_value = "/opt/cni/bin")]
    pub(super) cni_bin_dir: PathBuf,
}

/// How outside clients reach backends on other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExternalMode {
    /// Masqueraded: answers come back through this node, and backends see it as their client
    Snat,
    /// Encapsulated: backends see the client, and their node answers it directly
    Dsr,
    /// TCP as dsr, UDP as snat
    Hybrid,
}

impl From<ExternalMode> for portolan_plan::ExternalMode {
    fn from(mode: ExternalMode) -> Self {
        match mode {
            ExternalMode::Snat => Self::Snat,
            ExternalMode::Dsr => Self::Dsr,
            ExternalMode::Hybrid => Self::Hybrid,
        }
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// A directory of Kubernetes YAML.
    Dir(PathBuf),
}

impl FromStr for SourceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("dir:") {
            Some(path) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err("expected dir:PATH, a directory of Kubernetes YAML".to_owned()),
        }
    }
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let expected = || format!("expected FIRST-LAST with 1 <= FIRST <= LAST <= 65535, found {text:?}");
    let (first, last) = text.split_once('-').ok_or_else(expected)?;
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok((first, last)),
        _ => Err(expected()),
    }
}
