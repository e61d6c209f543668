use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::tests::{World, altered, pool};
use super::*;
use crate::service::fit;

/// Something that happens to the objects.
#[derive(Clone, Debug)]
enum Step {
    Service(Value),
    ServiceGoes(u8),
    Pool(Value),
    PoolGoes(u8),
    Restart,
}

/// Few names and addresses, so that they meet.
fn services() -> impl Strategy<Value = Step> {
    let families = select(vec![json!(["IPv4"]), json!(["IPv6"]), json!(["IPv4", "IPv6"]), json!(null)]);
    let policies = select(vec![json!("PreferDualStack"), json!("RequireDualStack")]);
    let kinds = select(vec!["LoadBalancer", "LoadBalancer", "LoadBalancer", "ClusterIP"]);
    let classes = select(vec![json!(null), json!(null), json!(crate::CLASS), json!("example.org/other")]);
    let requests =
        select(vec![None, None, Some("198.51.100.1"), Some("198.51.100.2,2001:db8::2"), Some("nonsense")]);
    let keys = select(vec![None, Some("k"), Some("l")]);
    let rest = (80_i64..83, any::<bool>(), select(vec!["a", "b"]), 0_u8..3);
    (0_u8..8, families, policies, kinds, classes, requests, keys, rest).prop_map(
        |(name, families, policy, kind, class, request, key, (port, local, label, age))| {
            let mut annotations = serde_json::Map::new();
            annotations.extend(request.map(|it| ("portolan.dev/load-balancer-ips".to_owned(), json!(it))));
            annotations.extend(key.map(|it| ("portolan.dev/sharing-key".to_owned(), json!(it))));
            Step::Service(altered(
                &format!("s{name}"),
                &[
                    ("/metadata/annotations", Value::Object(annotations)),
                    ("/metadata/labels", json!({"l": label})),
                    ("/metadata/creationTimestamp", json!(format!("2025-01-0{}T00:00:00Z", age + 1))),
                    ("/spec/ipFamilies", families),
                    ("/spec/ipFamilyPolicy", policy),
                    ("/spec/type", json!(kind)),
                    ("/spec/loadBalancerClass", class),
                    ("/spec/ports", json!([{"port": port}])),
                    ("/spec/externalTrafficPolicy", json!(if local { "Local" } else { "Cluster" })),
                    ("/spec/selector", json!({"app": label})),
                ],
            ))
        },
    )
}

fn pools() -> impl Strategy<Value = Step> {
    let cidrs = select(vec![
        "198.51.100.0/30",
        "198.51.100.2/31",
        "198.51.100.8/31",
        "2001:db8::/126",
        "2001:db8::2/127",
    ]);
    let cidrs = prop::collection::vec(cidrs, 1..3);
    (0_u8..3, cidrs, any::<bool>(), -1_i32..2, prop::option::of(select(vec!["a", "b"]))).prop_map(
        |(name, cidrs, auto, priority, label)| {
            let selector = label.map(|label| json!({"matchLabels": {"l": label}})).unwrap_or_default();
            let spec = json!({"addresses": cidrs, "autoAssign": auto, "priority": priority, "serviceSelector": selector});
            Step::Pool(pool(&format!("p{name}"), spec))
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => services(),
        1 => (0_u8..8).prop_map(Step::ServiceGoes),
        3 => pools(),
        1 => (0_u8..3).prop_map(Step::PoolGoes),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

fn take(world: &mut World, step: &Step) -> Outcome {
    use portolan_model::Kind::{LoadBalancerPool, Service};
    match step {
        Step::Service(document) | Step::Pool(document) => world.with([document.clone()]),
        Step::ServiceGoes(name) => world.without(Service, &format!("s{name}")),
        Step::PoolGoes(name) => world.without(LoadBalancerPool, &format!("p{name}")),
        Step::Restart => world.allocate(),
    }
}

/// What a service may lose only by its own doing.
fn may_lose(store: &Store, key: &ServiceKey, addr: IpAddr, now: &[IpAddr]) -> bool {
    let service = store.service(key).and_then(|entry| entry.service.as_ref());
    let Some(wish) = service.and_then(|service| service.load_balancer.as_ref()) else { return true };
    let family = Family::of(addr);
    let class_changed = wish.class.as_ref().is_some_and(|class| **class != *crate::CLASS);
    let gave_family_up = !wish.families.is_empty() && !wish.families.contains(&family);
    let moved = wish.requested.iter().any(|asked| Family::of(*asked) == family && now.contains(asked));
    class_changed || gave_family_up || moved
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Also that whoever begins anew with the record says the same: `World::allocate` compares at every step.
    #[test]
    fn nothing_is_lost_and_nothing_is_given_twice(steps in steps()) {
        let mut world = World::default();
        for step in &steps {
            let before = world.record.clone();
            take(&mut world, step);
            for (key, addrs) in &before {
                let now = world.record.get(key).map_or(&[][..], Vec::as_slice);
                for addr in addrs.iter().filter(|addr| !now.contains(addr)) {
                    prop_assert!(may_lose(&world.store, key, *addr, now), "{key} lost {addr} by {step:?}");
                }
            }
            check_new(&world, &before)?;
        }
    }

    /// One step for all, whatever the order in which the objects are told.
    #[test]
    fn the_order_of_objects_does_not_matter(steps in steps(), seed in any::<u64>()) {
        let documents: BTreeMap<String, Value> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Service(document) | Step::Pool(document) => {
                    Some((document["metadata"]["name"].as_str()?.to_owned(), document.clone()))
                }
                Step::ServiceGoes(_) | Step::PoolGoes(_) | Step::Restart => None,
            })
            .collect();
        let mut shuffled: Vec<Value> = documents.values().cloned().collect();
        shuffled.sort_by_key(|document| {
            let name = document["metadata"]["name"].as_str().unwrap_or_default();
            name.bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)).rotate_left(7))
        });
        let (mut one, mut two) = (World::default(), World::default());
        prop_assert_eq!(one.with(documents.into_values()), two.with(shuffled));
    }
}

/// Whoever got an address just now has it alone, or shares it with those that it fits to; and it is of a pool that is for it.
fn check_new(world: &World, before: &Record) -> Result<(), TestCaseError> {
    for (key, addrs) in &world.record {
        let had = before.get(key).map_or(&[][..], Vec::as_slice);
        for addr in addrs.iter().filter(|addr| !had.contains(addr)) {
            let service = |key| world.store.service(key).and_then(|entry| entry.service.as_ref()).unwrap();
            for (other, theirs) in &world.record {
                if other != key && theirs.contains(addr) {
                    prop_assert!(
                        fit(service(key), service(other)).is_ok(),
                        "{key} and {other} both have {addr}"
                    );
                }
            }
            let labels = &service(key).load_balancer.as_ref().unwrap().labels;
            let is_for = |pool: &portolan_model::LoadBalancerPool| {
                let has = pool.ranges.iter().any(|range| (range.first()..=range.last()).contains(addr));
                has && pool.services.matches(labels)
            };
            prop_assert!(world.store.pools().any(is_for), "{addr} is of no pool for {key}");
        }
    }
    Ok(())
}
