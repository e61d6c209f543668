//! Two sessions, each the other's peer, over connections that can lose what was sent, by a clock that tests turn.

mod world;

use std::time::Duration;

use proptest::prelude::*;

use crate::routes::{Route, desired};
use crate::session::*;
use crate::wire::{Capability, Dialect, Family, Open};
use world::{LEFT, RIGHT, World};

const DIALECT: Dialect = Dialect { four_octet_as: true, internal: false };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn routes(prefixes: &[&str]) -> Desired {
    let routes: Vec<Route> = prefixes.iter().map(|prefix| Route::new(prefix.parse().unwrap())).collect();
    desired(&routes, "any")
}

#[test]
fn two_sides_come_up_and_exchange_routes() {
    let mut world = World::new(|_| {});
    world.sides[LEFT].session.set_routes(routes(&["192.0.2.1/32", "192.0.2.2/32"]));
    world.start();
    world.run(seconds(5));
    let (left, right) = (world.status(LEFT), world.status(RIGHT));
    assert_eq!((left.state, right.state), (State::Established, State::Established));
    assert_eq!((left.announced.ipv4, right.received.ipv4), (2, 2));
    assert_eq!((left.hold_time, left.keepalive_time), (Some(90), Some(30)));
    assert!(left.complete && !right.complete, "the right side's routes are not known yet");
    assert_eq!((left.last_error, right.last_error), (None, None));
    world.sides[LEFT].session.set_routes(routes(&["192.0.2.2/32"]));
    world.run(seconds(1));
    assert_eq!(world.status(RIGHT).received.ipv4, 1);
}

#[test]
fn both_connecting_at_once_leaves_one_session() {
    for seed in 0..20 {
        let mut world = World::seeded(seed, |_| {});
        world.start();
        world.run(seconds(10));
        assert_eq!(world.established(), [1, 1], "seed {seed}");
        assert_eq!(world.open_connections(), 1, "seed {seed}");
        // Nobody went down on the way.
        assert_eq!((world.sides[LEFT].downs.len(), world.sides[RIGHT].downs.len()), (0, 0));
        // The one that the higher identifier opened.
        assert_eq!(world.initiator(), Some(RIGHT), "seed {seed}");
    }
}

#[test]
fn keepalives_keep_an_idle_session() {
    let mut world = World::new(|peer| peer.hold_time = 9);
    world.start();
    world.run(seconds(3600));
    assert_eq!(world.established(), [1, 1]);
    assert!(world.status(LEFT).messages_sent.keepalive >= 1200, "{:?}", world.status(LEFT).messages_sent);
    assert_eq!(world.status(LEFT).uptime.map(|up| up / 60), Some(59));
}

#[test]
fn silence_ends_a_session_after_the_hold_time_and_it_comes_back() {
    let mut world = World::new(|peer| peer.hold_time = 9);
    world.start();
    world.run(seconds(5));
    (world.lossy, world.listens) = (true, [false, false]);
    world.run(seconds(10));
    for side in [LEFT, RIGHT] {
        assert!(world.status(side).state < State::OpenConfirm);
        assert_eq!(world.sides[side].downs, [Some(SessionError::HoldTimer { seconds: 9 })]);
    }
    (world.lossy, world.listens) = (false, [true, true]);
    world.run(seconds(40));
    assert_eq!(world.established(), [2, 2]);
    let error = world.status(LEFT).last_down.unwrap().text;
    assert!(
        error.starts_with("peer right (10.0.0.2): hold timer expired: nothing from the peer for 9 s"),
        "{error}"
    );
}

#[test]
fn a_hold_time_of_zero_waits_for_ever() {
    let mut world = World::new(|peer| peer.hold_time = 0);
    world.start();
    world.run(seconds(5));
    world.lossy = true;
    world.run(seconds(100_000));
    assert_eq!(world.status(LEFT).state, State::Established);
    assert_eq!(world.status(LEFT).hold_time, Some(0));
}

#[test]
fn an_open_that_is_lost_is_given_up() {
    let mut world = World::new(|_| {});
    world.lossy = true;
    world.start();
    world.run(seconds(50));
    assert_eq!(world.status(LEFT).state, State::OpenSent);
    world.lossy = false;
    world.run(seconds(50));
    assert_eq!(world.established(), [1, 1]);
}

#[test]
fn a_peer_that_does_not_listen_is_tried_less_and_less_often() {
    let mut world = World::new(|_| {});
    world.listens = [false, false];
    world.start();
    world.run(seconds(600));
    let tries = world.sides[LEFT].connects;
    assert!((20..40).contains(&tries), "{tries} tries in 600 s");
    assert_eq!(world.status(LEFT).state, State::Active);
    world.listens = [true, true];
    world.run(seconds(31));
    assert_eq!(world.established(), [1, 1]);
}

#[test]
fn a_passive_side_waits_for_the_other() {
    let mut world = World::new(|_| {});
    world.listens = [true, false];
    let peer = Peer { passive: true, ..world.sides[LEFT].session.peer().clone() };
    world.replace(LEFT, peer);
    world.start();
    world.run(seconds(5));
    assert_eq!(world.established(), [1, 1]);
    assert_eq!((world.sides[LEFT].connects, world.initiator()), (0, Some(RIGHT)));
}

#[test]
fn another_as_number_is_named_on_both_sides() {
    let mut world = World::new(|_| {});
    let peer = Peer { peer_asn: 64_999, ..world.sides[LEFT].session.peer().clone() };
    world.replace(LEFT, peer);
    world.start();
    world.run(seconds(5));
    assert_eq!(world.established(), [0, 0]);
    let text = |side| world.status(side).last_error.unwrap().text;
    let expected = "peer right (10.0.0.2): AS number expected 64999, the peer says 64513: ";
    assert!(text(LEFT).starts_with(expected), "{}", text(LEFT));
    assert!(text(RIGHT).contains("the peer says: bad peer AS (2/2); the peer expects another AS number"));
}

#[test]
fn stopping_tells_the_peer_why() {
    let mut world = World::new(|_| {});
    world.sides[LEFT].session.set_routes(routes(&["192.0.2.1/32"]));
    world.start();
    world.run(seconds(5));
    let now = world.now;
    world.sides[LEFT].session.stop(now, Cease::AdministrativeShutdown, "node drained");
    world.run(seconds(1));
    assert_eq!(world.status(LEFT).state, State::Idle);
    assert_eq!(world.sides[LEFT].downs, [None]);
    let error = world.status(RIGHT).last_down.unwrap().text;
    assert!(error.contains("administrative shutdown (6/2): \"node drained\""), "{error}");
    world.run(seconds(100));
    assert_eq!(world.status(LEFT).state, State::Idle);
}

#[test]
fn a_restarted_peer_takes_the_place_of_its_old_connection() {
    let mut world = World::new(|_| {});
    world.start();
    world.run(seconds(5));
    let told = world.status(LEFT).messages_sent.notification;
    // The right side's process ends, and its connection with it, but the left side does not hear of that.
    world.lossy = true;
    let peer = world.sides[RIGHT].session.peer().clone();
    world.replace(RIGHT, peer);
    world.run(seconds(1));
    world.lossy = false;
    let now = world.now;
    world.sides[RIGHT].session.start(now);
    world.run(seconds(5));
    assert_eq!(world.sides[LEFT].downs, [Some(SessionError::PeerRestarted)]);
    assert_eq!(world.established(), [2, 1]);
    // The dead connection was not told anything.
    assert_eq!(world.status(LEFT).messages_sent.notification, told);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bytes are lost or not, connections taken or not, for some seconds each; then all is well.
    #[test]
    fn one_session_comes_back_whatever_was_lost(
        troubles in prop::collection::vec((any::<bool>(), any::<[bool; 2]>(), 0..90_u64), 0..8),
        seed in any::<u32>(),
    ) {
        let mut world = World::seeded(seed.into(), |peer| peer.hold_time = 30);
        world.start();
        for (lossy, listens, time) in troubles {
            (world.lossy, world.listens) = (lossy, listens);
            world.run(seconds(time));
        }
        (world.lossy, world.listens) = (false, [true, true]);
        // The longest waits for an OPEN, for the peer and until the next try.
        world.run(seconds(60 + 30 + 30));
        prop_assert_eq!([LEFT, RIGHT].map(|side| world.status(side).state), [State::Established; 2]);
        prop_assert_eq!(world.open_connections(), 1);
    }
}

/// A session that has sent its OPEN, and the connection.
fn opened(change: impl FnOnce(&mut Peer)) -> (Session, LinkId, std::time::Instant) {
    let now = std::time::Instant::now();
    let mut peer = Peer::new("tor-1", [10, 0, 0, 2].into(), 64_513);
    change(&mut peer);
    let mut session = Session::new(Arc::new(Identity::new([10, 0, 0, 1].into(), 64_512)), peer, 1, now);
    session.start(now);
    session.handle_timeout(now);
    let link = session.connected(now, Initiator::Local, [10, 0, 0, 1].into()).unwrap();
    (session, link, now)
}

/// All that was sent since the last time.
fn sent(session: &mut Session) -> Vec<Message> {
    let outputs = std::iter::from_fn(|| session.poll_output());
    let bytes = outputs.filter_map(|output| match output {
        Output::Send { bytes, .. } => Some(bytes),
        _ => None,
    });
    bytes.map(|bytes| Message::decode(&bytes, DIALECT).unwrap().unwrap().0).collect()
}

fn give(session: &mut Session, now: Instant, link: LinkId, message: &Message) {
    session.received(now, link, &message.encode(DIALECT).unwrap());
}

fn their_open() -> Open {
    let capabilities = vec![
        Capability::Multiprotocol(Family::Ipv4.into()),
        Capability::FourOctetAs(64_513),
        Capability::RouteRefresh,
    ];
    Open { two_octet_asn: 64_513, hold_time: 30, router_id: [10, 0, 0, 2].into(), capabilities }
}

#[test]
fn open_says_what_this_side_can_do() {
    let (mut session, _, _) = opened(|peer| peer.my_asn = Some(4_200_000_000));
    let [Message::Open(open)] = &*sent(&mut session) else { panic!("no OPEN") };
    assert_eq!((open.two_octet_asn, open.asn(), open.hold_time), (23_456, 4_200_000_000, 90));
    assert!(open.refreshes() && open.families().count() == 2);
    let restart = open.graceful_restart().unwrap();
    assert!(restart.restarted && restart.time == 120 && restart.families.iter().all(|(_, kept)| *kept));
}

#[test]
fn end_of_rib_is_sent_once_and_only_when_the_routes_are_known() {
    let (mut session, link, now) = opened(|_| {});
    give(&mut session, now, link, &Message::Open(their_open()));
    give(&mut session, now, link, &Message::Keepalive);
    assert_eq!(session.state(), State::Established);
    sent(&mut session);
    session.send_routes(now);
    assert_eq!(sent(&mut session), []);
    session.set_routes(routes(&["192.0.2.1/32"]));
    session.send_routes(now);
    let [Message::Update(first), end] = &*sent(&mut session) else { panic!() };
    assert_eq!((first.announced.len(), end), (1, &Message::Update(Update::end_of_rib(Family::Ipv4))));
    session.set_routes(routes(&["192.0.2.2/32"]));
    session.send_routes(now);
    assert!(sent(&mut session).iter().all(|message| matches!(message, Message::Update(update)
        if update.ends_rib_of().is_none())));
}

#[test]
fn a_peer_that_asks_gets_all_routes_again() {
    let (mut session, link, now) = opened(|_| {});
    session.set_routes(routes(&["192.0.2.1/32", "192.0.2.2/32"]));
    give(&mut session, now, link, &Message::Open(their_open()));
    give(&mut session, now, link, &Message::Keepalive);
    session.send_routes(now);
    sent(&mut session);
    give(&mut session, now, link, &Message::RouteRefresh { family: Family::Ipv4.into(), subtype: 0 });
    session.send_routes(now);
    let [Message::Update(update)] = &*sent(&mut session) else { panic!() };
    assert_eq!(update.announced.len(), 2);
}

#[test]
fn messages_that_do_not_belong_there_are_answered_with_the_state() {
    let (mut session, link, now) = opened(|_| {});
    sent(&mut session);
    give(&mut session, now, link, &Message::Keepalive);
    assert_eq!(sent(&mut session), [Message::Notification(Notification::new(5, 1))]);
    let (mut session, link, now) = opened(|_| {});
    give(&mut session, now, link, &Message::Open(their_open()));
    sent(&mut session);
    give(&mut session, now, link, &Message::Update(Update::default()));
    assert_eq!(sent(&mut session), [Message::Notification(Notification::new(5, 2))]);
}

#[test]
fn bytes_come_in_any_pieces() {
    let (mut session, link, now) = opened(|_| {});
    let stream = [Message::Open(their_open()), Message::Keepalive, Message::Update(Update::default())]
        .map(|message| message.encode(DIALECT).unwrap())
        .concat();
    for byte in stream {
        session.received(now, link, &[byte]);
    }
    let status = session.status(now, std::time::SystemTime::now());
    assert_eq!((status.state, status.messages_received.update), (State::Established, 1));
}

#[test]
fn a_closed_connection_before_any_word_hints_at_the_neighbors_address() {
    let (mut session, link, now) = opened(|_| {});
    session.disconnected(now, link, None);
    let error = session.status(now, std::time::SystemTime::now()).last_error.unwrap().text;
    assert!(error.contains("is this node's address configured there, as a neighbor of AS 64512?"), "{error}");
    assert_eq!(session.state(), State::Active);
}

#[test]
fn routes_of_a_family_that_cannot_be_announced_are_warned_about() {
    let (mut session, link, now) = opened(|_| {});
    session.set_routes(routes(&["192.0.2.1/32", "2001:db8::1/128"]));
    give(&mut session, now, link, &Message::Open(their_open()));
    give(&mut session, now, link, &Message::Keepalive);
    session.send_routes(now);
    let status = session.status(now, std::time::SystemTime::now());
    assert_eq!((status.announced.ipv4, status.announced.ipv6), (1, 0));
    assert_eq!(
        status.warnings,
        ["peer tor-1: IPv6 routes are not announced: IPv6 unicast is not enabled on both sides"]
    );
}

#[test]
fn status_is_told_as_json() {
    let (session, _, now) = opened(|_| {});
    let status = serde_json::to_value(session.status(now, std::time::SystemTime::now())).unwrap();
    assert_eq!((&status["state"], &status["peerAsn"]), (&"OpenSent".into(), &64_513.into()));
}
