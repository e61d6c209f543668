//! Which node is first for an address: rendezvous hashing (Thaler and Ravishankar, 1998).
//!
//! Every node weighs every candidate by a hash of address and name; the heaviest is first. A candidate that goes leaves the order
//! of all others as it was, so that only what it had moves. Nodes of different versions must agree: the hash never changes,
//! and its values are in the tests.

use std::net::IpAddr;

/// A node's part of the hash.
pub(crate) fn node_key(name: &str) -> u64 {
    mix(fnv(name.as_bytes().iter().copied()))
}

/// An address's part of the hash.
pub(crate) fn vip_key(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => mix(fnv([4].into_iter().chain(v4.octets()))),
        IpAddr::V6(v6) => mix(fnv([6].into_iter().chain(v6.octets()))),
    }
}

/// How heavy a node is for an address.
pub(crate) fn weight(vip: u64, node: u64) -> u64 {
    mix(vip ^ node.rotate_left(32))
}

/// FNV-1a with 64 bits.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The last step of MurmurHash3 with 64 bits: every bit of the result depends on every bit of the argument.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn first<'a>(vip: IpAddr, nodes: &[&'a str]) -> &'a str {
        let key = vip_key(vip);
        nodes.iter().max_by_key(|name| (weight(key, node_key(name)), **name)).expect("there are nodes")
    }

    fn vip(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0xc633_6400 + number).into()
    }

    #[test]
    fn the_hash_is_what_other_versions_have() {
        // FNV-1a's own test vectors.
        assert_eq!(fnv([].into_iter()), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"foobar".iter().copied()), 0x8594_4171_f739_67e8);
        assert_eq!(mix(0), 0);
        let owners: Vec<&str> =
            (0..12).map(|number| first(vip(number), &["node1", "node2", "node3"])).collect();
        assert_eq!(
            owners.join(" "),
            "node1 node3 node1 node3 node2 node1 node1 node3 node3 node2 node2 node2"
        );
        let six: IpAddr = "2001:db8:f::10".parse().unwrap();
        assert_eq!(weight(vip_key(six), node_key("node1")), 12_300_052_971_967_787_189);
    }

    #[test]
    fn addresses_are_spread_evenly() {
        let names: Vec<String> = (0..10).map(|number| format!("ip-10-0-0-{number}.internal")).collect();
        let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for number in 0..10_000 {
            *counts.entry(first(vip(number), &nodes)).or_default() += 1;
        }
        // Mean 1,000, standard deviation 30.
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
        assert_eq!(counts.len(), 10);
    }

    proptest! {
        #[test]
        fn a_node_that_goes_moves_its_own_addresses_only(count in 2_usize..20, gone in 0_usize..20, seed: u32) {
            let names: Vec<String> = (0..count).map(|number| format!("node{}", number + seed as usize % 1000)).collect();
            let all: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut rest = all.clone();
            let gone = rest.remove(gone % count);
            for number in 0..200 {
                let (before, after) = (first(vip(number), &all), first(vip(number), &rest));
                prop_assert!(before == after || before == gone);
            }
        }

        #[test]
        fn the_order_in_which_nodes_are_known_does_not_matter(number: u32, shift in 0_usize..9) {
            let mut nodes = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
            let before = first(vip(number & 0xffff), &nodes);
            nodes.rotate_left(shift);
            prop_assert_eq!(first(vip(number & 0xffff), &nodes), before);
        }
    }
}
