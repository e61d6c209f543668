//! How sessions with BIRD and FRR begin, end, and outlive the speaker.

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_bgp::{Identity, Peer, State};
use portolan_tests::lab::{Brand, Cluster, NODE_ADDRESSES, Neighbor, Router, Speaking};

portolan_tests::with_both_routers! {
    routes_stay_while_the_speaker_restarts
    a_speaker_that_withdraws_takes_its_routes_along_and_says_why
    a_cut_link_is_noticed_after_the_hold_time
    another_as_number_is_named_in_the_status
    the_same_password_connects_and_another_one_does_not
    packets_from_afar_are_refused_with_ttl_security
    a_router_may_connect_as_well_and_alone
    a_session_is_not_touched_by_changes_to_others
}

const NODES: u32 = 64_512;
const ROUTER: u32 = 64_513;
const GATEWAY: &str = "192.0.2.1";
const NODE: &str = NODE_ADDRESSES[0][0];
const PREFIX: &str = "198.51.100.10/32";
const OTHER: &str = "198.51.100.11/32";

struct Scene {
    cluster: Cluster,
    router: Router,
}

impl Scene {
    fn new(brand: Brand, neighbor: Neighbor) -> Result<Self> {
        let cluster = Cluster::new()?;
        let directory = cluster.directory().join("router");
        let router = Router::start(brand, &cluster.router, &directory, ROUTER, &[neighbor])?;
        Ok(Self { cluster, router })
    }

    fn speak(&self, peer: Peer) -> Result<Speaking> {
        Speaking::start(&self.cluster.nodes[0].netns, identity(), vec![peer])
    }
}

fn identity() -> Identity {
    Identity::new([192, 0, 2, 11].into(), NODES)
}

fn peer() -> Peer {
    Peer { hold_time: 9, ..Peer::new("tor", [192, 0, 2, 1].into(), ROUTER) }
}

fn neighbor() -> Neighbor {
    Neighbor::new(NODE, NODES, GATEWAY)
}

fn routes_stay_while_the_speaker_restarts(brand: Brand) -> Result<()> {
    let scene = Scene::new(brand, neighbor())?;
    let router = &scene.router;
    let before = scene.speak(peer())?;
    before.announce(&[PREFIX, OTHER])?;
    router.until(PREFIX, true)?;
    router.until(OTHER, true)?;
    ensure!(before.status()?.graceful_restart, "the router does not keep routes");
    let (over, watched) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<usize> {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) {
                ensure!(router.has(PREFIX)?, "the route was gone after {looks} looks");
                let kernel = scene.cluster.router.ip("route show 198.51.100.10")?;
                ensure!(kernel.contains(NODE), "the kernel's route was gone after {looks} looks: {kernel}");
                looks += 1;
                watched.store(true, Ordering::Relaxed);
            }
            Ok(looks)
        });
        let outcome = restart(&scene, before);
        over.store(true, Ordering::Relaxed);
        let looks = watcher.join().expect("the watcher has no bug")?;
        ensure!(looks > 5, "{looks} looks are too few");
        outcome
    })
}

/// Ends the speaker, starts it again, and has it announce less than before.
fn restart(scene: &Scene, before: Speaking) -> Result<()> {
    drop(before);
    // Longer than it takes a router to see that the connection is gone.
    std::thread::sleep(Duration::from_secs(2));
    let after = scene.speak(peer())?;
    after.established()?;
    // Its routes are not known yet, and nothing is forgotten meanwhile.
    std::thread::sleep(Duration::from_secs(1));
    ensure!(scene.router.has(OTHER)?, "a route was forgotten before the new ones were known");
    after.announce(&[PREFIX])?;
    // What is not announced again goes with End-of-RIB, long before the peer's patience ends.
    scene.router.until(OTHER, false)
}

fn a_speaker_that_withdraws_takes_its_routes_along_and_says_why(brand: Brand) -> Result<()> {
    let scene = Scene::new(brand, neighbor())?;
    let node = scene.speak(peer())?;
    node.announce(&[PREFIX])?;
    scene.router.until(PREFIX, true)?;
    node.withdraw("node drained")?;
    scene.router.until(PREFIX, false)?;
    let log = scene.router.log();
    ensure!(log.contains("node drained"), "{log}");
    Ok(())
}

fn a_cut_link_is_noticed_after_the_hold_time(brand: Brand) -> Result<()> {
    let scene = Scene::new(brand, neighbor())?;
    let node = scene.speak(Peer { hold_time: 6, keepalive_time: Some(2), ..peer() })?;
    node.announce(&[PREFIX])?;
    scene.router.until(PREFIX, true)?;
    // Both ends keep their carrier.
    scene.cluster.router.ip("link set n0 nomaster")?;
    let status = node.until("the session is lost", |status| status.state < State::OpenConfirm)?;
    let error = status.last_down.context("no reason")?.text;
    ensure!(
        error.starts_with("peer tor (192.0.2.1): hold timer expired: nothing from the peer for 6 s"),
        "{error}"
    );
    scene.router.until(PREFIX, false)?;
    scene.cluster.router.ip("link set n0 master br0")?;
    node.established()?;
    scene.router.until(PREFIX, true)
}

fn another_as_number_is_named_in_the_status(brand: Brand) -> Result<()> {
    let scene = Scene::new(brand, neighbor())?;
    let says = |node: &Speaking, words: &'static str| {
        node.until(words, |status| status.last_error.as_ref().is_some_and(|error| error.text.contains(words)))
    };
    let node = scene.speak(Peer { peer_asn: 64_999, ..peer() })?;
    says(&node, "peer tor (192.0.2.1): AS number expected 64999, the peer says 64513")?;
    drop(node);
    let node = scene.speak(Peer { my_asn: Some(64_777), ..peer() })?;
    says(&node, "the peer expects another AS number: set myASN to what the peer is configured with")?;
    ensure!(node.status()?.established == 0, "a session with the wrong AS number");
    Ok(())
}

fn the_same_password_connects_and_another_one_does_not(brand: Brand) -> Result<()> {
    let scene = Scene::new(brand, Neighbor { password: Some("s3cret".to_owned()), ..neighbor() })?;
    let with = |password: &str| Peer { password: Some(portolan_bgp::Password::new(password)), ..peer() };
    let node = scene.speak(with("other"))?;
    node.announce(&[PREFIX])?;
    node.until("the error asks for the password", |status| {
        status.last_error.as_ref().is_some_and(|error| error.text.contains("has the peer the same password?"))
    })?;
    ensure!(!scene.router.has(PREFIX)?, "a session with the wrong password");
    let right = with("s3cret");
    node.ask(|speaker| speaker.set_peers(vec![right]))??;
    node.established()?;
    scene.router.until(PREFIX, true)
}

fn packets_from_afar_are_refused_with_ttl_security(brand: Brand) -> Result<()> {
    let scene = Scene::new(brand, Neighbor { ttl_security: true, ..neighbor() })?;
    let node = scene.speak(Peer { ttl_security: Some(1), ..peer() })?;
    node.announce(&[PREFIX])?;
    node.established()?;
    scene.router.until(PREFIX, true)?;
    // Without it, packets arrive as if from afar. BIRD may have taken the first ones before it began to look at TTLs, so
    // that this side believes in a session until it ends.
    node.ask(|speaker| speaker.set_peers(vec![peer()]))??;
    scene.router.until(PREFIX, false)?;
    node.until("the session fails", |status| status.last_error.is_some())?;
    ensure!(!scene.router.has(PREFIX)?, "packets from afar: {:#?}\n{}", node.status(), scene.router.log());
    Ok(())
}

fn a_router_may_connect_as_well_and_alone(brand: Brand) -> Result<()> {
    let password = || Some("s3cret".to_owned());
    let scene = Scene::new(brand, Neighbor { passive: false, password: password(), ..neighbor() })?;
    let listening = Identity { listen: vec!["0.0.0.0:179".parse()?], ..identity() };
    let secret = password().map(portolan_bgp::Password::new);
    let active = Peer { password: secret, ..peer() };
    let node = Speaking::start(&scene.cluster.nodes[0].netns, listening, vec![active.clone()])?;
    node.announce(&[PREFIX])?;
    node.established()?;
    scene.router.until(PREFIX, true)?;
    stranger_is_shown_out(&scene)?;
    // Both connected at once, and what is there stays.
    std::thread::sleep(Duration::from_secs(3));
    ensure!(node.status()?.established == 1, "{:#?}", node.status());
    let passive = Peer { passive: true, ..active };
    node.ask(|speaker| speaker.set_peers(vec![passive]))??;
    node.until("the router connects", |status| status.state == State::Established)?;
    scene.router.until(PREFIX, true)
}

/// Connections from an address of nobody's end at once.
fn stranger_is_shown_out(scene: &Scene) -> Result<()> {
    let read = scene.cluster.nodes[1].netns.enter(|| -> std::io::Result<usize> {
        let mut stream = TcpStream::connect((NODE, 179))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.read(&mut [0; 64])
    })??;
    ensure!(read == 0, "a stranger was told {read} bytes");
    Ok(())
}

fn a_session_is_not_touched_by_changes_to_others(brand: Brand) -> Result<()> {
    let scene = Scene::new(brand, neighbor())?;
    let node = scene.speak(peer())?;
    node.announce(&[PREFIX])?;
    node.established()?;
    scene.router.until(PREFIX, true)?;
    let other = Peer::new("zzz", [192, 0, 2, 99].into(), ROUTER);
    node.ask(move |speaker| speaker.set_peers(vec![peer(), other]))??;
    node.ask(|speaker| speaker.set_peers(vec![peer()]))??;
    // One that cannot work changes nothing.
    let refused = node.ask(|speaker| speaker.set_peers(vec![Peer { hold_time: 1, ..peer() }]))?;
    ensure!(refused.is_err_and(|error| error.to_string().contains("peer tor: holdTime")), "it was taken");
    let status = node.status()?;
    ensure!(status.state == State::Established && status.established == 1, "{status:#?}");
    assert_eq!(status.messages_sent.notification, 0);
    scene.router.until(PREFIX, true)
}
