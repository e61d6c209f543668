//! What an announcer is told, validated.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The UDP port of heartbeats, where settings say nothing else. IANA has not given it to anybody.
pub const DEFAULT_PORT: u16 = 10_261;

/// How a node announces. All nodes need the same port and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node's name, as members and eligible sets have it.
    pub node_name: String,
    /// The UDP port of heartbeats.
    pub port: u16,
    /// How often a node says that it is there. Up to a tenth less, so that not all nodes speak at once.
    pub interval: Duration,
    /// How long a heartbeat counts; two intervals at least, so that one that is lost changes nothing.
    pub fresh: Duration,
}

/// A node that may announce, this one included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its InternalIPs. Heartbeats go from the first one of each family to the first one of each family, and are taken from
    /// any of them.
    pub addresses: Vec<IpAddr>,
}

/// An address to announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The address. No interface of any node has it.
    pub address: IpAddr,
    /// Which nodes may own it. All nodes must be told the same.
    pub eligible: Eligible,
    /// Where it is announced, by name; none: on all interfaces.
    pub interfaces: Option<BTreeSet<String>>,
}

/// Nodes that may own an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Eligible {
    /// All members.
    All,
    /// The members with these names, such as those with local endpoints.
    Only(BTreeSet<String>),
}

/// An interface of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index in this node's namespace.
    pub ifindex: u32,
    /// Its Ethernet address, which addresses resolve to.
    pub mac: Mac,
    /// Whether it carries packets: up, with carrier (RFC 2863 `ifOperStatus`).
    pub operational: bool,
}

/// What cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Of the settings.
    #[error("{field}: {reason}")]
    Settings {
        /// As users write it.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Of a member.
    #[error("node {name}: {reason}")]
    Member {
        /// Its name.
        name: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Of an address to announce.
    #[error("address {address}: {reason}")]
    Vip {
        /// The address.
        address: IpAddr,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

impl Settings {
    /// The usual settings: a heartbeat every 500 ms that counts for 1.5 s.
    #[must_use]
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            port: DEFAULT_PORT,
            interval: Duration::from_millis(500),
            fresh: Duration::from_millis(1500),
        }
    }

    /// Checks everything.
    ///
    /// # Errors
    /// Something cannot work; the first of it.
    pub fn validate(&self) -> Result<(), Invalid> {
        let check = |field, right: bool, reason: &str| {
            right.then_some(()).ok_or(Invalid::Settings { field, reason: reason.to_owned() })
        };
        check("node name", is_name(&self.node_name), NAME)?;
        check("port", self.port != 0, "0 is no port: every node must know it")?;
        let range = SHORTEST..=LONGEST;
        check("interval", range.contains(&self.interval), "must be from 50 ms to 10 s")?;
        let enough = self.fresh >= self.interval * 2;
        check("fresh", enough, "must be two intervals at least, three as a rule: heartbeats get lost")
    }
}

impl Member {
    /// A member with addresses.
    #[must_use]
    pub fn new(name: impl Into<String>, addresses: impl Into<Vec<IpAddr>>) -> Self {
        Self { name: name.into(), addresses: addresses.into() }
    }
}

impl Vip {
    /// An address that any member may own and that is announced on all interfaces.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address, eligible: Eligible::All, interfaces: None }
    }
}

/// Checks members among each other.
pub(crate) fn check_members(members: &[Member]) -> Result<(), Invalid> {
    let mut names = BTreeSet::new();
    for Member { name, addresses } in members {
        let invalid = |reason: String| Err(Invalid::Member { name: name.clone(), reason });
        if !is_name(name) {
            return invalid(NAME.to_owned());
        }
        if !names.insert(name) {
            return invalid("another node has this name: remove one of them".to_owned());
        }
        if let Some(address) = addresses.iter().find(|address| !is_usable(**address)) {
            return invalid(format!(
                "{address} is no address that nodes can be reached at: correct its InternalIP"
            ));
        }
    }
    Ok(())
}

/// Checks addresses to announce among each other.
pub(crate) fn check_vips(vips: &[Vip]) -> Result<(), Invalid> {
    let mut addresses = BTreeSet::new();
    for &Vip { address, .. } in vips {
        let invalid = |reason: &str| Err(Invalid::Vip { address, reason: reason.to_owned() });
        if !is_usable(address) {
            return invalid("clients cannot send to it: use a global or private unicast address");
        }
        if !addresses.insert(address) {
            return invalid("it is listed twice: remove one of the two");
        }
    }
    Ok(())
}

/// Whether an address can be that of a node or a service: unicast, and not of one node or link only.
#[must_use]
pub fn is_usable(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(special || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
}

/// Longest name of a Kubernetes node, in bytes (RFC 1123 subdomain).
pub(crate) const MAX_NAME: usize = 253;
const NAME: &str = "a node's name has 1 to 253 bytes";
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_its_field() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = Settings::new("a");
            assert_eq!(settings.validate(), Ok(()));
            change(&mut settings);
            settings.validate().expect_err("it cannot work").to_string()
        };
        assert!(refused(|it| it.node_name.clear()).starts_with("node name: "));
        assert!(refused(|it| it.port = 0).starts_with("port: 0 is no port"));
        assert!(refused(|it| it.interval = Duration::from_millis(1)).starts_with("interval: "));
        assert!(refused(|it| it.fresh = Duration::from_millis(999)).starts_with("fresh: "));
    }

    #[test]
    fn members_and_addresses_that_nobody_can_reach_are_refused() {
        let member = |address: &str| [Member::new("a", [address.parse().unwrap()])];
        assert_eq!(check_members(&member("192.0.2.1")), Ok(()));
        for address in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "fe80::1", "::ffff:192.0.2.1", "ff02::1"] {
            let error = check_members(&member(address)).expect_err(address).to_string();
            assert!(error.starts_with(&format!("node a: {address} is no address")), "{error}");
            let error = check_vips(&[Vip::new(address.parse().unwrap())]).expect_err(address).to_string();
            assert!(error.starts_with(&format!("address {address}: ")), "{error}");
        }
    }

    #[test]
    fn names_and_addresses_are_there_once() {
        let twice = [Member::new("a", []), Member::new("a", [])];
        assert!(check_members(&twice).is_err_and(|error| error.to_string().contains("another node")));
        let twice = ["192.0.2.9"; 2].map(|address| Vip::new(address.parse().unwrap()));
        assert!(check_vips(&twice).is_err_and(|error| error.to_string().contains("listed twice")));
    }
}
