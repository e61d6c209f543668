//! How long an allocation takes: `cargo run --release -p portolan-pool --example allocate_speed [SERVICES]`.

use std::collections::BTreeSet;
use std::time::Instant;

use portolan_model::{Event, Kind, ObjectKey, Store, read};
use portolan_pool::{Allocator, CLASS, Record, Settings};
use serde_json::{Value, json};

fn main() {
    let services: u32 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let mut store = Store::default();
    put(&mut store, &pool("v6", json!(["2001:db8::/32"])));
    put(&mut store, &pool("v4", json!(["100.64.0.0/10"])));
    (0..services).for_each(|number| put(&mut store, &service(number, None)));
    let settings = Settings {
        class: CLASS.into(),
        is_default: true,
        service_cidrs: Vec::new(),
        document_addresses: true,
    };
    let allocator = Allocator::new(settings);
    let time = |what: &str, store: &Store, record: &Record| {
        let begun = Instant::now();
        let outcome = allocator.allocate(store, record, &BTreeSet::new());
        println!("{what}: {:?}", begun.elapsed());
        outcome.record()
    };
    let record = time("all services, both families, nothing given before", &store, &Record::new());
    assert_eq!(record.len(), services as usize);
    time("the same again", &store, &record);
    put(&mut store, &service(services, None));
    time("one service more", &store, &record);
    store.apply(Event::Delete(ObjectKey::new(Kind::LoadBalancerPool, "", "v4")));
    time("a pool gone", &store, &record);
    put(&mut store, &pool("v4", json!(["100.64.0.0/28"])));
    (0..services).for_each(|number| put(&mut store, &service(number, Some("k"))));
    time("all with one sharing key and one port, and hardly an IPv4 address", &store, &Record::new());
}

fn put(store: &mut Store, document: &Value) {
    let reading = read(document).expect("it is valid").expect("it is of our kinds");
    store.apply(Event::Upsert(reading.object));
}

fn pool(name: &str, cidrs: Value) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": name},
        "spec": {"addresses": cidrs},
    })
}

fn service(number: u32, key: Option<&str>) -> Value {
    let annotations = key.map(|key| json!({"portolan.dev/sharing-key": key})).unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("s{number}"), "annotations": annotations},
        "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 80}]},
    })
}
