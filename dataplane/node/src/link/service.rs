//! The device that service CIDRs lead to, for what the node itself sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};

use super::{
    Error, GATEWAY_MAC, Interface, Links, Route, RouteReport, SERVICE_DEVICE, SERVICE_PEER, Target,
    message::{self, End},
    pod, read, route,
    socket::Socket,
    sysctl,
};

/// The veth pair of the node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceDevice {
    /// Index of `portolan0`: service CIDRs are routed out of it.
    pub ifindex: u32,
    /// Index of `portolan1`: what was sent to a service comes in here.
    pub peer_ifindex: u32,
}

/// Source addresses of what the node sends to services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceSources {
    /// For IPv4 services.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6 services.
    pub v6: Option<Ipv6Addr>,
}

impl ServiceSources {
    fn of(self, prefix: &IpNetwork) -> Option<IpAddr> {
        match prefix {
            IpNetwork::V4(_) => self.v4.map(IpAddr::V4),
            IpNetwork::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

impl Links {
    /// Makes the pair `portolan0` and `portolan1`, or corrects the one that is there. `mtu` is that of the
    /// uplinks: the answer's size follows from the route the request took, so a larger one would produce
    /// packets that fit no uplink once the backend turns out to be on another node.
    ///
    /// Neither end resolves addresses. A packet therefore leaves with the sender's own MAC address as its
    /// destination, which is why both ends have [`GATEWAY_MAC`].
    ///
    /// # Errors
    /// [`Error::NotOurs`] if a device of that name is something else.
    pub async fn ensure_service_device(&self, mtu: u32) -> Result<ServiceDevice, Error> {
        self.call(move |socket| {
            let (device, peer) = match find(socket)? {
                Some(pair) => pair,
                None => make(socket, mtu)?,
            };
            for link in [&device, &peer] {
                sysctl::set_host_device(&link.name)?;
                socket.run_one(correction(link, mtu))?;
            }
            for link in [&device, &peer] {
                pod::settle(socket, &link.name)?;
            }
            Ok(ServiceDevice { ifindex: device.ifindex, peer_ifindex: peer.ifindex })
        })
        .await
    }

    /// Makes the routes to the service device exactly these CIDRs, each with the node's address of its
    /// family as its source.
    ///
    /// # Errors
    /// If there is no service device, or the table cannot be read. Single refusals are in the report.
    pub async fn ensure_service_routes(
        &self,
        cidrs: &[IpNetwork],
        sources: ServiceSources,
    ) -> Result<RouteReport, Error> {
        let cidrs = cidrs.to_vec();
        self.call(move |socket| {
            let Some((device, _)) = find(socket)? else {
                return Err(Error::Missing { name: SERVICE_DEVICE.into() });
            };
            ensure_routes_out(socket, device.ifindex, &cidrs, sources)
        })
        .await
    }
}

/// Makes the routes out of a device of ours exactly these, each with the node's address of its family as its source.
pub(super) fn ensure_routes_out(
    socket: &mut Socket,
    ifindex: u32,
    prefixes: &[IpNetwork],
    sources: ServiceSources,
) -> Result<RouteReport, Error> {
    let out = |prefix: &IpNetwork| Route {
        prefix: *prefix,
        target: Target::Device { ifindex, source: sources.of(prefix) },
    };
    let desired: Vec<Route> = prefixes.iter().map(out).collect();
    let ours = |target: &Target| matches!(target, Target::Device { ifindex: index, .. } if *index == ifindex);
    route::ensure(socket, &desired, ours)
}

/// The pair that is there, if there is one.
fn find(socket: &mut Socket) -> Result<Option<(Interface, Interface)>, Error> {
    let not_ours = |link: &Interface| Error::NotOurs {
        name: link.name.clone(),
        found: match link.kind.as_deref() {
            Some("veth") => "a veth of another pair".into(),
            Some(kind) => format!("a {kind}"),
            None => "a hardware device".into(),
        },
    };
    let device = read::interface_by_name(socket, SERVICE_DEVICE)?;
    let peer = read::interface_by_name(socket, SERVICE_PEER)?;
    match (device, peer) {
        (None, None) => Ok(None),
        (Some(device), Some(peer))
            if device.kind.as_deref() == Some("veth")
                && device.peer == Some(peer.ifindex)
                && peer.peer == Some(device.ifindex) =>
        {
            Ok(Some((device, peer)))
        }
        (Some(link), _) | (None, Some(link)) => Err(not_ours(&link)),
    }
}

fn make(socket: &mut Socket, mtu: u32) -> Result<(Interface, Interface), Error> {
    let end = |name| End { name, mac: GATEWAY_MAC, mtu, netns: None };
    socket.run_one(message::new_veth(&end(SERVICE_DEVICE), &end(SERVICE_PEER)))?;
    find(socket)?.ok_or_else(|| Error::Vanished { name: SERVICE_DEVICE.into() })
}

/// Brings a device that resolves no addresses to what it should be.
pub(super) fn correction(link: &Interface, mtu: u32) -> super::socket::Request {
    let mut attributes = Vec::new();
    if link.mac != Some(GATEWAY_MAC) {
        attributes.push(LinkAttribute::Address(GATEWAY_MAC.to_vec()));
    }
    if link.mtu != mtu {
        attributes.push(LinkAttribute::Mtu(mtu));
    }
    message::change_link(link.ifindex, &link.name, LinkFlags::Up | LinkFlags::Noarp, attributes)
}
