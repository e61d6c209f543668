//! Source ranges of each family.

use super::*;

#[test]
fn source_ranges_are_of_the_family_and_a_family_without_any_is_closed() {
    let mut world = World::new();
    let mut document = service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
            "loadBalancerSourceRanges": ["198.51.100.0/24"],
        }),
    );
    document["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    let changes = world.apply([upsert(document.clone())]);
    assert_eq!(world.frontends("web").len(), 2);
    let only = ["198.51.100.0/24".parse().unwrap()];
    assert_eq!(world.ports("web")[0].sources.as_deref(), Some(&only[..]));
    assert_eq!(changes.conditions, []);
    document["spec"]["loadBalancerSourceRanges"] = json!(["2001:db8::/32"]);
    let changes = world.apply([upsert(document.clone())]);
    assert_eq!(world.ports("web")[0].sources.as_deref(), Some(&[][..]), "nobody of this family");
    assert_eq!(changes.conditions[0].reason, Reason::NobodyAdmitted);
    document["spec"]["loadBalancerSourceRanges"] = json!(["2001:db8::/32", "0.0.0.0/0"]);
    world.apply([upsert(document)]);
    assert_eq!(world.ports("web")[0].sources, None, "a range of length 0 admits everybody");
}

/// The source ranges of both families of a dual-stack service, and what is told.
fn admitted(ranges: &[&str]) -> ([Option<String>; 2], String) {
    let mut world = World::new();
    let mut document = service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": [{"port": 80}],
            "loadBalancerSourceRanges": ranges,
        }),
    );
    document["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "2001:db8::1"}]}});
    let changes = world.apply([upsert(document)]);
    let text = |port: &ServicePort| {
        let sources = port.sources.as_ref()?;
        Some(sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    let ports = world.ports("web");
    ([text(&ports[0]), text(&ports[1])], texts(&changes.conditions))
}

#[test]
fn a_range_that_admits_everybody_of_one_family_leaves_the_other_as_it_is() {
    let some = |text: &str| Some(text.to_owned());
    for (ranges, expected, closed) in [
        (&["0.0.0.0/0", "2001:db8::/32"][..], [None, some("2001:db8::/32")], None),
        (&["192.0.2.0/24", "::/0", "2001:db8::/32"], [some("192.0.2.0/24"), None], None),
        (&["192.0.2.0/24", "2001:db8::/32"], [some("192.0.2.0/24"), some("2001:db8::/32")], None),
        (&["0.0.0.0/0", "::/0"], [None, None], None),
        (&["0.0.0.0/0"], [None, some("")], Some("2001:db8::1")),
        (&["::/0"], [some(""), None], Some("203.0.113.1")),
    ] {
        let (found, told) = admitted(ranges);
        assert_eq!(found, expected, "{ranges:?}");
        match closed {
            None => assert_eq!(told, "", "{ranges:?}"),
            Some(ip) => assert!(told.starts_with(&format!("NobodyAdmitted: {ip} is closed")), "{told}"),
        }
    }
}
