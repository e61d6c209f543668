//! How much is planned again when something changes.

use super::*;

#[test]
fn one_endpoint_change_changes_one_service() {
    let mut world = World::new();
    for i in 0..10 {
        let ip = format!("10.96.0.{}", i + 1);
        world.apply([upsert(service(&format!("s{i}"), json!({"clusterIP": ip, "ports": [{"port": 80}]})))]);
    }
    let changes = world.apply([slice("s3", json!([{"addresses": ["10.1.0.1"]}]))]);
    assert_eq!(changes.services.len(), 1);
    assert_eq!(changes.services[0].0, key("s3"));
}

#[test]
fn so_many_services_that_two_threads_plan_them_get_the_plans_they_get_one_by_one() {
    let mut world = World::new();
    let count = SHARED as u32 + 1;
    world.apply((0..count).map(|number| {
        // Every third wants the address of the one before, and is refused.
        let owner = if number % 3 == 2 { number - 1 } else { number };
        let address = std::net::Ipv4Addr::from_bits(0x0a60_0000 + owner).to_string();
        let ports = json!([{"port": 80}]);
        upsert(service(&format!("s{number}"), json!({"clusterIP": address, "ports": ports})))
    }));
    let mut fresh = Planner::new("a");
    let changes = fresh.plan(&world.store, Extent::All);
    assert_eq!(changes.services.len(), count as usize);
    assert!(changes.services.is_sorted_by(|one, next| one.0 < next.0));
    assert!(fresh.desired().eq(world.planner.desired()));
    assert_eq!(changes.conditions, world.apply([]).conditions);
    assert_eq!(changes.conditions.len(), count as usize / 3);
    let again = fresh.plan(&world.store, Extent::All);
    assert!(again.services.is_empty());
    assert_eq!(again.conditions, changes.conditions);
}
