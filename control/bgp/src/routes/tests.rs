use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::wire::{Dialect, Family, MAX_MESSAGE, Message, PathAttributes, Segment, Update};

const EXTERNAL: Dialect = Dialect { four_octet_as: true, internal: false };
const INTERNAL: Dialect = Dialect { four_octet_as: true, internal: true };

fn outbound(dialect: Dialect) -> Outbound {
    let next_hops = NextHops { ipv4: Some([10, 0, 0, 1].into()), ipv6: Some("2001:db8::1".parse().unwrap()) };
    Outbound::new(dialect, 64_512, Family::ALL.into(), next_hops)
}

fn route(prefix: &str) -> Route {
    Route::new(prefix.parse().unwrap())
}

fn tagged(prefix: &str, community: &str) -> Route {
    Route { communities: [community.parse().unwrap()].into(), ..route(prefix) }
}

/// Takes messages in as a router does.
fn apply(table: &mut BTreeMap<IpNetwork, PathAttributes>, updates: &[Update], dialect: Dialect) {
    for update in updates {
        let bytes = Message::Update(update.clone()).encode(dialect).expect("it fits a message");
        assert!(bytes.len() <= MAX_MESSAGE);
        let Ok(Some((Message::Update(read), _))) = Message::decode(&bytes, dialect) else {
            panic!("unreadable")
        };
        assert_eq!(read.fault, None, "{update:?}");
        read.unreachable().for_each(|prefix| drop(table.remove(prefix)));
        read.reachable().for_each(|prefix| drop(table.insert(*prefix, read.attributes.clone())));
    }
}

#[test]
fn prefixes_with_equal_attributes_share_a_message() {
    let routes = ["192.0.2.1/32", "192.0.2.2/32", "198.51.100.0/24", "2001:db8:f::1/128"].map(route);
    let updates = outbound(EXTERNAL).update(&desired(&routes, "a"));
    assert_eq!(updates.len(), 2);
    assert_eq!((updates[0].announced.len(), updates[1].reach.as_ref().unwrap().prefixes.len()), (3, 1));
    assert_eq!(updates[0].attributes.next_hop, Some(Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!(updates[1].attributes.next_hop, None);
    assert_eq!(updates[1].reach.as_ref().unwrap().next_hop, Some("2001:db8::1".parse().unwrap()));
}

#[test]
fn what_did_not_change_is_not_told() {
    let mut outbound = outbound(EXTERNAL);
    let before = desired(&[route("192.0.2.1/32"), route("192.0.2.2/32"), route("192.0.2.3/32")], "a");
    assert_eq!(outbound.update(&before).len(), 1);
    assert_eq!(outbound.update(&before), []);
    let after = [route("192.0.2.1/32"), tagged("192.0.2.2/32", "64512:1"), route("192.0.2.4/32")];
    let updates = outbound.update(&desired(&after, "a"));
    let announced: Vec<usize> = updates.iter().map(|update| update.announced.len()).collect();
    let withdrawn: Vec<usize> = updates.iter().map(|update| update.withdrawn.len()).collect();
    assert_eq!((announced, withdrawn), (vec![1, 1, 0], vec![0, 0, 1]));
    assert_eq!((outbound.told(Family::Ipv4), outbound.told(Family::Ipv6)), (3, 0));
}

#[test]
fn a_family_is_told_again_when_asked_for() {
    let mut outbound = outbound(EXTERNAL);
    let routes = desired(&[route("192.0.2.1/32"), route("2001:db8:f::1/128")], "a");
    outbound.update(&routes);
    outbound.tell_again(Family::Ipv6);
    let updates = outbound.update(&routes);
    assert_eq!((updates.len(), updates[0].reachable().count()), (1, 1));
    assert!(updates[0].reach.is_some());
}

#[test]
fn only_the_same_as_hears_preferences_and_only_others_a_path() {
    let routes = [Route { local_preference: Some(200), ..route("192.0.2.1/32") }, route("192.0.2.2/32")];
    let external = outbound(EXTERNAL).update(&desired(&routes, "a"));
    // A preference that is not told does not matter for grouping on the wire, but costs no more than a message.
    for update in &external {
        assert_eq!(update.attributes.local_preference, None);
        assert_eq!(update.attributes.as_path, Some(vec![Segment::sequence(vec![64_512])]));
    }
    let internal = outbound(INTERNAL).update(&desired(&routes, "a"));
    let preferences: Vec<_> = internal.iter().map(|update| update.attributes.local_preference).collect();
    assert_eq!(preferences, [Some(100), Some(200)]);
    assert!(internal.iter().all(|update| update.attributes.as_path == Some(Vec::new())));
}

#[test]
fn a_family_without_next_hop_is_not_told() {
    let next_hops = NextHops { ipv4: Some([10, 0, 0, 1].into()), ipv6: None };
    let mut outbound = Outbound::new(EXTERNAL, 64_512, Family::ALL.into(), next_hops);
    let updates = outbound.update(&desired(&[route("192.0.2.1/32"), route("2001:db8::1/128")], "a"));
    assert_eq!(updates.len(), 1);
    assert_eq!(outbound.told(Family::Ipv6), 0);
}

#[test]
fn a_route_goes_to_the_peers_it_names() {
    let named = Route { peers: Some(["a".to_owned()].into()), ..route("192.0.2.1/32") };
    let routes = [named, route("192.0.2.2/32")];
    assert_eq!((desired(&routes, "a").len(), desired(&routes, "b").len()), (2, 1));
}

#[test]
fn a_prefix_that_is_wanted_twice_has_the_tags_of_both() {
    let one = Route { local_preference: Some(50), ..tagged("192.0.2.1/24", "64512:1") };
    let two = Route { local_preference: Some(70), ..tagged("192.0.2.0/24", "64512:2") };
    for routes in [[one.clone(), two.clone()], [two, one]] {
        let desired = desired(&routes, "a");
        let tags = &desired[&"192.0.2.0/24".parse::<IpNetwork>().unwrap()];
        assert_eq!((tags.communities.len(), tags.local_preference), (2, Some(70)));
    }
}

#[test]
fn ten_thousand_addresses_take_no_more_messages_than_they_fill() {
    let addresses = (0..10_000_u32).map(|n| IpAddr::V4(Ipv4Addr::from(0xc612_0000 + n)));
    let routes: Vec<Route> =
        aggregate(addresses, Aggregation::default()).into_iter().map(Route::new).collect();
    let mut outbound = outbound(EXTERNAL);
    let all = desired(&routes, "a");
    // 5 bytes each, and about 50 of 4,096 for all else.
    assert_eq!(outbound.update(&all).len(), 13);
    assert_eq!(outbound.update(&Desired::new()).len(), 13);
}

#[test]
fn addresses_of_one_aggregate_are_one_prefix() {
    let addresses = ["192.0.2.1", "192.0.2.77", "198.51.100.9", "2001:db8::1", "2001:db8::2"];
    let of = |ipv4, ipv6| -> Vec<String> {
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        aggregate(addresses, Aggregation { ipv4, ipv6 }).iter().map(ToString::to_string).collect()
    };
    assert_eq!(of(24, 64), ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/64"]);
    assert_eq!(of(32, 128).len(), 5);
    assert_eq!(of(0, 0), ["0.0.0.0/0", "::/0"]);
    assert_eq!(of(200, 200).len(), 5);
}

#[test]
fn a_route_with_more_communities_than_fit_is_refused() {
    let communities = (0..1000).map(Community).collect();
    let error = Route { communities, ..route("192.0.2.1/32") }.validate().expect_err("too many");
    assert!(error.to_string().starts_with("route 192.0.2.1/32: its communities take 4000 bytes"), "{error}");
}

fn any_route() -> impl Strategy<Value = Route> {
    let prefix = prop_oneof![
        (0..64_u8, 24..=32_u8).prop_map(|(n, len)| IpNetwork::new([192, 0, 2, n].into(), len).unwrap()),
        (0..64_u16, 100..=128_u8).prop_map(|(n, len)| IpNetwork::new(
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, n].into(),
            len
        )
        .unwrap()),
    ];
    let tags = prop::collection::btree_set((0..3_u32).prop_map(Community), 0..2);
    (prefix, tags, prop::option::of(0..2_u32)).prop_map(|(prefix, communities, local_preference)| Route {
        communities,
        local_preference,
        ..Route::new(prefix)
    })
}

proptest! {
    #[test]
    fn a_router_has_what_is_desired_after_any_changes(
        states in prop::collection::vec(prop::collection::vec(any_route(), 0..40), 1..5),
        internal in any::<bool>(),
    ) {
        let dialect = if internal { INTERNAL } else { EXTERNAL };
        let (mut outbound, mut table) = (outbound(dialect), BTreeMap::new());
        for routes in states {
            let desired = desired(&routes, "a");
            let updates = outbound.update(&desired);
            apply(&mut table, &updates, dialect);
            prop_assert!(table.keys().eq(desired.keys()));
            for (prefix, tags) in &desired {
                prop_assert_eq!(&table[prefix].communities, &tags.communities);
            }
            prop_assert_eq!(outbound.update(&desired), vec![]);
        }
    }
}
