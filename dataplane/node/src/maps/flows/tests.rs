use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use portolan_abi::{Words, exit, state};
use portolan_core::wire::proto;

use super::*;
use crate::{Object, Sizes};

type Key = FlowKey<Words<1>>;

fn object(flows: u32) -> Object {
    Object::load(None, Sizes { flows, ..Sizes::small() }).expect("loading the programs needs root")
}

fn key(client: u32, port: u16) -> Key {
    let src = Words([client.to_be()]);
    let ports = u32::from(port) | u32::from(80u16.to_be()) << 16;
    FlowKey { src, dst: Words::<1>::from_octets([10, 96, 0, 1]), ports, proto: proto::TCP.into() }
}

/// A flow that tells its key.
fn flow(key: &Key, state: u8, seen: u32) -> Flow<Words<1>> {
    Flow {
        seen,
        src: key.dst,
        dst: key.src,
        ports: key.ports,
        ifindex: key.ports ^ key.src.0[0],
        mac: [0; 3],
        exit: exit::UPLINK,
        state,
        service: 3,
        backend: 4,
        from_ifindex: 2,
        from_mac: [0; 3],
        from: exit::UPLINK,
        beat: 0,
    }
}

/// Tables of this many entries, half of what there is room for.
fn with_table(flows: u32, test: impl FnOnce(&FlowTable<Words<1>>)) {
    let object = object(flows);
    test(&object.tables().expect("the tables open").v4.flows);
}

#[test]
fn an_entry_that_a_packet_refreshed_after_it_was_listed_stays() {
    with_table(4096, |table| {
        let key = key(7, 1);
        let listed = flow(&key, 0, 100);
        for refreshed in [Flow { seen: 101, ..listed }, Flow { backend: 5, ..listed }] {
            table.insert(&key, &refreshed).unwrap();
            assert!(!table.remove_unchanged(&key, &listed).unwrap());
            assert_eq!(table.get(&key).unwrap(), Some(refreshed));
        }
        table.insert(&key, &listed).unwrap();
        assert!(table.remove_unchanged(&key, &listed).unwrap());
        assert!(!table.remove_unchanged(&key, &listed).unwrap(), "it is gone already");
    });
}

#[test]
fn an_entry_that_is_refreshed_while_it_is_swept_stays() {
    with_table(4096, |table| {
        let key = key(7, 1);
        table.insert(&key, &flow(&key, 0, 100)).unwrap();
        let removed = table.sweep(|key, flow| {
            table.insert(key, &Flow { seen: flow.seen + 1, ..*flow }).unwrap();
            Visit::Remove
        });
        assert_eq!(removed.unwrap(), 0);
        assert_eq!(table.get(&key).unwrap().map(|flow| flow.seen), Some(101));
    });
}

#[test]
fn all_that_is_written_is_listed_until_it_is_swept() {
    with_table(1 << 14, |table| {
        let keys: Vec<Key> = (0..1000).map(|number| key(0x0a00_0000 + number, 9)).collect();
        table.insert_all(keys.iter().map(|key| (*key, flow(key, 0, 1)))).unwrap();
        let listed: BTreeMap<_, _> = table.dump().unwrap().into_iter().collect();
        assert_eq!(listed.len(), keys.len());
        let odd = |key: &Key, _: &Flow<_>| match key.src.0[0].to_be() & 1 {
            0 => Visit::Keep,
            _ => Visit::Remove,
        };
        assert!(keys.iter().all(|key| listed.get(key) == Some(&flow(key, 0, 1))));
        assert_eq!(table.sweep(odd).unwrap(), 500);
        assert_eq!(table.dump().unwrap().len(), 500);
        assert!(keys.iter().all(|key| table.get(key).unwrap().is_some() == (key.src.0[0].to_be() & 1 == 0)));
    });
}

/// Of `count` flows, how many a table of as many entries does not keep, in percent.
fn lost(count: u32, flows: impl Fn(u32) -> Key) -> f64 {
    let mut kept = 0;
    with_table(count, |table| {
        table.insert_all((0..count).map(&flows).map(|key| (key, flow(&key, state::ESTABLISHED, 1)))).unwrap();
        kept = table.dump().unwrap().len();
    });
    f64::from(count - u32::try_from(kept).unwrap()) * 100.0 / f64::from(count)
}

#[test]
fn flows_of_every_pattern_are_spread_over_all_buckets() {
    // Eight slots for four flows each: of random keys, one in fifty finds them all taken.
    for (pattern, lost) in [
        ("one client, all ports", lost(1 << 16, |number| key(0x0a00_0001, number as u16))),
        ("one port, all clients", lost(1 << 16, |number| key(0x0a00_0000 + number, 4242))),
        ("few of both", lost(1 << 16, |number| key(0x0a00_0000 + number / 256, (number % 256) as u16))),
        ("far apart", lost(1 << 16, |number| key(number << 16, (number >> 8) as u16))),
    ] {
        assert!(lost < 3.0, "{pattern}: {lost} % were displaced");
    }
}

#[test]
fn a_flood_of_opening_flows_displaces_no_answered_one() {
    with_table(1 << 12, |table| {
        let (old, now) = (1000, 1100);
        let alive: Vec<Key> = (0..2000).map(|number| key(0x0a00_0000 + number, 9)).collect();
        table.insert_all(alive.iter().map(|key| (*key, flow(key, state::ESTABLISHED, old)))).unwrap();
        let alive: HashSet<Key> = table.dump().unwrap().into_iter().map(|(key, _)| key).collect();
        table
            .insert_all(
                (0..100_000).map(|number| key(0xc000_0000 + number, 1)).map(|key| (key, flow(&key, 0, now))),
            )
            .unwrap();
        let gone = alive.iter().filter(|key| table.get(key).unwrap().is_none()).count();
        // Where a bucket was full of answered ones, there is nobody else to displace.
        assert!(gone * 200 < alive.len(), "{gone} of {} are gone", alive.len());
    });
}

#[test]
fn many_writers_at_once_leave_each_key_at_most_once_and_no_entry_mixed_up() {
    with_table(64, |table| {
        let (writers, rounds) = (4, 20_000);
        let claimed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for writer in 0..writers {
                let claimed = &claimed;
                scope.spawn(move || {
                    for round in 0..rounds {
                        // All writers want the same few keys, in the same few buckets.
                        let key = key(1 + round % 7, (round * (writer + 1) % 61) as u16);
                        table.insert(&key, &flow(&key, 0, round)).ok();
                        claimed.fetch_add(1, Ordering::Relaxed);
                        if let Some(found) = table.get(&key).unwrap() {
                            assert_eq!(Flow { seen: 0, ..found }, flow(&key, 0, 0));
                        }
                        if round % 3 == 0 {
                            table.remove(&key).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(claimed.into_inner(), (writers * rounds) as usize);
        let left = table.dump().unwrap();
        let keys: HashSet<Key> = left.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys.len(), left.len(), "no key is there twice");
        assert!(left.iter().all(|(key, found)| Flow { seen: 0, ..*found } == flow(key, 0, 0)));
    });
}

#[test]
fn a_mark_is_added_to_what_the_state_says() {
    with_table(4096, |table| {
        let key = key(7, 1);
        let marked = state::RESET | state::CLIENT_FIN;
        table.insert(&key, &Flow { state: state::CLIENT_FIN, ..flow(&key, 0, 100) }).unwrap();
        assert_eq!(table.sweep(|_, _| Visit::Mark(state::RESET)).unwrap(), 0, "nothing is removed");
        assert_eq!(table.get(&key).unwrap().map(|flow| flow.state), Some(marked));
    });
}
