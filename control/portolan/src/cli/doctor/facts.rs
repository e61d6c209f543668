//! What is known of a node: plain values, so that rules need no node to be tested.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

/// Everything that rules judge.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) expected: Expected,
    /// An agent has set up this node: its service device is there.
    pub(super) prepared: bool,
    /// An agent answers.
    pub(super) running: bool,
    /// Of nftables and of the older iptables.
    pub(super) chains: Vec<Chain>,
    /// Virtual services of IPVS.
    pub(super) ipvs: usize,
    pub(super) links: Vec<Link>,
    pub(super) default_routes: Vec<DefaultRoute>,
    /// CNI configurations in the order that runtimes read them.
    pub(super) conflists: Vec<String>,
    /// Values by path below `/proc/sys`.
    pub(super) sysctls: BTreeMap<String, String>,
    /// One for each direction of each uplink.
    pub(super) hooks: Vec<Hook>,
    /// What the agent needs and does not find: `what: what to do`.
    pub(super) lacking: Vec<String>,
    /// Whether mounts below `/run/netns` are passed on, and to where it is mounted.
    pub(super) netns_mount: Option<Mount>,
    pub(super) sockets: Vec<Socket>,
    /// What could not be read, and what to do.
    pub(super) unread: Vec<(String, String)>,
}

/// What the agent is started with.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    pub(super) node_ports: (u16, u16),
    pub(super) masquerade: (u16, u16),
    pub(super) metrics_port: u16,
    pub(super) health_port: u16,
    /// UDP port of the overlay, and the bytes that its headers take.
    pub(super) overlay: Option<(u16, u32)>,
    /// 0: as the uplinks'.
    pub(super) mtu: u32,
    pub(super) service_cidrs: Vec<IpNetwork>,
    pub(super) pod_cidrs: Vec<IpNetwork>,
    pub(super) cni_conf_dir: PathBuf,
}

/// Who keeps a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keeper {
    /// nftables, which `nft` and the newer `iptables` write to.
    Nft,
    /// The older `iptables`.
    Legacy,
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) keeper: Keeper,
    /// `ip`, `ip6`, `inet`, …
    pub(super) family: &'static str,
    pub(super) table: String,
    pub(super) name: String,
    /// Where it is entered, if that is where packets for the node or sent on by it come through.
    pub(super) gate: Option<Gate>,
    /// What no rule decides about is dropped.
    pub(super) drops: bool,
    pub(super) rules: u32,
}

/// A hook that may stop packets which Portolan leaves to the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// What is for the node.
    Input,
    /// What the node sends on.
    Forward,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    /// The kernel's name of its kind.
    pub(super) kind: Option<String>,
    pub(super) mtu: u32,
    pub(super) uplink: bool,
    /// The kernel's number of its XDP program.
    pub(super) xdp: Option<u32>,
    pub(super) vxlan_port: Option<u16>,
    pub(super) addresses: Vec<IpNetwork>,
}

impl Link {
    /// It is a device of Portolan's own.
    pub(super) fn is_own(&self) -> bool {
        self.is_pods() || self.name.starts_with("portolan")
    }

    /// It is the host's side of a pod's interface.
    pub(super) fn is_pods(&self) -> bool {
        self.name.starts_with(portolan_node::link::HOST_PREFIX)
    }
}

/// A default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DefaultRoute {
    pub(super) v4: bool,
    pub(super) device: String,
    pub(super) gateway: Option<IpAddr>,
    pub(super) metric: u32,
}

/// One direction of an uplink, and the programs there in the order that they see packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) device: String,
    /// `ingress` or `egress`.
    pub(super) direction: &'static str,
    pub(super) programs: Vec<Program>,
}

/// A program at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// `tcx` or `clsact`.
    pub(super) how: &'static str,
    /// What tells it from others: name, number or priority.
    pub(super) name: String,
    pub(super) own: bool,
}

/// The mount that a directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) point: String,
    /// Mounts made below it elsewhere appear here, or the other way round.
    pub(super) propagates: bool,
}

/// A socket with a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    /// `TCP` or `UDP`.
    pub(super) protocol: &'static str,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// It has no peer: it listens.
    pub(super) open: bool,
    /// Name and number of a process that has it; none where that cannot be told.
    pub(super) process: Option<(String, u32)>,
}

impl Socket {
    /// `sshd (731) at TCP 0.0.0.0:22`.
    pub(super) fn describe(&self) -> String {
        let who = self.process.as_ref().map_or_else(
            || "a process that cannot be told".to_owned(),
            |(name, id)| format!("{name} (process {id})"),
        );
        format!("{who} at {} {}", self.protocol, std::net::SocketAddr::new(self.address, self.port))
    }

    /// It is of the agent or of another part of Portolan.
    pub(super) fn is_own(&self) -> bool {
        self.process.as_ref().is_some_and(|(name, _)| name == "portolan")
    }
}

impl Facts {
    /// A sysctl, if the kernel has it.
    pub(super) fn sysctl(&self, path: &str) -> Option<&str> {
        self.sysctls.get(path).map(String::as_str)
    }

    pub(super) fn uplinks(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| link.uplink)
    }

    /// MTU of the smallest uplink.
    pub(super) fn uplink_mtu(&self) -> Option<u32> {
        self.uplinks().map(|uplink| uplink.mtu).min()
    }
}
