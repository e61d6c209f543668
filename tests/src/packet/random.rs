//! Random packets that get far.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::build::{Body, Packet, Sum};
use super::fixture::site::Site;

/// The site, in either family.
pub fn sites() -> impl Strategy<Value = Site> + Clone {
    select(vec![Site::v4(), Site::v6()])
}

/// Packets that get far: every kind of body between addresses that mean something.
pub fn packets(sites: impl Strategy<Value = Site>) -> impl Strategy<Value = Packet> {
    let addresses = |site: &Site| {
        vec![
            site.a.addr,
            site.b.addr,
            site.remote,
            site.node,
            site.client,
            site.vip,
            site.vip2,
            site.lb,
            site.hairpin,
        ]
    };
    let ports = || select(vec![0u16, 53, 80, 81, 443, 8080, 30_443, 61_000]);
    let bodies = prop_oneof![
        (ports(), ports(), any::<u8>(), 0usize..11, prop::collection::vec(any::<u8>(), 0..80)).prop_map(
            |(source, destination, flags, options, data)| Body::Tcp {
                ports: (source, destination),
                seq: 7,
                ack: 9,
                flags,
                options: vec![1; 4 * options],
                data,
            }
        ),
        (ports(), ports(), prop::collection::vec(any::<u8>(), 0..80)).prop_map(
            |(source, destination, data)| {
                Body::Udp { ports: (source, destination), sum: Sum::Right, data }
            }
        ),
        (any::<u8>(), any::<u8>(), any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..120))
            .prop_map(|(kind, code, rest, data)| Body::Icmp { kind, code, rest, data }),
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..80))
            .prop_map(|(proto, data)| Body::Other { proto, data }),
    ];
    (sites, any::<(Index, Index)>(), any::<u8>(), bodies).prop_map(move |(site, (src, dst), ttl, body)| {
        let addresses = addresses(&site);
        let packet = Packet { body, ..Packet::udp((*src.get(&addresses), 0), (*dst.get(&addresses), 0)) };
        let packet = packet.ttl(ttl);
        if packet.src == site.b.addr { site.from_b(packet) } else { site.from_a(packet) }
    })
}

/// An ICMP error that quotes a packet.
pub fn errors(sites: impl Strategy<Value = Site>) -> impl Strategy<Value = Packet> {
    (packets(sites), select(vec![1u8, 2, 3, 4, 11, 12]), any::<u8>(), 0usize..60).prop_map(
        |(about, kind, code, len)| {
            let error = Packet::icmp(about.dst, about.src, kind, code, [0; 4], about.quoted(len));
            error.macs(about.macs.0, about.macs.1)
        },
    )
}

/// Packets inside of another, most of them of a node to a pod.
pub fn carried(sites: impl Strategy<Value = Site>) -> impl Strategy<Value = Packet> {
    (sites, any::<(Index, Index)>(), select(vec![4u8, 41])).prop_flat_map(|(site, (src, dst), proto)| {
        let src = *src.get(&[site.peer, site.peer, site.peer, site.node, site.client]);
        let dst = *dst.get(&[site.a.addr, site.b.addr, site.remote, site.node]);
        let inside = prop_oneof![3 => packets(Just(site)), 1 => errors(Just(site))];
        inside.prop_map(move |inner| site.from_wire(Packet::other(src, dst, proto, inner.ip())))
    })
}

/// Packets with some bytes changed, cut, or with more behind them.
pub fn damaged(sites: impl Strategy<Value = Site> + Clone) -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::collection::vec((any::<Index>(), any::<u8>()), 0..6);
    let tail = prop::collection::vec(any::<u8>(), 0..20);
    let cut = prop::option::of(any::<Index>());
    let packet = prop_oneof![packets(sites.clone()), errors(sites.clone()), carried(sites)];
    (packet, damage, cut, tail).prop_map(|(packet, damage, cut, tail)| {
        let mut bytes = packet.bytes();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(len) = cut {
            bytes.truncate(len.index(bytes.len() + 1));
        }
        bytes.extend(tail);
        bytes
    })
}
