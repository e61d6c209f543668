//! Round trips of all that is written here, and arbitrary bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;

const DIALECT: Dialect = Dialect { four_octet_as: true, internal: true };

fn prefix(family: Family) -> BoxedStrategy<IpNetwork> {
    let network = |address: IpAddr, len| {
        let network = IpNetwork::new(address, len).expect("the length fits the family");
        IpNetwork::new(network.network(), len).expect("as before")
    };
    match family {
        Family::Ipv4 => {
            (any::<u32>(), 0..=32_u8).prop_map(move |(a, len)| network(Ipv4Addr::from(a).into(), len)).boxed()
        }
        Family::Ipv6 => (any::<u128>(), 0..=128_u8)
            .prop_map(move |(a, len)| network(Ipv6Addr::from(a).into(), len))
            .boxed(),
    }
}

fn afi_safi() -> impl Strategy<Value = AfiSafi> {
    (any::<u16>(), any::<u8>()).prop_map(|(afi, safi)| AfiSafi { afi, safi })
}

fn capability() -> impl Strategy<Value = Capability> {
    let restart =
        (any::<bool>(), any::<bool>(), 0..=GracefulRestart::MAX_TIME, vec((afi_safi(), any::<bool>()), 0..3));
    prop_oneof![
        afi_safi().prop_map(Capability::Multiprotocol),
        Just(Capability::RouteRefresh),
        restart.prop_map(|(restarted, notifications, time, families)| {
            Capability::GracefulRestart(GracefulRestart { restarted, notifications, time, families })
        }),
        any::<u32>().prop_map(Capability::FourOctetAs),
        (128_u8.., vec(any::<u8>(), 0..100)).prop_map(|(code, value)| Capability::Other { code, value }),
    ]
}

fn open() -> impl Strategy<Value = Message> {
    (any::<u16>(), any::<u16>(), any::<u32>(), vec(capability(), 0..8)).prop_map(
        |(two_octet_asn, hold_time, id, capabilities)| {
            let router_id = Ipv4Addr::from(id);
            Message::Open(Open { two_octet_asn, hold_time, router_id, capabilities })
        },
    )
}

fn attributes() -> impl Strategy<Value = PathAttributes> {
    let segment = (1..=4_u8, vec(any::<u32>(), 1..5)).prop_map(|(kind, asns)| Segment { kind, asns });
    let large = (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(asn, first, second)| LargeCommunity {
        asn,
        first,
        second,
    });
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    (
        (origin, vec(segment, 0..3), any::<u32>()),
        (option::of(any::<u32>()), option::of(any::<u32>())),
        (btree_set(any::<u32>().prop_map(Community), 0..100), btree_set(large, 0..30)),
    )
        .prop_map(
            |((origin, as_path, next_hop), (med, local_preference), (communities, large_communities))| {
                PathAttributes {
                    origin: Some(origin),
                    as_path: Some(as_path),
                    next_hop: Some(next_hop.into()),
                    med,
                    local_preference,
                    communities,
                    large_communities,
                }
            },
        )
}

fn update() -> impl Strategy<Value = Message> {
    let v4 = || vec(prefix(Family::Ipv4), 0..20);
    let v6 = || vec(prefix(Family::Ipv6), 0..20);
    let hop = any::<u128>().prop_map(|hop| Some(IpAddr::V6(hop.into())));
    let family = AfiSafi::from(Family::Ipv6);
    let reach = (hop, v6()).prop_map(move |(next_hop, prefixes)| Reach { family, next_hop, prefixes });
    let unreach = v6().prop_map(move |prefixes| Unreach { family, prefixes });
    (v4(), attributes(), v4(), option::of(reach), option::of(unreach)).prop_map(
        |(withdrawn, attributes, announced, reach, unreach)| {
            Message::Update(Update { withdrawn, attributes, announced, reach, unreach, fault: None })
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let notification = (any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..300))
        .prop_map(|(code, subcode, data)| Message::Notification(Notification { code, subcode, data }));
    let refresh =
        (afi_safi(), any::<u8>()).prop_map(|(family, subtype)| Message::RouteRefresh { family, subtype });
    prop_oneof![open(), update(), notification, Just(Message::Keepalive), refresh]
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_it_was(message in message()) {
        let bytes = message.encode(DIALECT).unwrap();
        let read = Message::decode(&bytes, DIALECT).unwrap();
        prop_assert_eq!(read, Some((message, bytes.len())));
    }

    #[test]
    fn half_a_message_is_waited_for(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = message.encode(DIALECT).unwrap();
        let cut = cut.index(bytes.len());
        prop_assert_eq!(Message::decode(&bytes[..cut], DIALECT), Ok(None));
    }

    #[test]
    fn no_bytes_panic(
        kind in 0..7_u8,
        body in vec(any::<u8>(), 0..200),
        four_octet_as in any::<bool>(),
        internal in any::<bool>(),
    ) {
        let len = u16::try_from(HEADER + body.len()).unwrap();
        let bytes = [&[0xff; 16][..], &len.to_be_bytes(), &[kind], &body].concat();
        let _ = Message::decode(&bytes, Dialect { four_octet_as, internal });
        let _ = Message::decode(&body, DIALECT);
    }

    #[test]
    fn no_damage_to_an_update_panics(
        message in update(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = message.encode(DIALECT).unwrap();
        let at = HEADER + at.index(bytes.len() - HEADER);
        bytes[at] = byte;
        if let Ok(Some((Message::Update(update), _))) = Message::decode(&bytes, DIALECT) {
            // No prefix is both, unless it was announced and withdrawn before.
            let _ = (update.reachable().count(), update.unreachable().count());
        }
    }
}

/// An UPDATE with one IPv4 prefix and the given attributes.
fn read(attributes: &[u8]) -> Result<Update, Malformed> {
    read_as(attributes, DIALECT)
}

fn read_as(attributes: &[u8], dialect: Dialect) -> Result<Update, Malformed> {
    let field = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    let body = [&[0, 0], &field[..], attributes, &[24, 192, 0, 2]].concat();
    let len = u16::try_from(HEADER + body.len()).unwrap().to_be_bytes();
    let bytes = [&[0xff; 16][..], &len, &[UPDATE], &body].concat();
    match Message::decode(&bytes, dialect)? {
        Some((Message::Update(update), _)) => Ok(update),
        other => panic!("{other:?}"),
    }
}

const IGP: &[u8] = &[0x40, 1, 1, 0];
const PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfb, 0xf0];
const HOP: &[u8] = &[0x40, 3, 4, 10, 0, 0, 1];

#[test]
fn a_good_update_is_reachable() {
    let update = read(&[IGP, PATH, HOP].concat()).unwrap();
    assert_eq!(update.fault, None);
    assert_eq!(update.reachable().collect::<Vec<_>>(), [&"192.0.2.0/24".parse::<IpNetwork>().unwrap()]);
    assert_eq!(update.attributes.as_path, Some(vec![Segment::sequence(vec![64_496])]));
}

#[test]
fn a_malformed_attribute_withdraws_its_routes_and_keeps_the_session() {
    let cases: [(&str, &[&[u8]]); 9] = [
        ("ORIGIN without a known value", &[&[0x40, 1, 1, 7], PATH, HOP]),
        ("ORIGIN of two bytes", &[&[0x40, 1, 2, 0, 0], PATH, HOP]),
        ("AS_PATH with an empty segment", &[IGP, &[0x40, 2, 2, 2, 0], HOP]),
        ("AS_PATH cut short", &[IGP, &[0x40, 2, 4, 2, 1, 0, 0], HOP]),
        ("no NEXT_HOP", &[IGP, PATH]),
        ("communities of three bytes", &[IGP, PATH, HOP, &[0xc0, 8, 3, 0, 0, 0]]),
        ("large communities of four bytes", &[IGP, PATH, HOP, &[0xc0, 32, 4, 0, 0, 0, 0]]),
        ("optional ORIGIN", &[&[0xc0, 1, 1, 0], PATH, HOP]),
        ("an attribute longer than the list", &[IGP, PATH, HOP, &[0x80, 4, 9, 0]]),
    ];
    for (what, attributes) in cases {
        let update = read(&attributes.concat()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(update.fault.is_some(), "{what}");
        assert_eq!((update.reachable().count(), update.unreachable().count()), (0, 1), "{what}");
    }
}

#[test]
fn an_attribute_without_meaning_is_passed_by() {
    let external = Dialect { internal: false, ..DIALECT };
    let preference = &[0x40, 5, 2, 0, 0][..];
    assert_eq!(read_as(&[IGP, PATH, HOP, preference].concat(), external).unwrap().fault, None);
    assert!(read(&[IGP, PATH, HOP, preference].concat()).unwrap().fault.is_some());
    // Twice: the first one counts.
    let update = read(&[IGP, PATH, HOP, &[0x40, 3, 4, 9, 9, 9, 9]].concat()).unwrap();
    assert_eq!((update.fault, update.attributes.next_hop), (None, Some(Ipv4Addr::new(10, 0, 0, 1))));
    // Optional and unknown.
    assert_eq!(read(&[IGP, PATH, HOP, &[0xc0, 200, 2, 1, 2]].concat()).unwrap().fault, None);
}

#[test]
fn what_leaves_prefixes_unknown_ends_the_session() {
    let cases: [(&str, &[u8], u8); 3] = [
        ("a multiprotocol attribute that is cut short", &[0x80, 14, 3, 0, 2, 1], 9),
        ("a prefix of 200 bits", &[0x80, 15, 4, 0, 2, 1, 200], 9),
        ("an unknown attribute that everybody must know", &[0x40, 99, 0], 2),
    ];
    for (what, attributes, subcode) in cases {
        let error = read(attributes).expect_err(what);
        let Notification { code, subcode: said, .. } = error.notification;
        assert_eq!((code, said), (code::UPDATE, subcode), "{what}");
    }
}

#[test]
fn headers_are_refused_as_the_rfc_says() {
    let keepalive = Message::Keepalive.encode(DIALECT).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = keepalive.clone();
        bytes[at] = byte;
        Message::decode(&bytes, DIALECT).expect_err("it is wrong").notification
    };
    assert_eq!(with(3, 0), Notification { code: 1, subcode: 1, data: vec![] });
    assert_eq!(with(17, 20), Notification { code: 1, subcode: 2, data: vec![0, 20] });
    assert_eq!(with(18, 9), Notification { code: 1, subcode: 3, data: vec![9] });
}

#[test]
fn another_version_is_answered_with_ours() {
    let open = Open { two_octet_asn: 1, hold_time: 90, router_id: [1, 2, 3, 4].into(), capabilities: vec![] };
    let mut bytes = Message::Open(open).encode(DIALECT).unwrap();
    bytes[HEADER] = 3;
    let error = Message::decode(&bytes, DIALECT).expect_err("version 3");
    assert_eq!(error.notification, Notification { code: 2, subcode: 1, data: vec![0, 4] });
}

#[test]
fn as_numbers_that_need_four_bytes_reach_a_peer_that_reads_two() {
    let old = Dialect { four_octet_as: false, internal: false };
    let attributes = PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(vec![Segment::sequence(vec![4_200_000_000])]),
        next_hop: Some([10, 0, 0, 1].into()),
        ..PathAttributes::default()
    };
    let announced = vec!["192.0.2.1/32".parse().unwrap()];
    let bytes = Message::Update(Update { attributes, announced, ..Update::default() }).encode(old).unwrap();
    let Ok(Some((Message::Update(read), _))) = Message::decode(&bytes, old) else { panic!("unreadable") };
    assert_eq!(read.attributes.as_path, Some(vec![Segment::sequence(vec![AS_TRANS.into()])]));
    let as4_path = [&[0xc0, 17, 6, 2, 1][..], &4_200_000_000_u32.to_be_bytes()].concat();
    assert!(bytes.windows(as4_path.len()).any(|window| window == as4_path), "{bytes:?}");
}

#[test]
fn end_of_rib_is_known_for_both_families() {
    for family in Family::ALL {
        let bytes = Message::Update(Update::end_of_rib(family)).encode(DIALECT).unwrap();
        let Ok(Some((Message::Update(read), _))) = Message::decode(&bytes, DIALECT) else { panic!() };
        assert_eq!((read.fault, read.ends_rib_of()), (None, Some(family.into())));
    }
    assert_eq!(read(&[IGP, PATH, HOP].concat()).unwrap().ends_rib_of(), None);
}

#[test]
fn a_shutdown_message_is_cut_and_read() {
    let sent = Notification::cease(Cease::AdministrativeShutdown, "node drained");
    assert_eq!(sent.shutdown_message(), Some("node drained"));
    assert_eq!(sent.to_string(), "administrative shutdown (6/2): \"node drained\"");
    let long = Notification::cease(Cease::AdministrativeShutdown, &"ä".repeat(200));
    assert_eq!(long.shutdown_message().map(str::len), Some(254));
    // One that lies about its length.
    assert_eq!(Notification { code: 6, subcode: 2, data: vec![9, b'x'] }.shutdown_message(), None);
}

#[test]
fn communities_are_read_and_shown_as_users_write_them() {
    for text in ["64512:100", "no-export", "graceful-shutdown", "0:0"] {
        assert_eq!(text.parse::<Community>().unwrap().to_string(), text);
    }
    assert_eq!("65535:65281".parse::<Community>().unwrap().to_string(), "no-export");
    assert_eq!("64512:1:2".parse::<LargeCommunity>().unwrap().to_string(), "64512:1:2");
    for bad in ["64512", "64512:70000", "64512:1:2", "", "no-such"] {
        assert!(bad.parse::<Community>().is_err(), "{bad}");
    }
}
