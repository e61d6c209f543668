//! Addresses announced on layer 2: a client, nodes as processes, a switch between. tcpdump, arping and the client's own kernel say
//! who answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Announcing, Asking, Capture, Frames, Netns, Segment, answer_by_number, arp_request, poll,
};
use serde_json::{Value, json};

/// What the issue promises: an owner that is stopped is replaced within this time, and clients know.
const TAKE_OVER: Duration = Duration::from_secs(3);
/// The client's Ethernet address.
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
/// How long a heartbeat counts.
const FRESH: Duration = Duration::from_millis(1500);

fn vip4(number: usize) -> String {
    format!("192.0.2.{}", 200 + number)
}

fn vip6(number: usize) -> String {
    format!("2001:db8:1::f:{}", 200 + number)
}

/// Some addresses of both families that every node may own.
fn vips(count: usize) -> Vec<Value> {
    (0..count).flat_map(|number| [vip4(number), vip6(number)]).map(|vip| json!({ "address": vip })).collect()
}

/// A segment with announcers that are all ready.
struct Scene {
    nodes: Vec<Announcing>,
    segment: Segment,
}

impl Scene {
    fn new(nodes: usize, vips: &[Value]) -> Result<Self> {
        let segment = Segment::new(nodes)?;
        let nodes = (0..nodes).map(|node| segment.announce(node, vips)).collect::<Result<Vec<_>>>()?;
        let mut scene = Self { nodes, segment };
        scene.ready()?;
        Ok(scene)
    }

    /// Waits until all nodes own what is theirs.
    fn ready(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.until("the node is ready and counts with all others", |status| {
                let members = status["members"].as_array().into_iter().flatten();
                status["state"] == "ready"
                    && members.into_iter().all(|it| it["state"] == "ready" && it["countsUs"] == true)
            })?;
        }
        Ok(())
    }

    /// The node that says that it owns an address; there is one at most.
    fn owner(&mut self, vip: &str) -> Result<Option<usize>> {
        let owns = |node: &mut Announcing| node.owns(vip);
        let owners = self.nodes.iter_mut().map(owns).collect::<Result<Vec<bool>>>()?;
        let owners: Vec<usize> = (0..owners.len()).filter(|node| owners[*node]).collect();
        ensure!(owners.len() <= 1, "{vip} has the owners {owners:?}");
        Ok(owners.first().copied())
    }

    /// An address of each family with the same owner, and that.
    fn pair(&mut self, count: usize) -> Result<(String, String, usize)> {
        for first in 0..count {
            for second in 0..count {
                let owner = self.owner(&vip4(first))?;
                if let Some(owner) =
                    owner.filter(|owner| self.owner(&vip6(second)).is_ok_and(|it| it == Some(*owner)))
                {
                    return Ok((vip4(first), vip6(second), owner));
                }
            }
        }
        anyhow::bail!("no node has an address of each family")
    }
}

/// The Ethernet address that a client's kernel has for an address.
fn neighbour(client: &Netns, vip: &str) -> Option<String> {
    let shown = client.ip(&format!("neigh show {vip} dev eth0")).ok()?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "lladdr");
    words.nth(1).map(str::to_owned)
}

/// Has a client's kernel ask for an address, and waits for what it learns.
fn resolve(client: &Netns, vip: &str) -> Result<String> {
    // Nobody answers echo here; the kernel asks all the same.
    let _ = client.run(&format!("ping -c 1 -W 0.1 {vip}"));
    poll(TAKE_OVER, &format!("{vip} is resolved"), || neighbour(client, vip))
}

/// Waits until a client's kernel has another Ethernet address for an address.
fn follows(client: &Netns, vip: &str, mac: &str) -> Result<()> {
    let polled = poll(TAKE_OVER, &format!("the client has {mac} for {vip}"), || {
        (neighbour(client, vip)? == mac).then_some(())
    });
    polled.with_context(|| format!("it has {:?}", neighbour(client, vip)))
}

fn is_question(packet: &str, vip: &str) -> bool {
    packet.contains(&format!("who-has {vip} ")) && packet.contains("tell 192.0.2.99")
        || packet.contains("neighbor solicitation") && packet.contains(&format!("who has {vip}"))
}

/// Who answers a question of the client's in a line of tcpdump's.
fn answer<'a>(packet: &'a str, vip: &str) -> Option<&'a str> {
    let is = packet.contains("> 02:00:00:00:00:99")
        && (packet.contains(&format!("Reply {vip} is-at")) || packet.contains(&format!("tgt is {vip},")));
    // The time, then the source.
    is.then(|| packet.split_whitespace().nth(1)).flatten()
}

#[test]
fn one_node_answers_for_each_address_and_all_nodes_have_some() -> Result<()> {
    let mut scene = Scene::new(3, &vips(6))?;
    let capture = Capture::start(&scene.segment.client, "eth0", "arp or icmp6")?;
    let mut owners = BTreeMap::new();
    for number in 0..6 {
        for vip in [vip4(number), vip6(number)] {
            let owner = scene.owner(&vip)?.with_context(|| format!("nobody owns {vip}"))?;
            assert_eq!(resolve(&scene.segment.client, &vip)?, scene.segment.mac(owner), "{vip}");
            owners.insert(vip, owner);
        }
    }
    assert_eq!(owners.values().collect::<BTreeSet<_>>().len(), 3, "{owners:?}");
    // As tcpdump reads it.
    let mac = |vip: &str| scene.segment.mac(owners[vip]);
    let packets = capture.until(&[&format!("Reply {} is-at {}", vip4(5), mac(&vip4(5)))])?;
    for (vip, owner) in &owners {
        let answers: Vec<&str> = packets.iter().filter_map(|packet| answer(packet, vip)).collect();
        assert_eq!(answers, [scene.segment.mac(*owner)], "{vip}: {packets:#?}");
    }
    let words = format!("tgt is {}, Flags [solicited, override]", vip6(0));
    let packet = packets.iter().find(|packet| packet.contains(&words)).context("no such advertisement")?;
    ensure!(packet.contains("[icmp6 sum ok]") && packet.contains("hlim 255"), "{packet}");
    let option = format!("destination link-address option (2), length 8 (1): {}", mac(&vip6(0)));
    ensure!(packet.contains(&option), "{packet}");
    Ok(())
}

#[test]
fn a_stopped_owner_is_replaced_in_time_and_clients_follow_without_asking() -> Result<()> {
    let mut scene = Scene::new(3, &vips(6))?;
    let (v4, v6, owner) = scene.pair(6)?;
    let client = &scene.segment.client;
    for vip in [&v4, &v6] {
        assert_eq!(resolve(client, vip)?, scene.segment.mac(owner));
    }
    let capture = Capture::start(client, "eth0", "arp or icmp6")?;
    let begin = Instant::now();
    scene.nodes[owner].stop()?;
    let moved = |vip: &str| neighbour(client, vip).is_some_and(|mac| mac != scene.segment.mac(owner));
    poll(TAKE_OVER, "the client has another node", || (moved(&v4) && moved(&v6)).then_some(()))?;
    eprintln!("the client follows after {:?}", begin.elapsed());
    let stopped = scene.nodes.remove(owner);
    let heirs = [&v4, &v6].map(|vip| neighbour(client, vip));
    for (vip, heir) in [&v4, &v6].into_iter().zip(&heirs) {
        let owns: Vec<bool> = scene.nodes.iter_mut().map(|node| node.owns(vip)).collect::<Result<_>>()?;
        let others: Vec<String> =
            (0..3).filter(|node| *node != owner).map(|node| scene.segment.mac(node)).collect();
        let owners: Vec<&String> =
            others.iter().zip(owns).filter(|(_, owns)| *owns).map(|(mac, _)| mac).collect();
        assert_eq!(owners, heir.iter().collect::<Vec<_>>(), "{vip}");
    }
    let packets = capture.packets()?;
    ensure!(!packets.iter().any(|it| is_question(it, &v4) || is_question(it, &v6)), "{packets:#?}");
    let told = |words: &str| packets.iter().any(|packet| packet.contains(words));
    ensure!(told(&format!("Request who-has {v4} tell {v4}")), "{packets:#?}");
    ensure!(told(&format!("Reply {v4} is-at")), "{packets:#?}");
    ensure!(told(&format!("tgt is {v6}, Flags [override]")), "{packets:#?}");
    drop(stopped);
    Ok(())
}

#[test]
fn no_question_gets_two_answers_while_an_owner_stops_and_goes_on() -> Result<()> {
    let mut scene = Scene::new(3, &vips(6))?;
    let (v4, v6, owner) = scene.pair(6)?;
    let mac = scene.segment.mac(owner);
    let capture = Capture::start(&scene.segment.client, "eth0", "arp or icmp6")?;
    let asking = Asking::start(&scene.segment.client, &v4, &v6)?;
    let count = || -> Result<usize> {
        let of_owner = |packet: &String| {
            [&v4, &v6].into_iter().any(|vip| answer_by_number(packet, vip).is_some_and(|(who, _)| who == mac))
        };
        Ok(capture.packets()?.iter().filter(|packet| of_owner(packet)).count())
    };
    poll(TAKE_OVER, "the owner answers", || (count().ok()? > 20).then_some(()))?;
    scene.nodes[owner].stop()?;
    std::thread::sleep(TAKE_OVER + FRESH);
    let before = count()?;
    scene.nodes[owner].go_on()?;
    // It has hundreds of questions to read, and listens now.
    std::thread::sleep(FRESH - Duration::from_millis(300));
    assert_eq!(count()?, before, "answers of a node that others take for gone");
    assert_eq!(scene.nodes[owner].status()?["lapses"], 1);
    scene.ready()?;
    poll(TAKE_OVER, "the owner answers again", || (count().ok()? > before + 20).then_some(()))?;
    for answers in asking.end(&capture, [&v4, &v6])? {
        ensure!(answers.iter().all(|who| who.len() <= 1), "{answers:?}");
        let who: BTreeSet<&String> = answers.iter().flatten().collect();
        ensure!(who.len() == 2 && who.contains(&mac), "{who:?}");
        // Fifty questions a second, or fewer where the machine is busy.
        let longest = answers.split(|who| !who.is_empty()).map(<[_]>::len).max().unwrap_or(0);
        ensure!(longest < 150 && answers.len() > 150, "{longest} of {} questions in a row", answers.len());
    }
    Ok(())
}

#[test]
fn a_node_that_leaves_is_replaced_at_once() -> Result<()> {
    let mut scene = Scene::new(3, &vips(6))?;
    let (v4, v6, owner) = scene.pair(6)?;
    for vip in [&v4, &v6] {
        assert_eq!(resolve(&scene.segment.client, vip)?, scene.segment.mac(owner));
    }
    let begin = Instant::now();
    scene.nodes.remove(owner).withdraw()?;
    let client = &scene.segment.client;
    let moved = |vip: &str| neighbour(client, vip).is_some_and(|mac| mac != scene.segment.mac(owner));
    poll(TAKE_OVER, "the client has another node", || (moved(&v4) && moved(&v6)).then_some(()))?;
    // Nobody waited for heartbeats to get too old.
    ensure!(begin.elapsed() < FRESH, "after {:?}", begin.elapsed());
    Ok(())
}

#[test]
fn a_node_that_comes_takes_its_addresses_over_with_a_word() -> Result<()> {
    let segment = Segment::new(2)?;
    let first = segment.announce(0, &vips(6))?;
    let mut scene = Scene { nodes: vec![first], segment };
    scene.nodes[0].until("it owns everything", |status| {
        status["vips"].as_array().is_some_and(|vips| vips.iter().all(|vip| vip["ours"] == true))
    })?;
    let client = &scene.segment.client;
    for number in 0..6 {
        assert_eq!(resolve(client, &vip4(number))?, scene.segment.mac(0));
        assert_eq!(resolve(client, &vip6(number))?, scene.segment.mac(0));
    }
    scene.nodes.push(scene.segment.announce(1, &vips(6))?);
    scene.ready()?;
    let mut moved = 0;
    for vip in (0..6).flat_map(|number| [vip4(number), vip6(number)]) {
        let owner = scene.owner(&vip)?.context("nobody owns it")?;
        follows(&scene.segment.client, &vip, &scene.segment.mac(owner))?;
        moved += owner;
    }
    ensure!(moved > 0, "nothing moved");
    Ok(())
}

#[test]
fn addresses_stay_with_eligible_nodes_and_chosen_interfaces() -> Result<()> {
    let limited = [
        json!({"address": vip4(0), "eligible": ["node2"]}),
        json!({"address": vip4(1), "eligible": []}),
        json!({"address": vip4(2), "interfaces": ["eth1"]}),
        json!({"address": vip4(3), "interfaces": ["eth0"]}),
    ];
    let mut scene = Scene::new(2, &limited)?;
    let arping = |vip: &str| scene.segment.client.run(&format!("arping -i eth0 -r -c 3 -W 0.1 -w 1 {vip}"));
    assert_eq!(
        arping(&vip4(0))?.split_whitespace().collect::<BTreeSet<_>>(),
        [scene.segment.mac(1).as_str()].into()
    );
    ensure!(arping(&vip4(1)).is_err() && arping(&vip4(2)).is_err(), "somebody answers");
    ensure!(arping(&vip4(3)).is_ok(), "nobody answers");
    // Others may have it now, at once.
    for node in &mut scene.nodes {
        node.set_vips(&[json!({"address": vip4(0), "eligible": ["node1"]})])?;
    }
    let answering = || {
        let macs = scene.segment.client.run(&format!("arping -i eth0 -r -c 1 -w 1 {}", vip4(0))).ok()?;
        (macs.trim() == scene.segment.mac(0)).then_some(())
    };
    poll(TAKE_OVER, "the other node answers", answering)?;
    assert_eq!(scene.owner(&vip4(0))?, Some(0));
    Ok(())
}

#[test]
fn a_node_without_carrier_is_replaced_and_comes_back_without_a_clash() -> Result<()> {
    let mut scene = Scene::new(2, &vips(6))?;
    let (v4, v6, owner) = scene.pair(6)?;
    let other = 1 - owner;
    for vip in [&v4, &v6] {
        assert_eq!(resolve(&scene.segment.client, vip)?, scene.segment.mac(owner));
    }
    let capture = Capture::start(&scene.segment.client, "eth0", "arp or icmp6")?;
    let asking = Asking::start(&scene.segment.client, &v4, &v6)?;
    let port = format!("node{}", owner + 1);
    scene.segment.switch.ip(&format!("link set {port} down"))?;
    for vip in [&v4, &v6] {
        follows(&scene.segment.client, vip, &scene.segment.mac(other))?;
    }
    let status = scene.nodes[owner].status()?;
    assert_eq!(status["state"], "idle");
    assert_eq!(status["warnings"], json!(["no interface to announce on carries packets"]));
    ensure!(scene.owner(&v4)? == Some(other), "a node without carrier owns an address");
    scene.segment.switch.ip(&format!("link set {port} up"))?;
    scene.ready()?;
    for vip in [&v4, &v6] {
        follows(&scene.segment.client, vip, &scene.segment.mac(owner))?;
    }
    for answers in asking.end(&capture, [&v4, &v6])? {
        ensure!(answers.iter().all(|who| who.len() <= 1), "{answers:?}");
    }
    Ok(())
}

#[test]
fn an_interface_with_another_ethernet_address_is_told() -> Result<()> {
    let mut scene = Scene::new(1, &vips(1))?;
    for vip in [vip4(0), vip6(0)] {
        poll(TAKE_OVER, "it is owned", || scene.owner(&vip).ok()?)?;
        assert_eq!(resolve(&scene.segment.client, &vip)?, scene.segment.mac(0));
    }
    scene.segment.nodes[0].ip("link set eth0 address 02:00:00:00:00:77")?;
    for vip in [vip4(0), vip6(0)] {
        follows(&scene.segment.client, &vip, "02:00:00:00:00:77")?;
    }
    Ok(())
}

#[test]
fn nobody_else_can_take_an_address_that_is_owned() -> Result<()> {
    let mut scene = Scene::new(1, &vips(1))?;
    poll(TAKE_OVER, "it is owned", || scene.owner(&vip4(0)).ok()?)?;
    let client = &scene.segment.client;
    // An ARP probe (RFC 5227): the asker has no address yet.
    let macs = client.run(&format!("arping -i eth0 -0 -r -c 1 -w 1 {}", vip4(0)))?;
    assert_eq!(macs.trim(), scene.segment.mac(0));
    // Duplicate address detection of the client's own kernel.
    client.sysctl("net/ipv6/conf/eth0/accept_dad", "1")?;
    client.ip(&format!("address add {}/64 dev eth0", vip6(0)))?;
    let failed = || client.ip("address show dev eth0").ok()?.contains("dadfailed").then_some(());
    poll(Duration::from_secs(5), "the address is found to be taken", failed)
}

#[test]
fn a_claim_by_somebody_else_is_told_and_answered_sparingly() -> Result<()> {
    let mut scene = Scene::new(1, &vips(1))?;
    let vip = vip4(0);
    poll(TAKE_OVER, "it is owned", || scene.owner(&vip).ok()?)?;
    scene.nodes[0].until("it has said so often enough", |status| {
        status["vips"].as_array().is_some_and(|vips| vips.iter().all(|it| it["announced"] == 5))
    })?;
    let capture = Capture::start(&scene.segment.switch, "br0", "arp")?;
    let sent = scene.segment.client.enter(|| -> std::io::Result<()> {
        // As somebody does who was given the address by mistake.
        let announcement = arp_request([0xff; 6], CLIENT, &[], [192, 0, 2, 200], [192, 0, 2, 200].into());
        let frames = Frames::open("eth0")?;
        (0..5).try_for_each(|_| frames.send(&announcement))
    })?;
    sent?;
    let status = scene.nodes[0].until("the conflict is told", |status| {
        status["vips"].as_array().is_some_and(|vips| vips.iter().any(|it| it["announced"] == 6))
    })?;
    let conflict = status["vips"].as_array().into_iter().flatten().find(|it| it["address"] == vip);
    let conflict = conflict.map(|it| &it["conflict"]).context("no such address")?;
    assert_eq!((&conflict["mac"], &conflict["interface"]), (&json!("02:00:00:00:00:99"), &json!("eth0")));
    let defended = capture.until(&[&format!("Reply {vip} is-at {}", scene.segment.mac(0))])?;
    let by_owner =
        defended.iter().filter(|packet| packet.contains(&format!("{} > ff:", scene.segment.mac(0))));
    assert_eq!(by_owner.count(), 2, "once, in both forms: {defended:#?}");
    Ok(())
}

#[test]
fn solicitations_pass_a_switch_that_looks_who_is_in_a_group() -> Result<()> {
    let segment = Segment::new(2)?;
    segment
        .switch
        .ip("link set br0 type bridge mcast_snooping 1 mcast_querier 1 mcast_query_response_interval 10")?;
    let nodes = (0..2).map(|node| segment.announce(node, &vips(2))).collect::<Result<Vec<_>>>()?;
    let mut scene = Scene { nodes, segment };
    scene.ready()?;
    let group = "ff02::1:ff0f:200";
    let listed = || {
        let owner = scene.owner(&vip6(0)).ok()??;
        let mdb = scene.segment.switch.run("bridge mdb show").ok()?;
        let ports: Vec<&str> = mdb.lines().filter(|line| line.contains(group)).collect();
        let alone = ports.len() == 1 && ports[0].contains(&format!("port node{} ", owner + 1));
        alone.then_some(owner)
    };
    let polled = poll(Duration::from_secs(15), "the owner alone is in the group", listed);
    let owner = polled.with_context(|| {
        let status: Vec<_> = scene.nodes.iter_mut().map(Announcing::status).collect();
        format!("{:?} {status:#?}", scene.segment.switch.run("bridge mdb show"))
    })?;
    // The switch waits for some time after its first query before it believes that it knows all.
    let resolved = || {
        let _ = scene.segment.client.ip("neigh flush dev eth0");
        (resolve(&scene.segment.client, &vip6(0)).ok()? == scene.segment.mac(owner)).then_some(())
    };
    poll(Duration::from_secs(15), "the owner is asked and answers", resolved)
}

#[test]
fn frames_for_others_and_of_other_networks_are_not_answered() -> Result<()> {
    let mut scene = Scene::new(1, &vips(1))?;
    poll(TAKE_OVER, "it is owned", || scene.owner(&vip4(0)).ok()?)?;
    let capture = Capture::start(&scene.segment.client, "eth0", "arp")?;
    let sent = scene.segment.client.enter(|| -> std::io::Result<()> {
        let frames = Frames::open("eth0")?;
        let ask = |number, to, tag: &[u8]| {
            let mac = [0x02, 0x99, 0, 0, 0, number];
            frames.send(&arp_request(to, mac, tag, [192, 0, 2, 99], [192, 0, 2, 200].into()))
        };
        // With a VLAN tag; for another host, which the switch does not know; with a tag that has a priority and no VLAN and so belongs
        // to the interface itself; and without.
        ask(0, [0xff; 6], &[0x81, 0, 0, 7])?;
        ask(1, [2, 0, 0, 0, 0, 0x55], &[])?;
        ask(2, [0xff; 6], &[0x81, 0, 0x20, 0])?;
        ask(3, [0xff; 6], &[])
    })?;
    sent?;
    // They are answered one after the other, if at all.
    let packets = capture.until(&["> 02:99:00:00:00:03", "Reply"])?;
    let answered = packets.iter().filter_map(|packet| answer_by_number(packet, &vip4(0)));
    assert_eq!(answered.map(|(_, number)| number).collect::<Vec<_>>(), [2, 3], "{packets:#?}");
    Ok(())
}

#[test]
fn nodes_that_are_cut_off_from_each_other_agree_again_within_a_heartbeat() -> Result<()> {
    let mut scene = Scene::new(2, &vips(6))?;
    let before: Vec<Option<usize>> =
        (0..6).map(|number| scene.owner(&vip4(number))).collect::<Result<_>>()?;
    let cut = |scene: &Scene, cut: bool| -> Result<()> {
        let verb = if cut { "add" } else { "del" };
        for (node, other) in [(0, 12), (1, 11)] {
            scene.segment.nodes[node].ip(&format!("route {verb} blackhole 192.0.2.{other}/32"))?;
            scene.segment.nodes[node].ip(&format!("route {verb} blackhole 2001:db8:1::{other}/128"))?;
        }
        Ok(())
    };
    cut(&scene, true)?;
    for node in &mut scene.nodes {
        // Clients hear both, and both hear each other's announcements.
        node.until("it owns everything, and says that another one does so as well", |status| {
            let vips: Vec<&Value> = status["vips"].as_array().into_iter().flatten().collect();
            vips.iter().all(|vip| vip["ours"] == true) && vips.iter().any(|vip| !vip["conflict"].is_null())
        })?;
    }
    cut(&scene, false)?;
    scene.ready()?;
    for (number, owner) in before.into_iter().enumerate() {
        let vip = vip4(number);
        assert_eq!(scene.owner(&vip)?, owner);
        // Whatever the client was told meanwhile.
        let _ = scene.segment.client.run(&format!("ping -c 1 -W 0.1 {vip}"));
        let mac = scene.segment.mac(owner.context("nobody owned it")?);
        follows(&scene.segment.client, &vip, &mac)?;
    }
    Ok(())
}
