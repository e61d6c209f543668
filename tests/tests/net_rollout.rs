//! A set of name servers is replaced, pod by pod, while clients ask it all the time over UDP and never close their
//! sockets: nobody's questions get lost for longer than they are repeated.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_tests::lab::{
    Backend, Condition, Netns, Pod, Resolver, Shop, cluster_address, public_address, service,
};

const FAMILIES: [bool; 2] = [false, true];

/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_millis(5);

/// Pods and hosts of both nodes, and one from outside.
fn clients<'a>(shop: &'a Shop, second: &'a Pod) -> Vec<(&'a Netns, SocketAddr)> {
    let [one, two] = &shop.cluster.nodes;
    let inside = [&shop.client.netns, &second.netns, &one.netns, &two.netns];
    let of = |v6: bool| {
        let inside = inside.map(|netns| (netns, cluster_address(v6)));
        inside.into_iter().chain([(&shop.cluster.client, public_address(v6))])
    };
    FAMILIES.into_iter().flat_map(of).collect()
}

/// Puts another pod in the place of the oldest one, as a Deployment does, but without any grace: the old pod is gone as soon
/// as both nodes know that it ends.
fn replace_oldest(shop: &mut Shop, name: &str) -> Result<()> {
    let node = shop.backends[0].node;
    let newest = shop.backends.len();
    shop.backends.push(Backend::add(&shop.agents, node, name)?);
    let starting = |index| Some(if index == newest { Condition::NotReady } else { Condition::Ready });
    let ending = |index| Some(if index == 0 { Condition::Terminating } else { Condition::Ready });
    shop.publish(starting)?;
    shop.settle()?;
    shop.publish(|_| Some(Condition::Ready))?;
    shop.settle()?;
    shop.publish(ending)?;
    shop.settle()?;
    // First the pod goes, then its slice says so.
    drop(shop.backends.remove(0));
    shop.publish(|_| Some(Condition::Ready))?;
    shop.settle()
}

/// Replaces both pods, one on each node, and those that replace them; `extra` is more of the service's spec.
fn every_question_is_answered(extra: &str) -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    shop.cluster.write("service.yaml", &service(extra))?;
    shop.settle()?;
    let second = Pod::add(&shop.agents[1], "client2")?;
    let asking = clients(&shop, &second).into_iter().map(|(netns, to)| Resolver::start(netns, to, PAUSE));
    let asking = asking.collect::<Result<Vec<_>>>()?;
    for number in 0..4 {
        replace_oldest(&mut shop, &format!("new{number}"))?;
    }
    // A question that waits just now goes on until it is answered or failed.
    std::thread::sleep(Duration::from_secs(1));
    for tally in asking.into_iter().map(Resolver::finish) {
        ensure!(tally.failures.is_empty(), "{tally:?}");
        let last = ["new2", "new3"].iter().filter_map(|name| tally.by_server.get(*name)).sum::<usize>();
        ensure!(last > 20, "nobody of those that are there in the end is asked: {tally:?}");
        ensure!(tally.by_server.len() >= 2 && tally.answers() > 60, "{tally:?}");
    }
    Ok(())
}

#[test]
fn every_question_is_answered_while_all_name_servers_are_replaced() -> Result<()> {
    every_question_is_answered("")
}

#[test]
fn every_question_is_answered_while_each_nodes_own_name_server_is_replaced() -> Result<()> {
    every_question_is_answered("  internalTrafficPolicy: Local\n")
}
