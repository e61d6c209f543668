//! Public addresses from pools: a controller gives them, agents on the same directory serve them.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Agent, Controller, Endpoint, LongLived, Shop, failure, get, object, poll, public_address, slice,
};

const FAMILIES: [bool; 2] = [false, true];

/// Longest time from an edit to its effect.
const AT_ONCE: Duration = Duration::from_secs(10);

/// The fixture's own service has the tenth address of both ranges.
const RANGES: [&str; 2] = ["198.51.100.8/29", "2001:db8:f::8/125"];

fn pool(name: &str, cidrs: [&str; 2]) -> String {
    format!(
        "apiVersion: portolan.dev/v1alpha1\nkind: LoadBalancerPool\nmetadata: {{name: {name}}}\n\
         spec: {{addresses: [{}, \"{}\"]}}\n",
        cidrs[0], cidrs[1]
    )
}

/// A service of both families with all of the shop's backends, at cluster addresses of that last number.
fn service(shop: &Shop, name: &str, last: u8, spec: &str) -> String {
    let addresses = format!(
        "clusterIP: 10.96.0.{last}, clusterIPs: [10.96.0.{last}, \"fd00:10:96::{last}\"], ipFamilies: [IPv4, IPv6]"
    );
    let ports = "ports: [{name: http, port: 80}]";
    let slices = FAMILIES.map(|v6| {
        let endpoints = shop.backends.iter().map(|it| Endpoint::new(it.pod.address(v6), it.node, ""));
        slice(&format!("{name}{v6}"), name, "{name: http, port: 8080}", &endpoints.collect::<Vec<_>>())
    });
    object(name, "", &format!("type: LoadBalancer, {addresses}, {ports}{spec}")) + &slices.concat()
}

fn at(address: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse::<IpAddr>()?, 80))
}

/// The outside client is answered at every address.
fn answered(shop: &Shop, addresses: &[String]) -> Result<()> {
    for address in addresses {
        let to = at(address)?;
        poll(AT_ONCE, &format!("{address} answers"), || get(&shop.cluster.client, to).ok())?;
    }
    Ok(())
}

/// Nobody is at these addresses any more.
fn unanswered(shop: &Shop, addresses: &[String]) -> Result<()> {
    for address in addresses {
        let to = at(address)?;
        let gone = || {
            let outcome = failure(&shop.cluster.client, false, to, Duration::from_millis(500)).ok()?;
            outcome.filter(|kind| *kind != ErrorKind::ConnectionRefused)
        };
        poll(AT_ONCE, &format!("{address} is silent"), gone)?;
    }
    Ok(())
}

#[test]
fn a_service_is_given_addresses_and_keeps_them_whatever_becomes_of_the_controller_and_the_pool() -> Result<()>
{
    let mut shop = Shop::open(&[0, 1])?;
    let mut controller = Controller::start(&shop.cluster)?;
    shop.cluster.write("pool.yaml", &pool("p", RANGES))?;
    shop.cluster.write("a.yaml", &service(&shop, "a", 60, ""))?;
    let given = controller.addresses("a", 2)?;
    assert_eq!(given, ["198.51.100.8", "2001:db8:f::8"]);
    answered(&shop, &given)?;
    for v6 in FAMILIES {
        get(&shop.cluster.client, public_address(v6)).context("the addresses in a document stay")?;
    }
    assert_eq!(controller.addresses("web", 2)?, ["198.51.100.10", "2001:db8:f::10"]);

    let held = LongLived::start(&shop.cluster.client, at(&given[0])?, 4)?;
    controller.kill()?;
    shop.agents.iter_mut().try_for_each(Agent::restart)?;
    answered(&shop, &given).context("without a controller")?;
    controller.restart()?;
    shop.cluster.write("pool.yaml", &pool("p", ["198.51.100.64/29", "2001:db8:f::40/125"]))?;
    shop.cluster.write("b.yaml", &service(&shop, "b", 61, ""))?;
    let others = controller.addresses("b", 2)?;
    assert_eq!(others, ["198.51.100.64", "2001:db8:f::40"], "the pool has these now");
    answered(&shop, &others)?;
    assert_eq!(controller.addresses("a", 2)?, given, "what was given stays");
    answered(&shop, &given)?;
    std::fs::remove_file(shop.cluster.objects().join("pool.yaml"))?;
    shop.settle()?;
    assert_eq!(controller.addresses("a", 2)?, given);
    answered(&shop, &given)?;
    let tally = held.finish();
    ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
    controller.terminate()
}

#[test]
fn an_address_is_free_when_its_service_is_gone_and_the_next_one_gets_it() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let controller = Controller::start(&shop.cluster)?;
    shop.cluster.write("pool.yaml", &pool("p", ["198.51.100.8/32", "2001:db8:f::8/128"]))?;
    shop.cluster.write("a.yaml", &service(&shop, "a", 60, ""))?;
    let given = controller.addresses("a", 2)?;
    answered(&shop, &given)?;
    shop.cluster.write("b.yaml", &service(&shop, "b", 61, ""))?;
    let exhausted = || {
        let view = controller.view("b").ok()?;
        view["conditions"].as_array()?.iter().find(|it| it["reason"] == "PoolsExhausted").cloned()
    };
    let said = poll(AT_ONCE, "b is told that there is no address", exhausted)?;
    assert_eq!(said["status"], false);
    answered(&shop, &given)?;

    std::fs::remove_file(shop.cluster.objects().join("a.yaml"))?;
    assert_eq!(controller.addresses("b", 2)?, given);
    answered(&shop, &given)?;
    shop.cluster.write("b.yaml", &service(&shop, "b", 61, "").replace("LoadBalancer", "ClusterIP"))?;
    unanswered(&shop, &given).context("a service of another type has none")?;
    shop.cluster.write("c.yaml", &service(&shop, "c", 62, ""))?;
    assert_eq!(controller.addresses("c", 2)?, given);
    answered(&shop, &given)
}

#[test]
fn two_services_share_an_address_by_their_ports() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let controller = Controller::start(&shop.cluster)?;
    shop.cluster.write("pool.yaml", &pool("p", RANGES))?;
    let keyed = |name: &str, last: u8, port: u16| {
        let text = service(&shop, name, last, "").replace("port: 80}", &format!("port: {port}}}"));
        text.replace("namespace: shop}", "namespace: shop, annotations: {portolan.dev/sharing-key: k}}")
    };
    shop.cluster.write("shared.yaml", &(keyed("a", 60, 80) + &keyed("b", 61, 81)))?;
    let given = controller.addresses("a", 2)?;
    assert_eq!(controller.addresses("b", 2)?, given);
    answered(&shop, &given)?;
    for address in &given {
        let to = SocketAddr::new(address.parse()?, 81);
        poll(AT_ONCE, &format!("{to} answers"), || get(&shop.cluster.client, to).ok())?;
    }
    Ok(())
}

#[test]
fn a_second_controller_on_the_same_state_is_refused() -> Result<()> {
    let cluster = portolan_tests::lab::Cluster::new()?;
    let mut controller = Controller::start(&cluster)?;
    let output = controller.command()?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    ensure!(said.contains("another controller writes") && said.contains("--state"), "{said}");
    controller.kill()?;
    controller.restart().context("a killed one holds nothing")?;
    controller.terminate()
}
