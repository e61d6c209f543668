//! Requests to the kernel, one function per kind.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use crate::attach::clsact;

use super::{Netns, PROTOCOL, Route, Target, socket::Request};

/// One end of a veth pair to be made.
pub(super) struct End<'a> {
    pub(super) name: &'a str,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    /// The namespace it is made in; the socket's own if there is none.
    pub(super) netns: Option<&'a Netns>,
}

impl End<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(self.name.into()),
            LinkAttribute::Address(self.mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
        ];
        message.attributes.extend(self.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())));
        message
    }
}

/// Makes a veth pair; both ends are down.
pub(super) fn new_veth(end: &End<'_>, peer: &End<'_>) -> Request {
    let mut message = end.message();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer.message()))),
    ]));
    let doing = format!("making veth {} with peer {}", end.name, peer.name);
    Request::new(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, doing)
}

/// Makes a VXLAN device that is told by metadata where each packet goes; it is down.
pub(super) fn new_vxlan(name: &str, mac: [u8; 6], port: u16, mtu: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(true),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(port),
            ])),
        ]),
    ];
    Request::new(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, format!("making vxlan device {name}"))
}

/// Looks an interface up by its name.
pub(super) fn get_link(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.into())];
    Request::new(Message::GetLink(message), 0, format!("looking up interface {name}"))
}

/// Deletes the interface of that name.
pub(super) fn delete_link(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.into())];
    Request::new(Message::DelLink(message), 0, format!("deleting interface {name}"))
}

/// Deletes the interface with that index; `name` is for the error.
pub(super) fn delete_link_index(ifindex: u32, name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    Request::new(Message::DelLink(message), 0, format!("deleting interface {name}"))
}

/// Brings an interface up.
pub(super) fn set_up(ifindex: u32, name: &str) -> Request {
    change_link(ifindex, name, LinkFlags::Up, Vec::new())
}

/// Sets flags and attributes of an interface.
pub(super) fn change_link(
    ifindex: u32,
    name: &str,
    flags: LinkFlags,
    attributes: Vec<LinkAttribute>,
) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = flags;
    message.header.change_mask = flags;
    message.attributes = attributes;
    Request::new(Message::SetLink(message), 0, format!("setting up interface {name}"))
}

/// Adds a single address (/32 or /128), usable at once: no duplicate address detection.
pub(super) fn add_address(ifindex: u32, name: &str, address: IpAddr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = full_length(address);
    message.header.index = ifindex;
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    let doing = format!("adding address {address} to {name}");
    Request::new(Message::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, doing)
}

/// A permanent neighbour entry: the kernel never asks for this address on that interface.
pub(super) fn set_neighbour(ifindex: u32, name: &str, address: IpAddr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        }),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    let doing = format!("adding neighbour {address} on {name}");
    Request::new(Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, doing)
}

/// All filters on one side of an interface's clsact qdisc; `side` is the minor number of `TC_H_CLSACT`'s child.
pub(super) fn get_filters(ifindex: u32, side: u16) -> Message {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor: side };
    Message::GetTrafficFilter(message)
}

/// A filter of a clsact qdisc, whosever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Lower ones see packets first.
    pub priority: u16,
    /// The kernel's name for its kind (`bpf`, `flower`, …).
    pub kind: String,
    /// Name of its program, if it is a `bpf` filter that says so.
    pub program: Option<String>,
    /// It is the one that the agent attaches.
    pub own: bool,
}

/// From a message; `None` for one that tells of a priority and no filter yet.
pub(super) fn filter(message: &Message) -> Option<Filter> {
    let Message::NewTrafficFilter(filter) = message else { return None };
    let TcHandle { major, minor } = filter.header.handle;
    let priority = (filter.header.info >> 16) as u16;
    let kind = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })?;
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let program = options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    });
    ((major, minor) != (0, 0)).then(|| Filter { priority, kind, program, own: is_own_filter(message) })
}

/// Whether a message tells of the classifier that [`clsact`] attaches.
pub(super) fn is_own_filter(message: &Message) -> bool {
    let Message::NewTrafficFilter(filter) = message else { return false };
    let TcHandle { major, minor } = filter.header.handle;
    let handle = (u32::from(major) << 16) | u32::from(minor);
    handle == clsact::HANDLE && filter.header.info >> 16 == u32::from(clsact::PRIORITY)
}

/// Removes an interface's clsact qdisc.
pub(super) fn delete_clsact(ifindex: u32) -> Request {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.parent = TcHandle::CLSACT;
    Request::new(
        Message::DelQueueDiscipline(message),
        0,
        format!("removing the clsact qdisc of interface {ifindex}"),
    )
}

/// Asks which route the node's own packets to an address take.
pub(super) fn get_route(address: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = full_length(address);
    message.attributes = vec![RouteAttribute::Destination(address.into())];
    Request::new(Message::GetRoute(message), 0, format!("asking for the route to {address}"))
}

/// Adds a route to the main table. `flags` say what happens if one for the prefix is there.
pub(super) fn add_route(route: &Route, flags: u16) -> Request {
    Request::new(
        Message::NewRoute(route_message(route)),
        NLM_F_CREATE | flags,
        format!("adding route {route}"),
    )
}

/// Adds a route through a gateway on a named interface (a link-local gateway needs it).
pub(super) fn add_route_on(ifindex: u32, route: &Route) -> Request {
    let mut message = route_message(route);
    message.attributes.push(RouteAttribute::Oif(ifindex));
    Request::new(Message::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL, format!("adding route {route}"))
}

/// Deletes exactly this route, of our protocol, from the main table.
pub(super) fn delete_route(route: &Route) -> Request {
    /// `RT_SCOPE_NOWHERE` matches every scope on deletion.
    const ANY_SCOPE: RouteScope = RouteScope::NoWhere;
    let mut message = route_message(route);
    message.header.scope = ANY_SCOPE;
    Request::new(Message::DelRoute(message), 0, format!("deleting route {route}"))
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let prefix = route.prefix;
    message.header = RouteHeader {
        address_family: family(prefix.network()),
        destination_prefix_length: prefix.prefix(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: match route.target {
            Target::Device { .. } => RouteScope::Link,
            Target::Via(_) | Target::Unreachable => RouteScope::Universe,
        },
        kind: match route.target {
            Target::Unreachable => RouteType::Unreachable,
            Target::Via(_) | Target::Device { .. } => RouteType::Unicast,
        },
        ..RouteHeader::default()
    };
    if prefix.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(prefix.network().into()));
    }
    match route.target {
        Target::Unreachable => {}
        Target::Via(gateway) => message.attributes.push(RouteAttribute::Gateway(gateway.into())),
        Target::Device { ifindex, source } => {
            message.attributes.push(RouteAttribute::Oif(ifindex));
            message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
        }
    }
    message
}

/// The netlink family of an address.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// 32 or 128.
pub(super) fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
