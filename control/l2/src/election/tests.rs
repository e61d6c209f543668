//! Nodes that stop, go on, leave, come back and do not hear each other, by a clock that tests turn.

mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::Eligible;
use world::{LATENCY, Running, World, address, name, vip};

const INTERVAL: Duration = Duration::from_millis(500);
const FRESH: Duration = Duration::from_millis(1500);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a node is the first for, of all that there are.
fn vips_of(world: &World, node: usize) -> Vec<usize> {
    let ownership = world.ownership();
    (0..ownership.len()).filter(|vip| ownership[*vip] == node).collect()
}

#[test]
fn a_node_alone_owns_everything_at_once() {
    let world = World::new(1, 20);
    assert_eq!(world.ownership(), [0; 20]);
}

#[test]
fn nodes_that_begin_together_listen_first_and_then_share() {
    let mut world = World::new(3, 60);
    assert!(world.vips.iter().all(|vip| world.owners(vip.address).is_empty()));
    world.run(FRESH + INTERVAL);
    let ownership = world.ownership();
    for node in 0..3 {
        let count = ownership.iter().filter(|owner| **owner == node).count();
        assert!((10..=30).contains(&count), "{ownership:?}");
    }
    assert!(world.worst_overlap <= LATENCY, "two owners for {:?}", world.worst_overlap);
    // All say the same.
    for node in &world.nodes {
        let owners: Vec<String> =
            node.election.claims().map(|(_, claim)| claim.owner.as_deref().unwrap().to_owned()).collect();
        assert_eq!(owners, ownership.iter().map(|owner| name(*owner)).collect::<Vec<_>>());
    }
}

#[test]
fn nodes_that_are_gone_are_waited_for_once() {
    let mut world = World::new(3, 20);
    world.kill(1);
    world.kill(2);
    world.lose(0);
    world.run(FRESH - millis(1));
    assert!(world.vips.iter().all(|vip| world.owners(vip.address).is_empty()), "it may have been heard");
    world.run(millis(1));
    assert_eq!(world.ownership(), [0; 20]);
}

#[test]
fn a_stopped_owner_is_replaced_and_never_answers_beside_the_others() {
    for rest in [seconds(2), seconds(30), seconds(3600)] {
        let mut world = World::settled(3, 60);
        let before = world.ownership();
        world.stop(1);
        world.run(rest);
        let meanwhile = world.ownership();
        // Only what it had moved.
        assert!(before.iter().zip(&meanwhile).all(|(old, new)| if *old == 1 {
            *new != 1
        } else {
            old == new
        }));
        assert!(world.worst_gap <= FRESH + LATENCY, "nobody for {:?}", world.worst_gap);
        world.forget();
        world.resume(1, false);
        assert!(world.nodes[1].owned.is_empty(), "it knows at once that it was stopped");
        assert!(world.nodes[1].outputs.iter().any(|output| matches!(output, Output::Lapsed(_))));
        world.run(FRESH - millis(1));
        assert!(world.nodes[1].owned.is_empty(), "it listens");
        world.run(seconds(2));
        assert_eq!(world.ownership(), before);
        assert_eq!(world.worst_overlap, Duration::ZERO, "after {rest:?}");
        // One gives up, says so, the other takes.
        assert!(world.worst_gap <= LATENCY * 2, "nobody for {:?}", world.worst_gap);
    }
}

#[test]
fn a_node_whose_clock_stood_still_with_it_gives_up_with_the_first_heartbeat_that_it_hears() {
    let mut world = World::settled(3, 60);
    let before = world.ownership();
    world.stop(1);
    world.run(seconds(20));
    // A virtual machine that was paused: its buffers have what was sent before, and nothing tells it.
    world.resume(1, true);
    world.run(seconds(5));
    assert!(world.worst_overlap <= INTERVAL, "two owners for {:?}", world.worst_overlap);
    assert_eq!(world.ownership(), before);
}

#[test]
fn a_short_stop_changes_nothing() {
    let mut world = World::settled(3, 60);
    let before = world.ownership();
    for _ in 0..10 {
        world.stop(1);
        world.run(millis(700));
        world.resume(1, false);
        world.run(millis(700));
    }
    assert_eq!(world.ownership(), before);
    assert!(world.nodes.iter().all(|node| node.outputs.iter().all(|it| matches!(it, Output::Send { .. }))));
}

#[test]
fn a_node_that_leaves_is_replaced_at_once() {
    let mut world = World::settled(3, 60);
    world.change(1, Election::leave);
    assert!(world.nodes[1].owned.is_empty());
    world.run(LATENCY);
    assert!(vips_of(&world, 1).is_empty());
    assert!(world.worst_gap <= LATENCY && world.worst_overlap == Duration::ZERO);
    world.run(millis(100));
    assert!(world.nodes[1].election.has_left(), "it said so often enough");
}

#[test]
fn leaving_is_heard_though_two_of_three_datagrams_are_lost() {
    let mut world = World::settled(2, 20);
    world.cut(&[0], true);
    world.change(0, Election::leave);
    world.run(millis(40));
    world.cut(&[0], false);
    world.run(millis(40));
    assert_eq!(world.ownership(), [1; 20]);
}

#[test]
fn a_crash_is_noticed_when_the_last_heartbeat_is_too_old() {
    let mut world = World::settled(3, 60);
    world.kill(1);
    world.run(FRESH + LATENCY);
    assert!(vips_of(&world, 1).is_empty());
    assert!(world.worst_gap <= FRESH + LATENCY);
}

#[test]
fn a_restart_gives_addresses_up_and_takes_them_back() {
    // Its clock may have gone back as well; then it is not believed before its former life is over.
    for (later, rest) in [(1, millis(200)), (1, seconds(9)), (-5, seconds(9))] {
        let mut world = World::settled(3, 60);
        let before = world.ownership();
        world.kill(1);
        world.run(rest);
        world.forget();
        world.restart(1, later);
        world.run(seconds(4));
        assert_eq!(world.ownership(), before, "{later} {rest:?}");
        assert_eq!(world.worst_overlap, Duration::ZERO);
        if rest > FRESH {
            assert!(world.worst_gap <= LATENCY * 2, "nobody for {:?}", world.worst_gap);
        }
    }
}

#[test]
fn a_node_that_comes_and_goes_moves_nothing_but_its_own() {
    let mut world = World::settled(4, 80);
    let before = world.ownership();
    for _ in 0..20 {
        world.kill(2);
        world.run(millis(1900));
        world.restart(2, 1);
        world.run(millis(1200));
    }
    world.run(seconds(3));
    assert_eq!(world.ownership(), before);
    assert_eq!(world.worst_overlap, Duration::ZERO);
    for node in [0, 1, 3] {
        let lost = world.nodes[node].outputs.iter().filter_map(|output| match output {
            Output::Lost(vip) => Some(*vip),
            _ => None,
        });
        let own = |vip: &IpAddr| {
            let number = world.vips.iter().position(|it| it.address == *vip).expect("one of them");
            before[number] == node
        };
        assert!(!lost.into_iter().any(|vip| own(&vip)), "node {node} gave up what was its own");
    }
}

#[test]
fn both_sides_of_a_cut_own_everything_until_it_ends() {
    let mut world = World::settled(3, 60);
    let before = world.ownership();
    world.cut(&[2], true);
    world.run(seconds(5));
    // What each side can know.
    for vip in &world.vips {
        assert_eq!(world.owners(vip.address).len(), 2);
    }
    world.cut(&[2], false);
    world.nodes.iter_mut().for_each(|node| node.outputs.clear());
    let healed = world.now;
    world.run(INTERVAL + LATENCY * 2);
    assert_eq!(world.ownership(), before, "{:?} after the end", world.now - healed);
    // Clients may have been told something else meanwhile: who kept an address tells them again.
    for (number, owner) in before.iter().enumerate() {
        let renewed = world.nodes[*owner].outputs.contains(&Output::Renew(vip(number)));
        let gained = world.nodes[*owner].outputs.contains(&Output::Gained(vip(number)));
        assert!(renewed || gained, "address {number} of node {owner}");
    }
}

#[test]
fn nodes_of_which_one_is_deaf_to_the_other_agree_all_the_same() {
    let mut world = World::settled(2, 40);
    world.cuts.insert((0, 1));
    world.run(seconds(5));
    // The deaf one takes the other for gone, and that one hears so.
    assert_eq!(world.ownership(), [1; 40]);
    assert!(world.worst_overlap <= LATENCY, "two owners for {:?}", world.worst_overlap);
    world.cuts.clear();
    world.forget();
    world.run(seconds(2));
    assert_eq!(world.worst_overlap, Duration::ZERO);
    assert!(world.ownership().contains(&0));
}

#[test]
fn a_third_node_that_hears_both_goes_on_with_its_own() {
    let mut world = World::settled(3, 60);
    let before = vips_of(&world, 2);
    world.cuts.insert((0, 1));
    world.run(seconds(5));
    assert!(vips_of(&world, 2).len() >= before.len());
    assert!(world.worst_overlap <= LATENCY);
    // What is the deaf one's only after node 2 stays with node 0.
    assert!(!vips_of(&world, 0).is_empty());
}

#[test]
fn heartbeats_may_get_lost() {
    let mut world = World::new(3, 30);
    // One in seven.
    world.loss = Some(7);
    world.run(seconds(3));
    let before = world.ownership();
    world.forget();
    world.run(seconds(600));
    assert_eq!(world.ownership(), before);
    assert_eq!((world.worst_overlap, world.worst_gap), (Duration::ZERO, Duration::ZERO));
}

#[test]
fn only_eligible_nodes_own_an_address() {
    let only = |nodes: &[usize]| Eligible::Only(nodes.iter().map(|node| name(*node)).collect());
    let sets: [&[usize]; 4] = [&[0], &[1, 2], &[2], &[]];
    let vips = (0..40).map(|number| Vip { eligible: only(sets[number % 4]), ..Vip::new(vip(number)) });
    let mut world = World::with(3, vips.collect());
    world.run(seconds(3));
    for number in 0..40 {
        let owners = world.owners(vip(number));
        assert!(owners.iter().all(|owner| sets[number % 4].contains(owner)));
        assert_eq!(owners.len(), usize::from(number % 4 != 3));
    }
    world.kill(0);
    world.run(seconds(3));
    assert!(world.owners(vip(0)).is_empty(), "nobody else may have it");
    // Another set moves it at once.
    let vips: Vec<Vip> = world.vips.iter().map(|vip| Vip { eligible: only(&[1]), ..vip.clone() }).collect();
    world.vips.clone_from(&vips);
    for node in [2, 1] {
        world.change(node, |election, now| election.set_vips(now, vips.clone()));
    }
    assert_eq!(world.ownership(), [1; 40]);
}

#[test]
fn addresses_and_members_come_and_go() {
    let mut world = World::settled(3, 20);
    let before = world.ownership();
    let fewer: Vec<Vip> = world.vips[..10].to_vec();
    for node in 0..3 {
        world.change(node, |election, now| election.set_vips(now, fewer.clone()));
    }
    world.vips.truncate(10);
    assert_eq!(world.ownership(), before[..10]);
    assert!(world.nodes.iter().all(|node| !node.owned.contains(&vip(10))));
    // A node that is no member any more owns nothing; those that stay are not disturbed.
    let members: Vec<Member> = (0..2).map(|node| Member::new(name(node), [address(node)])).collect();
    for node in 0..3 {
        world.change(node, |election, now| election.set_members(now, members.clone()));
    }
    assert!(world.nodes[2].owned.is_empty());
    assert_eq!(world.nodes[2].election.obstacle(), Some("this node is not among those that announce"));
    assert!(world.ownership().iter().zip(&before).all(|(new, old)| *old == 2 || new == old));
}

#[test]
fn a_node_with_an_obstacle_is_replaced_at_once_and_listens_afterwards() {
    let mut world = World::settled(3, 60);
    let before = world.ownership();
    world.change(1, |election, now| election.set_obstacle(now, Some("cable")));
    world.run(LATENCY);
    assert!(vips_of(&world, 1).is_empty());
    // Nobody hears it, and it hears nobody: as if its only interface were down.
    world.cut(&[1], true);
    world.run(seconds(5));
    world.cut(&[1], false);
    world.forget();
    world.change(1, |election, now| election.set_obstacle(now, None));
    world.run(seconds(3));
    assert_eq!(world.ownership(), before);
    assert_eq!(world.worst_overlap, Duration::ZERO);
}

#[test]
fn what_is_no_heartbeat_of_a_member_changes_nothing() {
    let mut world = World::settled(2, 20);
    let heartbeat = |name: &str, sequence| Heartbeat {
        name: name.to_owned(),
        incarnation: 1,
        sequence,
        ready: true,
        leaving: true,
        counts_you: false,
    };
    let mut refused = |from: IpAddr, heartbeat: Heartbeat| {
        let mut outcome = Ok(());
        world.change(0, |election, now| outcome = election.receive(now, from, &heartbeat.encode()));
        outcome.expect_err("it is not believed")
    };
    let stranger = Refused::Stranger("node9".to_owned());
    assert_eq!(refused(address(1), heartbeat("node9", 1000)), stranger);
    // It is not its own peer.
    assert_eq!(refused(address(0), heartbeat("node0", 1000)), Refused::Stranger("node0".to_owned()));
    assert_eq!(refused(address(7), heartbeat("node1", 1000)), Refused::Address("node1".to_owned()));
    assert_eq!(refused(address(1), heartbeat("node1", 1)), Refused::Old("node1".to_owned()));
    let before_life = Heartbeat { incarnation: 0, ..heartbeat("node1", 1000) };
    assert_eq!(refused(address(1), before_life), Refused::Old("node1".to_owned()));
    assert!(world.ownership().contains(&1));
}

#[test]
fn a_neighbour_that_changes_its_mind_all_the_time_is_told_so_a_few_times_a_second() {
    let mut world = World::settled(2, 1);
    let start = world.now;
    for step in 0..1000_u64 {
        let heartbeat = Heartbeat {
            name: name(1),
            incarnation: 2,
            sequence: step,
            ready: step % 2 == 0,
            leaving: false,
            counts_you: true,
        };
        world.change(0, |election, now| {
            election.receive(now, address(1), &heartbeat.encode()).expect("it is newer");
        });
        world.stop(1);
        world.run(millis(1));
    }
    let sent = world.nodes[0].outputs.iter().filter(|output| matches!(output, Output::Send { .. })).count();
    assert!((world.now - start) == seconds(1) && sent <= 25, "{sent} heartbeats within a second");
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Stop(usize),
    Resume(usize),
    Kill(usize),
    Restart(usize),
    Leave(usize),
}

fn faults() -> impl Strategy<Value = Vec<(Fault, u64)>> {
    let fault = (0..5, 0_usize..4).prop_map(|(kind, node)| match kind {
        0 => Fault::Stop(node),
        1 => Fault::Resume(node),
        2 => Fault::Kill(node),
        3 => Fault::Restart(node),
        _ => Fault::Leave(node),
    });
    prop::collection::vec((fault, 0_u64..4000), 1..40)
}

proptest! {
    #[test]
    fn whatever_happens_to_nodes_there_are_never_two_owners_and_soon_one(faults in faults()) {
        let mut world = World::settled(4, 12);
        let before = world.ownership();
        for (fault, wait) in faults {
            match fault {
                Fault::Stop(node) if world.nodes[node].state == Running::Yes => world.stop(node),
                Fault::Resume(node) => world.resume(node, false),
                Fault::Kill(node) => world.kill(node),
                Fault::Restart(node) if world.nodes[node].state == Running::No => world.restart(node, 1),
                Fault::Leave(node) if world.nodes[node].state == Running::Yes => {
                    world.change(node, Election::leave);
                    world.run(LATENCY);
                    world.kill(node);
                }
                _ => {}
            }
            world.run(millis(wait));
        }
        // Two that become ready at the same moment have not heard of each other yet.
        prop_assert!(world.worst_overlap <= LATENCY, "two owners for {:?}", world.worst_overlap);
        for node in 0..4 {
            world.resume(node, false);
            if world.nodes[node].state == Running::No {
                world.restart(node, 1);
            }
        }
        world.run(seconds(4));
        prop_assert_eq!(world.ownership(), before);
    }

    #[test]
    fn the_owner_is_the_heaviest_one_that_is_there(alive in prop::collection::btree_set(0_usize..6, 1..6)) {
        let mut world = World::new(6, 40);
        (0..6).filter(|node| !alive.contains(node)).for_each(|node| world.kill(node));
        world.run(seconds(3));
        for (number, owner) in world.ownership().into_iter().enumerate() {
            let weigh = |node: &usize| rank::weight(rank::vip_key(vip(number)), rank::node_key(&name(*node)));
            let heaviest = alive.iter().copied().max_by_key(weigh);
            prop_assert_eq!(Some(owner), heaviest);
        }
    }

    #[test]
    fn any_datagram_from_anywhere_is_survived(datagrams: Vec<(u8, Vec<u8>)>) {
        let mut world = World::settled(2, 4);
        for (node, datagram) in datagrams {
            world.change(0, |election, now| {
                let _ = election.receive(now, address(usize::from(node % 4)), &datagram);
            });
        }
        prop_assert_eq!(world.ownership().iter().collect::<BTreeSet<_>>().len() <= 2, true);
    }
}
