//! What a speaker and its peers are set to, validated.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::wire::{Family, GracefulRestart};

/// Who speaks: one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The BGP identifier: unique in the AS, as a rule the node's IPv4 address.
    pub router_id: Ipv4Addr,
    /// The AS number, where a peer's own setting has none.
    pub local_asn: u32,
    /// Where connections are taken. None: this side connects, and takes no connection.
    pub listen: Vec<SocketAddr>,
    /// The next hop of IPv4 routes where the session is over IPv6.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// The next hop of IPv6 routes where the session is over IPv4.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// Forwarding goes on while the speaker is away (RFC 4724): with eBPF programs it does.
    pub forwarding_preserved: bool,
}

/// One router, as users describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What errors, status and routes call it; unique.
    pub name: String,
    /// The AS number to show to it; none is the identity's.
    pub my_asn: Option<u32>,
    /// Its AS number.
    pub peer_asn: u32,
    /// Its address.
    pub peer_address: IpAddr,
    /// Its TCP port.
    pub peer_port: u16,
    /// How long either side waits for a message, in seconds; at least 3, or 0 for ever. The lower of both counts.
    pub hold_time: u16,
    /// How often to say that one is there, in seconds; none is a third of the hold time in force, the most there is.
    pub keepalive_time: Option<u16>,
    /// The address to connect from; none is the kernel's choice.
    pub source_address: Option<IpAddr>,
    /// How many routers packets to an external peer may pass, itself included; none is 1.
    pub ebgp_multihop: Option<u8>,
    /// The peer is at most so many hops away: packets from further are refused (RFC 5082). The peer must do the same.
    pub ttl_security: Option<u8>,
    /// The key of TCP MD5 signatures (RFC 2385).
    pub password: Option<Password>,
    /// Families to announce, if the peer takes them.
    pub families: BTreeSet<Family>,
    /// How long the peer keeps routes while this side restarts, in seconds; none: it does not.
    pub graceful_restart: Option<u16>,
    /// Wait for the peer's connection and never connect.
    pub passive: bool,
    /// The next hop of IPv4 routes; none is the session's own address, else the identity's.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// The next hop of IPv6 routes; none is the session's own address, else the identity's.
    pub next_hop_v6: Option<Ipv6Addr>,
}

/// A secret that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Takes a secret in; [`Peer::validate`] checks it.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret's bytes, for the kernel.
    pub(crate) fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Settings that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Of the node.
    #[error("{field}: {reason}")]
    Identity {
        /// As users write it.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Of a peer.
    #[error("peer {peer}: {field}: {reason}")]
    Peer {
        /// Its name.
        peer: String,
        /// As users write it.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Of a route.
    #[error("route {prefix}: {reason}")]
    Route {
        /// The route.
        prefix: ipnetwork::IpNetwork,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

impl Identity {
    /// A speaker that takes no connections and whose forwarding survives it.
    #[must_use]
    pub fn new(router_id: Ipv4Addr, local_asn: u32) -> Self {
        Self {
            router_id,
            local_asn,
            listen: Vec::new(),
            next_hop_v4: None,
            next_hop_v6: None,
            forwarding_preserved: true,
        }
    }

    /// Checks everything that can be without a peer.
    ///
    /// # Errors
    /// Something cannot work.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.router_id.is_unspecified() {
            let reason = "0.0.0.0 is no BGP identifier: use an IPv4 address of the node".to_owned();
            return Err(Invalid::Identity { field: "routerID", reason });
        }
        check_asn(self.local_asn).map_err(|reason| Invalid::Identity { field: "myASN", reason })
    }
}

impl Peer {
    /// A peer with the usual settings: port 179, hold time 90 s, both families, routes kept for 120 s.
    #[must_use]
    pub fn new(name: impl Into<String>, peer_address: IpAddr, peer_asn: u32) -> Self {
        Self {
            name: name.into(),
            my_asn: None,
            peer_asn,
            peer_address,
            peer_port: 179,
            hold_time: 90,
            keepalive_time: None,
            source_address: None,
            ebgp_multihop: None,
            ttl_security: None,
            password: None,
            families: Family::ALL.into(),
            graceful_restart: Some(120),
            passive: false,
            next_hop_v4: None,
            next_hop_v6: None,
        }
    }

    /// The AS number that it is shown.
    #[must_use]
    pub fn local_asn(&self, identity: &Identity) -> u32 {
        self.my_asn.unwrap_or(identity.local_asn)
    }

    /// Whether it is of the same AS.
    #[must_use]
    pub fn is_internal(&self, identity: &Identity) -> bool {
        self.local_asn(identity) == self.peer_asn
    }

    /// Checks everything that can be without the network.
    ///
    /// # Errors
    /// Something cannot work; the first of it.
    pub fn validate(&self, identity: &Identity) -> Result<(), Invalid> {
        let invalid = |(field, reason): (&'static str, String)| Invalid::Peer {
            peer: self.name.clone(),
            field,
            reason,
        };
        self.check_numbers().map_err(invalid)?;
        self.check_addresses(identity).map_err(invalid)?;
        self.check_distance(identity).map_err(invalid)
    }

    fn check_numbers(&self) -> Result<(), (&'static str, String)> {
        let check = |field, right: bool, reason: &str| right.then_some(()).ok_or((field, reason.to_owned()));
        check("name", !self.name.is_empty(), "a peer needs a name")?;
        self.my_asn.map_or(Ok(()), check_asn).map_err(|reason| ("myASN", reason))?;
        check_asn(self.peer_asn).map_err(|reason| ("peerASN", reason))?;
        check("peerPort", self.peer_port != 0, "0 is no port: 179 is BGP's")?;
        check(
            "holdTime",
            self.hold_time == 0 || self.hold_time >= 3,
            "must be 3 s at least, or 0 for never",
        )?;
        let keepalive_fits = self.keepalive_time.is_none_or(|time| time > 0 && time < self.hold_time);
        check("keepaliveTime", keepalive_fits, "must be shorter than holdTime, a third of it as a rule")?;
        let restart_fits =
            self.graceful_restart.is_none_or(|time| (1..=GracefulRestart::MAX_TIME).contains(&time));
        check("gracefulRestart", restart_fits, "must be from 1 s to 4095 s")?;
        let password = self.password.as_ref().map_or(1, |password| password.expose().len());
        check("password", (1..=MAX_PASSWORD).contains(&password), "must have 1 to 80 bytes (RFC 2385)")?;
        check("families", !self.families.is_empty(), "must have IPv4, IPv6 or both")
    }

    fn check_addresses(&self, identity: &Identity) -> Result<(), (&'static str, String)> {
        let address = self.peer_address;
        if address.is_unspecified() || address.is_multicast() {
            return Err(("peerAddress", format!("{address} is no address of a router")));
        }
        if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            let reason = "link-local peers are not supported: use the router's global address".to_owned();
            return Err(("peerAddress", reason));
        }
        if let Some(source) = self.source_address
            && source.is_ipv4() != address.is_ipv4()
        {
            let reason = format!("{source} and the peer's {address} are of different families");
            return Err(("sourceAddress", reason));
        }
        if self.passive && identity.listen.is_empty() {
            let reason = "a passive peer needs a port to listen on, and there is none".to_owned();
            return Err(("passive", reason));
        }
        Ok(())
    }

    fn check_distance(&self, identity: &Identity) -> Result<(), (&'static str, String)> {
        if self.ebgp_multihop == Some(0) {
            return Err(("ebgpMultiHop", "must be 1 at least: the peer itself".to_owned()));
        }
        if self.ebgp_multihop.is_some() && self.is_internal(identity) {
            let reason = "the peer is of the same AS, where any distance is allowed: remove it".to_owned();
            return Err(("ebgpMultiHop", reason));
        }
        match self.ttl_security {
            Some(0 | 255) => Err(("ttlSecurity", "must be from 1 to 254 hops".to_owned())),
            Some(_) if self.ebgp_multihop.is_some() => {
                Err(("ttlSecurity", "says how far the peer may be: remove ebgpMultiHop".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

fn check_asn(asn: u32) -> Result<(), String> {
    match asn {
        0 | u32::MAX | 65_535 | 23_456 => {
            Err(format!("{asn} is reserved: use one from 64512 to 65534, or your own"))
        }
        _ => Ok(()),
    }
}

/// Longest key of the kernel, in bytes (`TCP_MD5SIG_MAXKEYLEN`).
pub(crate) const MAX_PASSWORD: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Peer)) -> String {
        let identity = Identity::new([10, 0, 0, 1].into(), 64_512);
        let mut peer = Peer::new("tor-1", [10, 0, 0, 254].into(), 64_513);
        assert_eq!(peer.validate(&identity), Ok(()));
        change(&mut peer);
        peer.validate(&identity).expect_err("it cannot work").to_string()
    }

    #[test]
    fn a_password_is_never_shown() {
        let mut peer = Peer::new("tor-1", [10, 0, 0, 254].into(), 64_513);
        peer.password = Some(Password::new("s3cret"));
        assert!(!format!("{peer:?}").contains("s3cret"));
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_field() {
        assert!(refused(|peer| peer.peer_asn = 0).starts_with("peer tor-1: peerASN: 0 is reserved"));
        assert!(refused(|peer| peer.hold_time = 2).contains("holdTime"));
        assert!(refused(|peer| peer.keepalive_time = Some(90)).contains("keepaliveTime"));
        assert!(refused(|peer| peer.password = Some(Password::new("x".repeat(81)))).contains("password"));
        assert!(refused(|peer| peer.source_address = Some("::1".parse().unwrap())).contains("sourceAddress"));
        assert!(refused(|peer| peer.passive = true).contains("listen"));
        assert!(refused(|peer| peer.peer_address = "fe80::1".parse().unwrap()).contains("peerAddress"));
        let internal = |peer: &mut Peer| (peer.peer_asn, peer.ebgp_multihop) = (64_512, Some(2));
        assert!(refused(internal).contains("ebgpMultiHop"));
    }
}
