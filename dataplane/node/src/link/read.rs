//! What the kernel has: interfaces, addresses, neighbours, routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, State, XdpAttached,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};

use super::{
    Error, PROTOCOL, Route, Target,
    message::{full_length, get_link, get_route},
    socket::Socket,
};

/// An interface of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index in its namespace.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// The kernel's name for its type (`veth`, `vxlan`, …); none for hardware and loopback.
    pub kind: Option<String>,
    /// Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Largest packet, without the link layer's header.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it carries packets: up, with carrier, and its queue active (RFC 2863 `ifOperStatus`).
    pub operational: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Index of the peer (veth) or lower device, in that one's namespace.
    pub peer: Option<u32>,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<IpNetwork>,
}

/// All interfaces, with their addresses, in order of index.
pub(super) fn interfaces(socket: &mut Socket) -> Result<Vec<Interface>, Error> {
    let objects = socket.dump(&Message::GetLink(LinkMessage::default()), "listing interfaces")?;
    let mut interfaces: Vec<_> = objects
        .iter()
        .filter_map(|object| match object {
            Message::NewLink(link) => Some(interface(link)),
            _ => None,
        })
        .collect();
    interfaces.sort_by_key(|interface| interface.ifindex);
    for (ifindex, address) in addresses(socket)? {
        if let Ok(position) = interfaces.binary_search_by_key(&ifindex, |interface| interface.ifindex) {
            interfaces[position].addresses.push(address);
        }
    }
    Ok(interfaces)
}

/// The interface of that name, without its addresses.
pub(super) fn interface_by_name(socket: &mut Socket, name: &str) -> Result<Option<Interface>, Error> {
    match socket.run_one(get_link(name)) {
        Ok(Some(Message::NewLink(link))) => Ok(Some(interface(&link))),
        Err(error) if !is_missing(&error) => Err(error),
        Ok(_) | Err(_) => Ok(None),
    }
}

/// The UDP port of a VXLAN device.
pub(super) fn vxlan_port(socket: &mut Socket, name: &str) -> Result<Option<u16>, Error> {
    let Some(Message::NewLink(link)) = socket.run_one(get_link(name))? else { return Ok(None) };
    Ok(details_of(&link).vxlan_port)
}

/// All addresses with the index of their interface.
pub(super) fn addresses(socket: &mut Socket) -> Result<Vec<(u32, IpNetwork)>, Error> {
    let objects = socket.dump(&Message::GetAddress(AddressMessage::default()), "listing addresses")?;
    Ok(objects
        .iter()
        .filter_map(|object| match object {
            Message::NewAddress(message) => Some((message.header.index, address(message)?)),
            _ => None,
        })
        .collect())
}

/// Permanent neighbours with a MAC address: (ifindex, address, MAC).
pub(super) fn permanent_neighbours(socket: &mut Socket) -> Result<Vec<(u32, IpAddr, [u8; 6])>, Error> {
    let objects = socket.dump(&Message::GetNeighbour(NeighbourMessage::default()), "listing neighbours")?;
    Ok(objects
        .iter()
        .filter_map(|object| match object {
            Message::NewNeighbour(message) => neighbour(message),
            _ => None,
        })
        .collect())
}

/// The main table's routes that carry our protocol number.
pub(super) fn own_routes(socket: &mut Socket) -> Result<Vec<Route>, Error> {
    Ok(route_messages(socket, RouteProtocol::Other(PROTOCOL))?.iter().flat_map(routes).collect())
}

/// What the kernel answers to `ip route get`: interface and source address.
pub(super) fn route_to(socket: &mut Socket, address: IpAddr) -> Result<(Option<u32>, Option<IpAddr>), Error> {
    match socket.run_one(get_route(address)) {
        Ok(Some(Message::NewRoute(route))) => {
            let source = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::PrefSource(address) => ip(address),
                _ => None,
            });
            Ok((nexthops(&route).find_map(|(_, ifindex)| ifindex), source))
        }
        Err(error) if !has_errno(&error, &NO_ROUTE) => Err(error),
        Ok(_) | Err(_) => Ok((None, None)),
    }
}

/// The kernel's answers where a packet cannot go: no route, or one of a kind that refuses.
const NO_ROUTE: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];

/// Indexes of the interfaces that a default route leaves by.
pub(super) fn default_route_interfaces(socket: &mut Socket) -> Result<Vec<u32>, Error> {
    let messages = route_messages(socket, RouteProtocol::Unspec)?;
    let defaults = messages.iter().filter(|message| {
        message.header.destination_prefix_length == 0 && message.header.kind == RouteType::Unicast
    });
    Ok(defaults.flat_map(|message| nexthops(message).map(|hop| hop.1)).flatten().collect())
}

/// What else an interface has or is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// Its index in its namespace.
    pub ifindex: u32,
    /// The kernel's number of the XDP program on it; 0 if there are several.
    pub xdp: Option<u32>,
    /// UDP port, if it is a VXLAN device.
    pub vxlan_port: Option<u16>,
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
}

/// A default route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Of IPv4.
    pub v4: bool,
    /// Where to.
    pub gateway: Option<IpAddr>,
    /// The interface it leaves by.
    pub ifindex: u32,
    /// Lower ones are preferred.
    pub metric: u32,
}

/// Details of all interfaces.
pub(super) fn details(socket: &mut Socket) -> Result<Vec<Details>, Error> {
    let objects = socket.dump(&Message::GetLink(LinkMessage::default()), "listing interfaces")?;
    Ok(objects
        .iter()
        .filter_map(|object| match object {
            Message::NewLink(link) => Some(details_of(link)),
            _ => None,
        })
        .collect())
}

fn details_of(message: &LinkMessage) -> Details {
    let mut details =
        Details { ifindex: message.header.index, xdp: None, vxlan_port: None, controller: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Controller(index) => details.controller = (*index != 0).then_some(*index),
            LinkAttribute::Xdp(xdp) => details.xdp = xdp_program(xdp),
            LinkAttribute::LinkInfo(infos) => details.vxlan_port = vxlan_port_of(infos),
            _ => {}
        }
    }
    details
}

/// `IFLA_XDP_PROG_ID` is there if there is one program, `IFLA_XDP_ATTACHED` in any case.
fn xdp_program(xdp: &[LinkXdp]) -> Option<u32> {
    let attached = xdp.iter().any(|it| matches!(it, LinkXdp::Attached(how) if *how != XdpAttached::None));
    let program = xdp.iter().find_map(|it| match it {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    attached.then(|| program.unwrap_or(0))
}

fn vxlan_port_of(infos: &[LinkInfo]) -> Option<u16> {
    let vxlan = infos.iter().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(vxlan)) => Some(vxlan),
        _ => None,
    });
    vxlan.flatten().find_map(|attribute| match attribute {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    })
}

/// The main table's default routes, one for each next hop.
pub(super) fn default_routes(socket: &mut Socket) -> Result<Vec<DefaultRoute>, Error> {
    let messages = route_messages(socket, RouteProtocol::Unspec)?;
    let defaults = messages.iter().filter(|message| {
        message.header.destination_prefix_length == 0 && message.header.kind == RouteType::Unicast
    });
    let of = |message: &RouteMessage| {
        let v4 = message.header.address_family == AddressFamily::Inet;
        let metric = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
        let route = move |(gateway, ifindex): (Option<IpAddr>, Option<u32>)| {
            Some(DefaultRoute { v4, gateway, ifindex: ifindex?, metric: metric.unwrap_or(0) })
        };
        nexthops(message).filter_map(route).collect::<Vec<_>>()
    };
    Ok(defaults.flat_map(of).collect())
}

/// What a link message says, without addresses.
pub(super) fn interface(message: &LinkMessage) -> Interface {
    let flags = message.header.flags;
    let mut interface = Interface {
        ifindex: message.header.index,
        name: String::new(),
        kind: None,
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        operational: false,
        loopback: flags.contains(LinkFlags::Loopback),
        peer: None,
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(mac) => interface.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::OperState(state) => interface.operational = *state == State::Up,
            LinkAttribute::Link(peer) => interface.peer = Some(*peer),
            LinkAttribute::LinkInfo(infos) => {
                interface.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    interface
}

/// The address of an address message. IPv4 has the own one in LOCAL and the peer's in ADDRESS; IPv6 has
/// only ADDRESS unless there is a peer.
pub(super) fn address(message: &AddressMessage) -> Option<IpNetwork> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNetwork::new(address, message.header.prefix_len).ok()
}

/// Whether an operation failed because the object (interface, route) is not there.
pub(super) fn is_missing(error: &Error) -> bool {
    has_errno(error, &[libc::ENODEV, libc::ENOENT, libc::ESRCH])
}

/// Whether an operation failed with one of these.
pub(super) fn has_errno(error: &Error, errnos: &[i32]) -> bool {
    matches!(error, Error::Netlink { source, .. } if source.raw_os_error().is_some_and(|e| errnos.contains(&e)))
}

fn neighbour(message: &NeighbourMessage) -> Option<(u32, IpAddr, [u8; 6])> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((message.header.ifindex, address?, mac?))
}

/// Main-table routes of both families. The kernel filters by protocol unless that is `Unspec`; a filter by
/// table would fail where the table has never been used.
fn route_messages(socket: &mut Socket, protocol: RouteProtocol) -> Result<Vec<RouteMessage>, Error> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.protocol = protocol;
        let objects = match socket.dump(&Message::GetRoute(filter), "listing routes") {
            // A kernel booted without IPv6.
            Err(error) if has_errno(&error, &[libc::EOPNOTSUPP, libc::EAFNOSUPPORT]) => continue,
            result => result?,
        };
        found.extend(objects.into_iter().filter_map(|object| match object {
            Message::NewRoute(route) if route.header.table == RouteHeader::RT_TABLE_MAIN => Some(route),
            _ => None,
        }));
    }
    Ok(found)
}

/// One [`Route`] per next hop. Kinds that we never make (prohibit, local, …) give none.
fn routes(message: &RouteMessage) -> Vec<Route> {
    let Some(prefix) = destination(message) else { return Vec::new() };
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip(address),
        _ => None,
    });
    match message.header.kind {
        RouteType::Unreachable => vec![Route { prefix, target: Target::Unreachable }],
        RouteType::Unicast => nexthops(message)
            .filter_map(|(gateway, ifindex)| {
                let target = match gateway {
                    Some(gateway) => Target::Via(gateway),
                    None => Target::Device { ifindex: ifindex?, source },
                };
                Some(Route { prefix, target })
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// (gateway, ifindex) of each next hop.
fn nexthops(message: &RouteMessage) -> impl Iterator<Item = (Option<IpAddr>, Option<u32>)> {
    let several = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let single = several.is_none().then(|| {
        let ifindex = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => Some(*ifindex),
            _ => None,
        });
        (gateway(&message.attributes), ifindex)
    });
    let several = several.into_iter().flatten();
    several.map(|hop| (gateway(&hop.attributes), Some(hop.interface_index))).chain(single)
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    })
}

fn destination(message: &RouteMessage) -> Option<IpNetwork> {
    let length = message.header.destination_prefix_length;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let address = address.unwrap_or(any);
    IpNetwork::new(address, length.min(full_length(address))).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
