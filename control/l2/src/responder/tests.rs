//! What is answered, announced and defended, by a clock that tests turn.

use super::*;

const PATIENCE: Duration = Duration::from_millis(600);
const CLIENT: Mac = [2, 0, 0, 0, 0, 0x0c];
const RIVAL: Mac = [2, 0, 0, 0, 0, 0x0d];

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(ifindex: u8) -> Interface {
    let name = format!("eth{ifindex}");
    Interface { name, ifindex: ifindex.into(), mac: [2, 0, 0, 0, 0, ifindex], operational: true }
}

fn question(target: &str) -> Vec<u8> {
    let mut frame = frame::announcements(ip("192.0.2.1"), CLIENT).remove(0);
    let IpAddr::V4(target) = ip(target) else { panic!("ARP asks for IPv4") };
    frame[38..42].copy_from_slice(&target.octets());
    frame
}

fn claim(address: &str, mac: Mac) -> Vec<u8> {
    frame::announcements(ip(address), mac).remove(0)
}

/// Two interfaces, 198.51.100.1 on both, 198.51.100.2 and 2001:db8::2 on the second one. Nothing is owned yet.
fn responder() -> Responder {
    let mut responder = Responder::default();
    let second = || Some(BTreeSet::from(["eth2".to_owned()]));
    let vips = [
        Vip::new(ip("198.51.100.1")),
        Vip { interfaces: second(), ..Vip::new(ip("198.51.100.2")) },
        Vip { interfaces: second(), ..Vip::new(ip("2001:db8::2")) },
    ];
    responder.set_vips(millis(0), &vips);
    responder.set_links(millis(0), vec![link(1), link(2)]);
    responder
}

/// Lets time pass until nothing is due any more: when something was announced, on which interfaces.
fn announced(responder: &mut Responder, since: Duration) -> Vec<(Duration, BTreeSet<u32>)> {
    let mut all = Vec::new();
    while let Some(at) = responder.next_timeout() {
        assert!(all.len() < 100, "it does not end");
        let frames = responder.speak(at);
        all.push((at - since, frames.iter().map(|outgoing| outgoing.ifindex).collect()));
    }
    all
}

#[test]
fn only_what_is_owned_is_answered_and_only_where_it_is_told() {
    let mut responder = responder();
    let answers = |responder: &mut Responder, ifindex, target: &str| {
        let reaction = responder.receive(millis(1), ifindex, &question(target), PATIENCE);
        matches!(reaction, Reaction::Answer(frame) if frame[6..12] == link(u8::try_from(ifindex).unwrap()).mac)
    };
    assert!(!answers(&mut responder, 1, "198.51.100.1"), "it is another node's");
    responder.gain(millis(0), ip("198.51.100.1"));
    responder.gain(millis(0), ip("198.51.100.2"));
    assert!(answers(&mut responder, 1, "198.51.100.1") && answers(&mut responder, 2, "198.51.100.1"));
    assert!(!answers(&mut responder, 1, "198.51.100.2"), "it is not told there");
    assert!(answers(&mut responder, 2, "198.51.100.2"));
    assert!(!answers(&mut responder, 3, "198.51.100.1"), "no such interface");
    assert!(!answers(&mut responder, 1, "198.51.100.3"), "no such address");
    assert_eq!(responder.owned(ip("198.51.100.1")).unwrap().answered, 2);
    responder.lose(ip("198.51.100.1"));
    assert!(!answers(&mut responder, 1, "198.51.100.1"), "it was given up");
}

#[test]
fn what_is_gained_is_announced_five_times_within_four_seconds() {
    let mut responder = responder();
    responder.gain(millis(100), ip("198.51.100.1"));
    let times: Vec<u128> =
        announced(&mut responder, millis(100)).iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!(times, [0, 250, 1000, 2000, 4000]);
    assert_eq!(responder.owned(ip("198.51.100.1")).unwrap().announced, 5);
}

#[test]
fn what_is_given_up_is_announced_no_more() {
    let mut responder = responder();
    responder.gain(millis(0), ip("198.51.100.1"));
    assert_eq!(responder.speak(millis(0)).len(), 4, "two forms on two interfaces");
    responder.lose(ip("198.51.100.1"));
    assert_eq!(responder.next_timeout(), None);
}

#[test]
fn an_interface_that_comes_up_or_changes_its_address_is_told_again() {
    let mut responder = responder();
    for address in ["198.51.100.1", "198.51.100.2", "2001:db8::2"] {
        responder.gain(millis(0), ip(address));
    }
    announced(&mut responder, millis(0));
    let down = Interface { operational: false, ..link(2) };
    responder.set_links(millis(5000), vec![link(1), down]);
    assert_eq!(responder.next_timeout(), None);
    assert_eq!(responder.receive(millis(5000), 2, &question("198.51.100.1"), PATIENCE), Reaction::Ignored);
    responder.set_links(millis(6000), vec![link(1), link(2)]);
    assert_eq!(responder.speak(millis(6000)).len(), 4 + 2 + 1);
    announced(&mut responder, millis(0));
    // The same once more is no news.
    responder.set_links(millis(20_000), vec![link(1), link(2)]);
    assert_eq!(responder.next_timeout(), None);
    responder.set_links(millis(20_000), vec![Interface { mac: RIVAL, ..link(1) }, link(2)]);
    let frames = responder.speak(millis(20_000));
    assert!(frames.iter().any(|outgoing| outgoing.ifindex == 1 && outgoing.frame[6..12] == RIVAL));
}

#[test]
fn many_addresses_are_announced_some_at_a_time() {
    let vips: Vec<Vip> = (0..150).map(|number| Vip::new(ip(&format!("198.51.100.{number}")))).collect();
    let mut responder = Responder::default();
    responder.set_vips(millis(0), &vips);
    responder.set_links(millis(0), vec![link(1)]);
    vips.iter().for_each(|vip| responder.gain(millis(0), vip.address));
    let mut counts = Vec::new();
    while responder.next_timeout() == Some(millis(0)) {
        counts.push(responder.speak(millis(0)).len() / 2);
    }
    assert_eq!(counts, [64, 64, 22]);
}

#[test]
fn a_claim_by_somebody_else_is_noted_and_answered_once_in_ten_seconds() {
    let mut responder = responder();
    let vip = ip("198.51.100.1");
    responder.gain(millis(0), vip);
    announced(&mut responder, millis(0));
    let hears = |responder: &mut Responder, at| {
        responder.receive(millis(at), 1, &claim("198.51.100.1", RIVAL), PATIENCE)
    };
    assert_eq!(hears(&mut responder, 10_000), Reaction::Conflict(vip, RIVAL));
    // If it is a node, who owns the address is settled first.
    assert_eq!(responder.next_timeout(), Some(millis(10_600)));
    for at in 0..100 {
        assert_eq!(hears(&mut responder, 10_001 + at), Reaction::Ignored);
    }
    assert_eq!(announced(&mut responder, millis(10_000)).len(), 1);
    let conflict = responder.owned(vip).unwrap().conflict.clone().expect("it is noted");
    assert_eq!((conflict.at, conflict.mac, conflict.interface.as_str()), (millis(10_100), RIVAL, "eth1"));
    assert_eq!(hears(&mut responder, 20_000), Reaction::Conflict(vip, RIVAL));
}

#[test]
fn who_gave_an_address_up_meanwhile_does_not_defend_it() {
    let mut responder = responder();
    let vip = ip("198.51.100.1");
    responder.gain(millis(0), vip);
    announced(&mut responder, millis(0));
    responder.receive(millis(10_000), 1, &claim("198.51.100.1", RIVAL), PATIENCE);
    responder.lose(vip);
    assert_eq!(responder.next_timeout(), None);
}

#[test]
fn claims_by_this_node_and_of_what_it_does_not_own_are_none() {
    let mut responder = responder();
    responder.gain(millis(0), ip("198.51.100.1"));
    // Another interface of this node on the same network.
    let own = claim("198.51.100.1", link(2).mac);
    assert_eq!(responder.receive(millis(1), 1, &own, PATIENCE), Reaction::Ignored);
    let other = claim("198.51.100.2", RIVAL);
    assert_eq!(responder.receive(millis(1), 2, &other, PATIENCE), Reaction::Ignored);
}

#[test]
fn who_asks_in_the_name_of_an_address_claims_it() {
    let mut responder = responder();
    responder.gain(millis(0), ip("198.51.100.1"));
    let mut asks = claim("198.51.100.1", RIVAL);
    asks[38..42].copy_from_slice(&[192, 0, 2, 9]);
    let conflict = Reaction::Conflict(ip("198.51.100.1"), RIVAL);
    assert_eq!(responder.receive(millis(1), 1, &asks, PATIENCE), conflict);
}

#[test]
fn the_groups_are_those_of_owned_addresses_of_ipv6() {
    let mut responder = responder();
    assert!(responder.groups("eth2").is_empty());
    responder.gain(millis(0), ip("2001:db8::2"));
    responder.gain(millis(0), ip("198.51.100.1"));
    assert_eq!(responder.groups("eth2"), BTreeSet::from(["ff02::1:ff00:2".parse().unwrap()]));
    assert!(responder.groups("eth1").is_empty());
}
