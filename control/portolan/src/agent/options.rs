//! What can be chosen when the agent starts.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use http::Uri;
use ipnetwork::IpNetwork;
use portolan_model::Family;
use portolan_node::Sizes;
use portolan_node::link::overhead;
use portolan_plan::NodePortAddresses;

use super::announce::AnnounceOptions;

/// The ranges of cluster addresses, unless options say otherwise.
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/112"];

/// Options of `portolan agent`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  portolan agent --node-name node1 --source dir:/etc/portolan/objects")]
pub struct Options {
    /// Name of this node's Node object
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where objects come from: dir:PATH, a directory of Kubernetes YAML; or kubernetes, the API server of the cluster
    /// that this process is a pod of; or kubernetes:KUBECONFIG
    #[arg(long, value_name = "SOURCE")]
    pub source: SourceSpec,
    /// Addresses of API servers (https://HOST:PORT) to use in turn instead of the configuration's: the agent must not
    /// need the service address that it is to make work
    #[arg(long = "apiserver", value_name = "URL", value_delimiter = ',')]
    pub api_servers: Vec<Uri>,
    /// Address ranges of services, routed to the service device
    #[arg(long = "service-cidr", value_delimiter = ',', default_values = SERVICE_CIDRS)]
    pub service_cidrs: Vec<IpNetwork>,
    #[command(flatten)]
    pub(super) directories: Directories,
    /// Do not install the CNI plugin and its configuration
    #[arg(long)]
    pub no_cni_install: bool,
    /// Address of metrics and status
    #[arg(long, default_value = "127.0.0.1:10249")]
    pub metrics: SocketAddr,
    /// Address of /healthz and /livez, for load balancers and probes; at an unspecified address both families are served
    #[arg(long, default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,
    /// MTU of pods; 0: that of the smallest uplink
    #[arg(long, default_value_t = 0)]
    pub mtu: u32,
    /// Range of NodePorts
    #[arg(long, default_value = "30000-32767", value_parser = ports)]
    pub node_port_range: (u16, u16),
    /// Addresses of the node that answer NodePorts: primary, the first InternalIP of each family; or prefixes, and the
    /// InternalIPs within them do
    #[arg(long, value_name = "primary|CIDR[,CIDR...]", default_value = "primary", value_parser = node_port_addresses)]
    pub nodeport_addresses: NodePortAddresses,
    /// Source ports for masqueraded service traffic; outside of the kernel's ephemeral range and of NodePorts
    #[arg(long, default_value = "10240-29999", value_parser = ports)]
    pub masquerade_range: (u16, u16),
    #[command(flatten)]
    pub(super) overlay: Overlay,
    /// Whether what pods send out of the cluster leaves with the node's address
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    pub masquerade: bool,
    /// Prefixes that are inside of the cluster, besides nodes, pods, services and link-local addresses: what pods send there keeps
    /// its source address
    #[arg(long = "non-masquerade-cidr", value_name = "CIDR", value_delimiter = ',')]
    pub non_masquerade_cidrs: Vec<IpNetwork>,
    /// Prefixes of pods whose addresses are known outside of the cluster: what they send is not masqueraded
    #[arg(long = "routable-pods", value_name = "CIDR", value_delimiter = ',')]
    pub routable_pods: Vec<IpNetwork>,
    /// Serve `spec.externalIPs`: whoever may write a Service can then take over any address
    #[arg(long)]
    pub external_ips: bool,
    /// Balance connections of this cgroup's processes when they are opened: a directory of the cgroup v2 mount, as
    /// its root. Not set: by their packets only
    #[arg(long, value_name = "PATH")]
    pub socket_cgroup: Option<PathBuf>,
    /// How backends are chosen for services that can be reached from outside
    #[arg(long, value_enum, default_value_t = Selection::List)]
    pub external_selection: Selection,
    /// How outside clients reach backends on other nodes; the same on all nodes
    #[arg(long, value_enum, default_value_t = ExternalMode::Snat)]
    pub external_mode: ExternalMode,
    /// What becomes of TCP connections to a backend that left its service, as when a selector changes, though it may
    /// still answer. What a slice still names has not left: a backend that is not ready, or terminates, keeps its connections
    #[arg(long, value_enum, default_value_t = Departed::Keep)]
    pub departed_backends: Departed,
    #[command(flatten)]
    pub(super) announce: AnnounceOptions,
    /// How often tables, pods' records, programs and flows are compared with what they should be, and mended
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub audit_interval: u64,
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

    /// What is inside of the cluster besides nodes and pods.
    pub(super) fn inside(&self) -> Vec<IpNetwork> {
        let fixed = ["169.254.0.0/16", "fe80::/10"].into_iter().filter_map(|prefix| prefix.parse().ok());
        fixed.chain(self.service_cidrs.iter().chain(&self.non_masquerade_cidrs).copied()).collect()
    }

    /// Ports that no local connection may take as its source: NodePorts, and those for masqueraded flows.
    ///
    /// # Errors
    /// The two ranges overlap: an answer to a masqueraded flow would be taken for a request.
    pub(super) fn reserved_ports(&self) -> anyhow::Result<[RangeInclusive<u16>; 2]> {
        let (nodes, masquerade) = (self.node_port_range, self.masquerade_range);
        if nodes.0 <= masquerade.1 && masquerade.0 <= nodes.1 {
            anyhow::bail!(
                "--masquerade-range {}-{} and --node-port-range {}-{} overlap: give them different ports",
                masquerade.0,
                masquerade.1,
                nodes.0,
                nodes.1
            );
        }
        Ok([nodes.0..=nodes.1, masquerade.0..=masquerade.1])
    }
}

/// How pods of other nodes are reached.
#[derive(Args, Clone, Debug)]
pub(crate) struct Overlay {
    /// How pods of other nodes are reached; the same on all nodes
    #[arg(long, value_enum, default_value_t = RoutingMode::Native)]
    pub(crate) routing_mode: RoutingMode,
    /// UDP port of the overlay; the same on all nodes
    #[arg(long, default_value_t = 8472, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) overlay_port: u16,
    /// Number of the overlay's network (VNI); the same on all nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub(crate) overlay_id: u32,
    /// Family of the nodes' addresses that packets of the overlay travel between
    #[arg(long, value_enum, default_value_t = OverlayFamily::Ipv4)]
    overlay_family: OverlayFamily,
}

impl Overlay {
    /// Family of the addresses outside.
    pub(super) fn family(&self) -> Family {
        match self.overlay_family {
            OverlayFamily::Ipv4 => Family::V4,
            OverlayFamily::Ipv6 => Family::V6,
        }
    }

    /// [`family`](Self::family), if there is an overlay.
    pub(crate) fn planned(&self) -> Option<Family> {
        (self.routing_mode == RoutingMode::Vxlan).then(|| self.family())
    }

    /// What is left of an uplink's MTU.
    pub(super) fn inside(&self, mtu: u32) -> u32 {
        self.planned().map_or(mtu, |family| mtu.saturating_sub(overhead(family == Family::V4)))
    }
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoutingMode {
    /// By routes to their nodes, which share a network
    Native,
    /// By VXLAN, over any network between the nodes
    Vxlan,
    /// By what routes the network has: none are set
    Fabric,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OverlayFamily {
    /// IPv4
    Ipv4,
    /// IPv6
    Ipv6,
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

/// How a backend is chosen by a flow's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Selection {
    /// Among the list of backends: one slot for each.
    List,
    /// By a Maglev table: hundreds of slots for each, of which few change when a backend leaves. Give --slots accordingly.
    Maglev,
}

/// What becomes of TCP connections to a backend that left its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Departed {
    /// They go on as long as their ends want them to
    Keep,
    /// They are reset: each end is told when it sends next
    Reset,
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
    /// An API server, by a kubeconfig file; without one, the cluster's own.
    Kubernetes(Option<PathBuf>),
}

impl FromStr for SourceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').map_or((text, None), |(kind, path)| (kind, Some(path))) {
            ("dir", Some(path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            ("kubernetes", None) => Ok(Self::Kubernetes(None)),
            ("kubernetes", Some(path)) if !path.is_empty() => Ok(Self::Kubernetes(Some(path.into()))),
            _ => Err(
                "expected dir:PATH, a directory of Kubernetes YAML, or kubernetes, or kubernetes:KUBECONFIG"
                    .to_owned(),
            ),
        }
    }
}

pub(crate) fn ports(text: &str) -> Result<(u16, u16), String> {
    let expected = || format!("expected FIRST-LAST with 1 <= FIRST <= LAST <= 65535, found {text:?}");
    let (first, last) = text.split_once('-').ok_or_else(expected)?;
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok((first, last)),
        _ => Err(expected()),
    }
}

fn node_port_addresses(text: &str) -> Result<NodePortAddresses, String> {
    if text.trim() == "primary" {
        return Ok(NodePortAddresses::Primary);
    }
    let prefix = |text: &str| {
        // An address without a length would be read as itself alone: more likely the length was forgotten.
        let parsed = text.contains('/').then(|| text.trim().parse::<IpNetwork>().ok()).flatten();
        parsed.ok_or_else(|| {
            format!("expected primary, or prefixes like 192.0.2.0/24,2001:db8::/64, found {text:?}")
        })
    };
    text.split(',').map(prefix).collect::<Result<_, _>>().map(NodePortAddresses::Within)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn ranges_of_ports_that_overlap_are_refused_with_both_options_named() {
        let with = |range: &str| {
            let line = ["agent", "--node-name", "a", "--source", "dir:/x", "--masquerade-range", range];
            Arguments::try_parse_from(line).unwrap().options.reserved_ports()
        };
        assert_eq!(with("10240-29999").unwrap(), [30_000..=32_767, 10_240..=29_999]);
        for range in ["29999-30000", "32767-32768", "31000-31001", "1024-65535"] {
            let refused = with(range).unwrap_err().to_string();
            assert!(
                refused.contains("--masquerade-range") && refused.contains("--node-port-range"),
                "{refused}"
            );
        }
    }

    #[test]
    fn node_port_addresses_are_the_primary_ones_or_prefixes() {
        let with = |text: &str| {
            let line = ["agent", "--node-name", "a", "--source", "dir:/x", "--nodeport-addresses", text];
            Arguments::try_parse_from(line).map(|it| it.options.nodeport_addresses)
        };
        let default = Arguments::try_parse_from(["agent", "--node-name", "a", "--source", "dir:/x"]).unwrap();
        assert_eq!(default.options.nodeport_addresses, NodePortAddresses::Primary);
        assert_eq!(with("primary").unwrap(), NodePortAddresses::Primary);
        let within = ["192.0.2.0/24", "2001:db8::/64"].map(|prefix| prefix.parse().unwrap()).into();
        assert_eq!(with("192.0.2.0/24,2001:db8::/64").unwrap(), NodePortAddresses::Within(within));
        for bad in ["", "primary,192.0.2.0/24", "192.0.2.1", "192.0.2.0/33", "all"] {
            let refused = with(bad).unwrap_err().to_string();
            assert!(
                refused.contains("--nodeport-addresses") && refused.contains("expected primary"),
                "{refused}"
            );
        }
    }

    /// Every document of the manifest.
    fn manifest() -> Vec<serde_json::Value> {
        let text = include_str!("../../../../deploy/portolan.yaml");
        let documents = serde_yaml_ng::Deserializer::from_str(text);
        documents.map(|document| serde::Deserialize::deserialize(document).unwrap()).collect()
    }

    fn of_kind(kind: &str) -> serde_json::Value {
        manifest().into_iter().find(|document| document["kind"] == kind).unwrap()
    }

    #[test]
    fn the_daemon_set_starts_the_agent_with_options_that_it_has_and_directories_that_it_uses() {
        let pod = &of_kind("DaemonSet")["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let words = container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let options = Arguments::try_parse_from(words).unwrap().options;
        assert_eq!(options.source, SourceSpec::Kubernetes(None));
        assert_eq!(options.api_servers.len(), 1);

        let mounted: Vec<&str> = container["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["mountPath"].as_str().unwrap())
            .collect();
        let Directories { state_dir, cni_conf_dir, cni_bin_dir } = options.directories;
        let socket = PathBuf::from("/run/portolan");
        for path in [state_dir, cni_conf_dir, cni_bin_dir, socket] {
            assert!(mounted.contains(&path.to_str().unwrap()), "{} is not the node's own", path.display());
        }
        // Runtimes name them by either path. Without propagation those of later pods would be empty files.
        for path in ["/run/netns", "/var/run/netns"] {
            let mounts = container["volumeMounts"].as_array().unwrap();
            let mount = mounts.iter().find(|mount| mount["mountPath"] == path).unwrap_or_else(|| {
                panic!("{path} is not mounted: pods' network namespaces cannot be opened");
            });
            assert_eq!(mount["mountPropagation"], "HostToContainer", "{path}");
            let volumes = pod["volumes"].as_array().unwrap();
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
            assert_eq!(volume["hostPath"]["path"], "/run/netns");
        }
        assert_eq!(pod["hostNetwork"], true, "the agent works on the node's own network");

        let probe = &container["livenessProbe"]["httpGet"];
        assert_eq!(probe["port"], options.healthz_bind_address.port(), "where the agent is asked");
        assert!(options.healthz_bind_address.ip().is_unspecified(), "the kubelet asks at the node's address");
        assert_eq!(probe["path"], "/livez", "a node that is about to be removed needs its agent");
    }

    #[test]
    fn the_cluster_role_allows_what_the_source_does_and_nothing_else() {
        let role = of_kind("ClusterRole");
        let mut allowed: Vec<String> = Vec::new();
        for rule in role["rules"].as_array().unwrap() {
            assert_eq!(rule["verbs"], serde_json::json!(["list", "watch"]));
            let group = rule["apiGroups"][0].as_str().unwrap();
            let resources = rule["resources"].as_array().unwrap().iter();
            allowed.extend(resources.map(|resource| format!("{group}/{}", resource.as_str().unwrap())));
        }
        allowed.sort();
        assert_eq!(allowed, portolan_kubernetes::Interest::AGENT.resources());
    }
}
