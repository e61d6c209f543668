//! One service with very many endpoints.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_apply::Applier;
use portolan_model::{Event, Store, read};
use portolan_node::{Object, Sizes};
use portolan_plan::{BackendAddr, Extent, Options, Planner, maglev};
use serde_json::{Value, json};

use super::{Agent, timed};
use crate::report::{Goal, Row, Unit};

/// Endpoints of a slice, and slices.
const EACH: u32 = 100;
const SLICES: u32 = 10;

/// One endpoint of 1,000 in 10 slices changes: with a slot for each, and with a Maglev table.
pub(super) fn changes(rounds: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, consistent, goal) in
        [("1,000 endpoints in 10 slices", false, true), ("the same by a Maglev table", true, false)]
    {
        let samples = one(consistent, rounds * 10)?;
        let row = Row::new(format!("{name}: one changes"), Unit::Seconds, samples);
        rows.push(if goal { row.goal(Goal::P99AtMost(0.001)) } else { row });
    }
    let backends: Vec<BackendAddr> = (0..EACH * SLICES)
        .map(|number| BackendAddr {
            addr: (0x0b00_0000 + number).to_be_bytes().into(),
            port: 8080,
            local: false,
        })
        .collect();
    let samples = (0..rounds).map(|_| {
        let (table, took) = timed(|| maglev::table(&backends));
        ensure!(table.len() == 65_537, "{} slots", table.len());
        Ok(took.as_secs_f64())
    });
    let row = Row::new(
        "Maglev table of 65,537 slots for 1,000 backends",
        Unit::Seconds,
        samples.collect::<Result<_>>()?,
    );
    rows.push(row.goal(Goal::AtMost(0.002)));
    Ok(rows)
}

fn one(consistent: bool, count: u32) -> Result<Vec<f64>> {
    let object = Object::load(None, Sizes::default())?;
    let applier = Applier::open(object.tables()?)?;
    let options = Options { consistent, ..Options::default() };
    let planner = Planner::with_options(super::cluster::NODE, options);
    let mut world = Agent { store: Store::default(), planner, applier };
    world.store.apply(Event::Upsert(super::cluster::node()));
    world.store.apply(upsert(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "large", "namespace": "shop"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                 "ports": [{"port": 80, "nodePort": 30080}]},
    }))?);
    for number in 0..SLICES {
        world.store.apply(upsert(&slice(number, None))?);
    }
    let all = world.planner.plan(&world.store, Extent::All);
    world.apply(&all)?;
    (0..count).map(|number| change(&mut world, number).map(|took| took.as_secs_f64())).collect()
}

/// One endpoint of a slice gets another address; the time until packets go there.
fn change(world: &mut Agent, number: u32) -> Result<Duration> {
    let event = upsert(&slice(number % SLICES, Some(0x0c00_0000 + number)))?;
    let begun = Instant::now();
    let touched = world.store.apply(event);
    let changes = world.planner.plan(&world.store, Extent::Touched(&touched));
    world.apply(&changes)?;
    let took = begun.elapsed();
    let services: Vec<_> = world.applier.services().collect();
    let [(_, plan, states)] = &services[..] else { anyhow::bail!("{} services", services.len()) };
    ensure!(states[0].backends.len() == (EACH * SLICES) as usize, "{} backends", states[0].backends.len());
    let moved = std::net::IpAddr::from((0x0c00_0000 + number).to_be_bytes());
    ensure!(plan.ports[0].cluster.iter().any(|it| it.addr == moved), "{moved} is not served");
    drop(services);
    world.applier.settle()?;
    Ok(took)
}

fn slice(number: u32, moved: Option<u32>) -> Value {
    let endpoint = |place: u32| {
        let bits = moved.filter(|_| place == 0).unwrap_or(0x0b00_0000 + number * EACH + place);
        json!({"addresses": [std::net::Ipv4Addr::from_bits(bits).to_string()], "nodeName": format!("node-{}", place % 50)})
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("large-{number}"), "namespace": "shop", "labels": {"kubernetes.io/service-name": "large"}},
        "ports": [{"name": "", "port": 8080}], "endpoints": (0..EACH).map(endpoint).collect::<Vec<_>>(),
    })
}

fn upsert(document: &Value) -> Result<Event> {
    let reading = read(document).map_err(anyhow::Error::from)?;
    Ok(Event::Upsert(reading.context("an object of ours")?.object))
}
