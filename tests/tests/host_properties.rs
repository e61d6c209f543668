//! What holds for all packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portolan_abi::{Flow, Words, state};
use portolan_core::conntrack::{is_closed, is_expired, lifetime, next_state};
use portolan_core::{V4, V6, decide};
use portolan_tests::packet::apply::Bytes;
use portolan_tests::packet::build::{Packet, Socket, proto};
use portolan_tests::packet::check::{checksums, decode};
use portolan_tests::packet::entry::{every_hook, one};
use portolan_tests::packet::family::Tested;
use portolan_tests::packet::fixture::site::Site;
use portolan_tests::packet::memory::Memory;
use portolan_tests::packet::random::{damaged, errors, packets, sites};
use portolan_tests::packet::script::Place;
use portolan_tests::packet::world::World;
use proptest::prelude::*;
use proptest::sample::{Index, select};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_get_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        every_hook(&bytes);
    }

    #[test]
    fn any_packet_and_error_gets_a_verdict(packet in prop_oneof![packets(sites()), errors(sites())]) {
        every_hook(&packet.bytes());
    }

    #[test]
    fn damaged_packets_get_a_verdict(bytes in damaged(sites())) {
        every_hook(&bytes);
    }
}

#[test]
fn packets_cut_at_every_byte_get_a_verdict() {
    for site in [Site::v4(), Site::v6()] {
        let (client, vip) = ((site.a.addr, 40_001), (site.vip, 80));
        let udp = Packet::udp(client, vip);
        let error = Packet::icmp(client.0, vip.0, 3, 3, [0; 4], udp.quoted(8));
        for packet in [Packet::tcp(client, vip, 2), udp, error] {
            let bytes = site.from_a(packet).bytes();
            (0..=bytes.len()).for_each(|len| {
                every_hook(&bytes[..len]);
            });
        }
    }
}

/// A service with a random backend, asked by a random client.
#[derive(Clone, Debug)]
struct Talk {
    site: Site,
    proto: u8,
    client: Socket,
    asked: Socket,
    backend: Socket,
    data: Vec<u8>,
    seed: u32,
}

fn talks() -> impl Strategy<Value = Talk> {
    let which = (any::<Index>(), any::<Index>(), select(vec![proto::TCP, proto::UDP]));
    let data = prop::collection::vec(any::<u8>(), 0..200);
    (sites(), which, any::<u16>(), any::<u16>(), data, any::<u32>()).prop_map(
        |(site, (client, backend, proto), port, backend_port, data, seed)| {
            let client = (*client.get(&[site.a.addr, site.client, site.node]), port);
            let asked = if client.0 == site.client { (site.lb, 443) } else { (site.vip, 80) };
            let backend = (*backend.get(&[site.a.addr, site.b.addr, site.remote]), backend_port);
            Talk { site, proto, client, asked, backend, data, seed }
        },
    )
}

impl Talk {
    fn world(&self) -> World {
        let inside = self.asked.0 == self.site.vip;
        let mut world = if inside {
            self.site.serving(&[self.backend])
        } else {
            self.site.serving_outside(&[self.backend])
        };
        world.config.seed = self.seed;
        world
    }

    /// Where packets with this source are caught, and how they look there.
    fn caught(&self, packet: Packet, sent_by: IpAddr) -> (Place, Packet) {
        let site = &self.site;
        if sent_by == site.a.addr {
            (site.at_a(), site.from_a(packet))
        } else if sent_by == site.b.addr {
            (site.at_b(), site.from_b(packet))
        } else if sent_by == site.node {
            (site.at_service(), site.from_host(packet))
        } else {
            (site.at_uplink(), site.from_wire(packet))
        }
    }

    fn holds<F: Tested>(&self) -> Result<(), TestCaseError> {
        let tables = Memory::<F>::new(&self.world());
        let run = |packet: Packet, sent_by| {
            let (place, packet) = self.caught(packet.data(&self.data), sent_by);
            let out = one::<F>(place.hook, place.ifindex, &packet.bytes(), &tables, 5).2;
            checksums(&out).map_err(TestCaseError::fail)?;
            decode(&out).map_err(TestCaseError::fail)
        };
        let there = run(Packet::of(self.proto, self.client, self.asked, 2), self.client.0)?;
        let (source, destination) = there.ports().ok_or_else(|| TestCaseError::fail("no ports"))?;
        prop_assert_eq!((there.dst, destination), self.backend);
        let answer = Packet::of(self.proto, self.backend, (there.src, source), 18);
        let back = run(answer, self.backend.0)?;
        let (source, destination) = back.ports().ok_or_else(|| TestCaseError::fail("no ports"))?;
        prop_assert_eq!(((back.src, source), (back.dst, destination)), (self.asked, self.client));
        prop_assert_eq!(tables.flows.borrow().len(), 2);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_answer_comes_from_whom_was_asked_and_all_checksums_are_right(talk in talks()) {
        if talk.site.is_v4() { talk.holds::<V4>()? } else { talk.holds::<V6>()? }
    }
}

/// How many of `flows` new flows each of `count` backends gets, from clients that differ as `client` says.
fn spread<F: Tested>(
    site: &Site,
    count: u16,
    flows: u16,
    seed: u32,
    client: impl Fn(u16) -> Socket,
) -> Vec<u32> {
    let backends: Vec<Socket> = (0..count).map(|number| (site.remote, 1000 + number)).collect();
    let mut world = site.serving_outside(&backends);
    world.config.seed = seed;
    let tables = Memory::<F>::new(&world);
    let place = site.at_uplink();
    for number in 0..flows {
        let syn = site.from_wire(Packet::tcp(client(number), (site.lb, 443), 2)).bytes();
        let _ = decide::<F, _, _>(place.hook, place.ifindex, &Bytes(&syn), &tables, 5);
        tables.flows.borrow_mut().clear();
    }
    let picked = tables.picked.borrow();
    (0..u32::from(count)).map(|backend| picked.get(&(0, backend)).copied().unwrap_or(0) as u32).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn new_flows_spread_evenly_over_a_ring(site in sites(), count in 1u16..40, seed: u32, by_address: bool) {
        let flows = 4000;
        let client = |number| {
            if by_address { (behind(site.client, number), 5000) } else { (site.client, 10_000 + number) }
        };
        let got = if site.is_v4() {
            spread::<V4>(&site, count, flows, seed, client)
        } else {
            spread::<V6>(&site, count, flows, seed, client)
        };
        prop_assert_eq!(got.iter().sum::<u32>(), u32::from(flows), "each flow has a backend of the ring");
        // Six standard deviations of a fair choice: one run in a hundred million fails by chance.
        let mean = f64::from(flows) / f64::from(count);
        let bound = 6.0 * mean.sqrt();
        for number in got {
            prop_assert!((f64::from(number) - mean).abs() <= bound, "{} flows where {} are fair", number, mean);
        }
    }
}

/// The address that many behind another.
fn behind(first: IpAddr, number: u16) -> IpAddr {
    match first {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + u32::from(number)).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(number)).into(),
    }
}

fn flow(bits: u8, seen: u32) -> Flow<Words<1>> {
    let (src, dst) = (Words::ZERO, Words::ZERO);
    Flow {
        src,
        dst,
        ports: 0,
        ifindex: 0,
        mac: [0; 3],
        exit: 0,
        state: bits,
        seen,
        service: 0,
        backend: 0,
        from_ifindex: 0,
        from_mac: [0; 3],
        from: 0,
        beat: 0,
    }
}

proptest! {
    #[test]
    fn what_is_expired_stays_expired(bits: u8, seen: u32, tcp: bool, idle in 0u32..1 << 17, more in 0u32..1 << 30) {
        let protocol = u32::from(if tcp { proto::TCP } else { proto::UDP });
        let flow = flow(bits, seen);
        let expired = |idle: u32| is_expired(protocol, &flow, seen.wrapping_add(idle));
        prop_assert_eq!(expired(idle), idle > lifetime(protocol, bits));
        prop_assert!(!expired(idle) || expired(idle + more));
        // Another CPU's clock may be behind.
        prop_assert!(!is_expired(protocol, &flow, seen.wrapping_sub(1)));
    }

    #[test]
    fn a_flow_may_be_silent_for_just_its_lifetime(bits: u8, seen: u32, tcp: bool) {
        let protocol = u32::from(if tcp { proto::TCP } else { proto::UDP });
        let last = seen.wrapping_add(lifetime(protocol, bits));
        prop_assert!(!is_expired(protocol, &flow(bits, seen), last));
        prop_assert!(is_expired(protocol, &flow(bits, seen), last.wrapping_add(1)));
    }

    #[test]
    fn a_state_never_forgets(bits: u8, flags: u8) {
        let next = next_state(bits, flags);
        prop_assert_eq!(next & bits, bits);
        prop_assert_eq!(next & state::REPLY, bits & state::REPLY);
        prop_assert!(!is_closed(bits) || is_closed(next));
        prop_assert_eq!(next_state(next, flags), next);
    }
}
