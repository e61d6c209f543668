//! Whether a pod's interface is still what was set up.

use std::{fmt, net::IpAddr};

use super::{
    Error, GATEWAY_MAC, Interface, Links, PodLinkSpec, Route, Target, pod::default_route, read,
    socket::Socket,
};

/// One end of a pod's veth pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In the node's namespace.
    Host,
    /// In the pod's.
    Pod,
}

/// One thing that is not as it was set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// There is no such interface.
    Missing(Side),
    /// The two interfaces are not ends of one pair.
    NotPeers,
    /// The interface is down.
    Down(Side),
    /// Another MAC address.
    Mac(Side),
    /// The two ends have different MTUs (the host's, the pod's): what is longer than one of them gets lost.
    Mtu(u32, u32),
    /// The pod lacks this address.
    Address(IpAddr),
    /// This route is missing.
    Route(Side, Route),
    /// The permanent neighbour entry is missing or has another MAC address.
    Neighbour(Side, IpAddr),
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host side",
            Self::Pod => "pod side",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(side) => write!(f, "{side}: no such interface"),
            Self::NotPeers => f.write_str("the pod's interface is not the peer of the host's"),
            Self::Down(side) => write!(f, "{side}: is down"),
            Self::Mac(side) => write!(f, "{side}: another MAC address"),
            Self::Mtu(host, pod) => write!(f, "the MTU is {host} on the host's side and {pod} in the pod"),
            Self::Address(address) => write!(f, "pod side: address {address} is missing"),
            Self::Route(side, route) => write!(f, "{side}: route {route} is missing"),
            Self::Neighbour(side, address) => write!(f, "{side}: neighbour {address} is missing or wrong"),
        }
    }
}

impl Links {
    /// Compares both sides of a pod's interface with what [`Links::create_pod`] makes of `spec`, but for the MTU, which
    /// may have been another then: what it is comes back. Additional addresses and routes in the pod are fine: another
    /// plugin may have added them.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with everything that differs.
    pub async fn check_pod(&self, spec: &PodLinkSpec) -> Result<u32, Error> {
        spec.validate()?;
        let name = spec.host_name.clone();
        let host = self.call(move |socket| End::read(socket, &name)).await?;
        let name = spec.pod_ifname.clone();
        let pod = spec.netns.run(move || End::read(&mut Socket::open()?, &name)).await??;
        let differences = spec.differences(host.as_ref(), pod.as_ref());
        match pod {
            Some(pod) if differences.is_empty() => Ok(pod.link.mtu),
            _ => Err(Error::Mismatch { name: spec.host_name.clone(), differences }),
        }
    }
}

/// What one end has.
struct End {
    link: Interface,
    addresses: Vec<IpAddr>,
    routes: Vec<Route>,
    neighbours: Vec<(IpAddr, [u8; 6])>,
}

impl End {
    fn read(socket: &mut Socket, name: &str) -> Result<Option<Self>, Error> {
        let Some(link) = read::interface_by_name(socket, name)? else { return Ok(None) };
        let ifindex = link.ifindex;
        let addresses = read::addresses(socket)?.into_iter().filter(|(index, _)| *index == ifindex);
        let neighbours = read::permanent_neighbours(socket)?.into_iter().filter(|entry| entry.0 == ifindex);
        Ok(Some(Self {
            link,
            addresses: addresses.map(|(_, address)| address.ip()).collect(),
            routes: read::own_routes(socket)?,
            neighbours: neighbours.map(|(_, address, mac)| (address, mac)).collect(),
        }))
    }
}

impl PodLinkSpec {
    fn differences(&self, host: Option<&End>, pod: Option<&End>) -> Vec<Difference> {
        let mut found = Vec::new();
        if let (Some(host), Some(pod)) = (host, pod) {
            if host.link.peer != Some(pod.link.ifindex) || pod.link.peer != Some(host.link.ifindex) {
                found.push(Difference::NotPeers);
            }
            // Not with the MTU of today: a pod keeps what its node had when it was added.
            if host.link.mtu != pod.link.mtu {
                found.push(Difference::Mtu(host.link.mtu, pod.link.mtu));
            }
        }
        match host {
            None => found.push(Difference::Missing(Side::Host)),
            Some(host) => {
                self.compare_link(Side::Host, &host.link, GATEWAY_MAC, &mut found);
                let neighbours = self.addresses.iter().map(|&address| (address, self.mac));
                compare(Side::Host, host, self.host_routes(host.link.ifindex), neighbours, &mut found);
            }
        }
        match pod {
            None => found.push(Difference::Missing(Side::Pod)),
            Some(pod) => {
                self.compare_link(Side::Pod, &pod.link, self.mac, &mut found);
                let missing = self.addresses.iter().filter(|address| !pod.addresses.contains(address));
                found.extend(missing.map(|&address| Difference::Address(address)));
                let target = Target::Device { ifindex: pod.link.ifindex, source: None };
                let link_routes = self.gateways().map(|gateway| Route { prefix: gateway.into(), target });
                let routes = link_routes.chain(self.gateways().map(default_route));
                let neighbours = self.gateways().map(|gateway| (gateway, GATEWAY_MAC));
                compare(Side::Pod, pod, routes, neighbours, &mut found);
            }
        }
        found
    }

    fn compare_link(&self, side: Side, link: &Interface, mac: [u8; 6], found: &mut Vec<Difference>) {
        if !link.up {
            found.push(Difference::Down(side));
        }
        if link.mac != Some(mac) {
            found.push(Difference::Mac(side));
        }
    }
}

fn compare(
    side: Side,
    end: &End,
    routes: impl Iterator<Item = Route>,
    neighbours: impl Iterator<Item = (IpAddr, [u8; 6])>,
    found: &mut Vec<Difference>,
) {
    let missing = routes.filter(|route| !end.routes.contains(route));
    found.extend(missing.map(|route| Difference::Route(side, route)));
    let missing = neighbours.filter(|neighbour| !end.neighbours.contains(neighbour));
    found.extend(missing.map(|(address, _)| Difference::Neighbour(side, address)));
}
