//! Routes, the service device, uplinks, events and sysctls of a node in a namespace of its own. Needs root.

mod link_support;
mod look;

use std::{net::IpAddr, time::Duration};

use ipnetwork::IpNetwork;
use link_support::{NODE_V4, NODE_V6, Node, Space, nothing, pod};
use portolan_node::link::{Error, Event, GATEWAY_MAC, Links, PROTOCOL, ServiceSources};

const SOURCES: ServiceSources = ServiceSources {
    v4: Some(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    v6: Some(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
};

#[tokio::test]
async fn native_routes_become_what_is_desired_and_foreign_ones_stay() {
    let node = Node::new().await;
    node.space.run("ip route add 10.99.0.0/16 via 192.0.2.99 proto static");
    node.space.run("ip -6 route add fd99::/64 via 2001:db8::99 proto static");
    let native = routes(&[("10.1.0.0/24", "192.0.2.2"), ("fd01::/64", "2001:db8::2")]);
    let local = nets(&["10.77.0.0/24", "fd77::/64"]);
    let report = node.links.ensure_routes(&native, &local).await.unwrap();
    assert_eq!((report.added, report.removed, report.failed.len()), (4, 0, 0), "{report:?}");
    assert!(table(&node, "-4").contains("10.1.0.0/24 via 192.0.2.2 dev up0"));
    assert!(table(&node, "-6").contains("fd01::/64 via 2001:db8::2 dev up0"));
    assert!(table(&node, "-4").contains("unreachable 10.77.0.0/24"));
    assert!(table(&node, "-6").contains("unreachable fd77::/64"));

    let again = node.links.ensure_routes(&native, &local).await.unwrap();
    assert_eq!((again.added, again.removed), (0, 0), "nothing to do: {again:?}");

    // One node moves in both families, the refusals go, a node joins.
    let native =
        routes(&[("10.1.0.0/24", "192.0.2.3"), ("fd01::/64", "2001:db8::3"), ("10.2.0.0/24", "192.0.2.2")]);
    let report = node.links.ensure_routes(&native, &[]).await.unwrap();
    assert_eq!((report.added, report.removed, report.failed.len()), (3, 4, 0), "{report:?}");
    let (v4, v6) = (table(&node, "-4"), table(&node, "-6"));
    assert!(v4.contains("10.1.0.0/24 via 192.0.2.3") && !v4.contains("10.1.0.0/24 via 192.0.2.2"), "{v4}");
    assert!(v6.contains("fd01::/64 via 2001:db8::3") && !v6.contains("2001:db8::2"), "{v6}");
    assert!(!v4.contains("unreachable") && !v6.contains("unreachable"), "{v4}{v6}");

    node.links.ensure_routes(&[], &[]).await.unwrap();
    assert_eq!(node.links.routes().await.unwrap(), []);
    assert!(node.space.run("ip route").contains("10.99.0.0/16 via 192.0.2.99 dev up0 proto static"));
    assert!(node.space.run("ip -6 route").contains("fd99::/64 via 2001:db8::99 dev up0 proto static"));
}

#[tokio::test]
async fn a_refusal_becomes_a_gateway_and_back_in_both_families() {
    let node = Node::new().await;
    let prefixes = nets(&["10.1.0.0/24", "fd01::/64"]);
    let native = routes(&[("10.1.0.0/24", "192.0.2.2"), ("fd01::/64", "2001:db8::2")]);
    for _ in 0..2 {
        let report = node.links.ensure_routes(&[], &prefixes).await.unwrap();
        assert!(report.failed.is_empty(), "{report:?}");
        assert_eq!(table(&node, "-4").matches("unreachable").count(), 1);
        assert_eq!(table(&node, "-6").matches("unreachable").count(), 1);
        let report = node.links.ensure_routes(&native, &[]).await.unwrap();
        assert!(report.failed.is_empty(), "{report:?}");
        assert!(!table(&node, "-4").contains("unreachable") && !table(&node, "-6").contains("unreachable"));
        assert_eq!(node.links.routes().await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn a_foreign_route_for_the_same_prefix_is_reported_not_overwritten() {
    let node = Node::new().await;
    node.space.run("ip route add 10.1.0.0/24 via 192.0.2.99 proto static");
    node.space.run("ip -6 route add fd01::/64 via 2001:db8::99 proto static");
    let native =
        routes(&[("10.1.0.0/24", "192.0.2.2"), ("fd01::/64", "2001:db8::2"), ("10.2.0.0/24", "192.0.2.2")]);
    let report = node.links.ensure_routes(&native, &[]).await.unwrap();
    assert_eq!((report.added, report.failed.len()), (1, 2), "the third is in place: {report:?}");
    assert!(node.space.run("ip route").contains("10.1.0.0/24 via 192.0.2.99"));
    assert_eq!(node.space.run("ip -6 route show fd01::/64").lines().count(), 1);
}

#[tokio::test]
async fn a_gateway_that_is_not_on_the_link_is_reported_with_the_kernels_words() {
    let node = Node::new().await;
    let native = routes(&[("10.1.0.0/24", "198.51.100.1"), ("10.2.0.0/24", "192.0.2.2")]);
    let report = node.links.ensure_routes(&native, &[]).await.unwrap();
    assert_eq!(report.added, 1, "{report:?}");
    let error = report.failed[0].1.to_string();
    assert!(error.contains("10.1.0.0/24") && error.contains("gateway"), "{error}");
}

#[tokio::test]
async fn an_unused_address_of_the_nodes_own_pod_cidr_is_refused_and_a_used_one_is_not() {
    let node = Node::new().await;
    node.space.run("ip route add default via 192.0.2.254");
    let (_space, spec) = pod(1);
    node.links.create_pod(&spec, nothing).await.unwrap();
    node.links.ensure_routes(&[], &nets(&["10.77.0.0/24"])).await.unwrap();
    assert!(!node.space.try_run("ip route get 10.77.0.200").status.success());
    assert!(node.space.run("ip route get 10.77.0.1").contains("dev ptl0000000001"));
    assert!(node.space.pings("10.77.0.1"), "the pod's own route was not taken for a stale one");
}

#[tokio::test]
async fn the_service_device_is_made_once_and_corrected_later() {
    let node = Node::new().await;
    let device = node.links.ensure_service_device(1450).await.unwrap();
    node.space.run("ip link set portolan0 down address 02:00:00:00:00:99 mtu 9000 arp on");
    node.space.run("sysctl -qw net.ipv4.conf.portolan1.rp_filter=1");
    assert_eq!(node.links.ensure_service_device(1450).await.unwrap(), device);
    for (name, ifindex) in [("portolan0", device.ifindex), ("portolan1", device.peer_ifindex)] {
        let link = &node.space.ip(&format!("link show dev {name}"))[0];
        let flags = link["flags"].to_string();
        assert!(flags.contains("NOARP") && flags.contains("\"UP\""), "{flags}");
        assert_eq!((&link["ifindex"], &link["mtu"]), (&ifindex.into(), &1450.into()));
        assert_eq!(link["address"], "02:70:6f:72:74:6c");
        assert_eq!(node.space.sysctl(&format!("net/ipv4/conf/{name}/rp_filter")), "0");
        assert_eq!(node.space.sysctl(&format!("net/ipv4/conf/{name}/accept_local")), "1");
    }
}

#[tokio::test]
async fn a_foreign_device_with_the_service_devices_name_is_left_alone() {
    let node = Node::new().await;
    node.space.run("ip link add portolan0 type bridge");
    let error = node.links.ensure_service_device(1450).await.unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }) && error.to_string().contains("bridge"), "{error}");
    assert!(!node.space.names().contains(&"portolan1".into()));
}

#[tokio::test]
async fn service_routes_carry_the_nodes_address_and_stale_ones_go() {
    let node = Node::new().await;
    assert!(node.links.ensure_service_routes(&[], SOURCES).await.is_err(), "there is no device yet");
    node.links.ensure_service_device(1450).await.unwrap();
    let cidrs = nets(&["10.96.0.0/16", "fd96::/112", "203.0.113.7/32"]);
    let report = node.links.ensure_service_routes(&cidrs, SOURCES).await.unwrap();
    assert_eq!((report.added, report.failed.len()), (3, 0), "{report:?}");
    let v4 = node.space.run("ip route get 10.96.0.10");
    assert!(v4.contains(&format!("dev portolan0 src {NODE_V4}")), "{v4}");
    let v6 = node.space.run("ip -6 route get fd96::a");
    assert!(v6.contains("dev portolan0") && v6.contains(&format!("src {NODE_V6}")), "{v6}");

    // Native routes and service routes do not take each other for stale.
    node.links.ensure_routes(&routes(&[("10.1.0.0/24", "192.0.2.2")]), &[]).await.unwrap();
    let report = node.links.ensure_service_routes(&cidrs, SOURCES).await.unwrap();
    assert_eq!((report.added, report.removed), (0, 0), "{report:?}");

    // Another source replaces the route in both families.
    node.space.run("ip addr add 192.0.2.5/24 dev up0");
    node.space.run("ip addr add 2001:db8::5/64 dev up0 nodad");
    let moved = ServiceSources { v4: "192.0.2.5".parse().ok(), v6: "2001:db8::5".parse().ok() };
    let report = node.links.ensure_service_routes(&cidrs[..2], moved).await.unwrap();
    assert_eq!((report.added, report.removed, report.failed.len()), (2, 3, 0), "{report:?}");
    assert!(node.space.run("ip route get 10.96.0.10").contains("src 192.0.2.5"));
    assert!(node.space.run("ip -6 route get fd96::a").contains("src 2001:db8::5"));
    assert!(table(&node, "-4").contains("10.1.0.0/24 via 192.0.2.2"));
}

#[tokio::test]
async fn what_the_node_sends_to_a_service_arrives_at_the_other_end_as_its_own() {
    let node = Node::new().await;
    node.links.ensure_service_device(1450).await.unwrap();
    node.links.ensure_service_routes(&nets(&["10.96.0.0/16", "fd96::/112"]), SOURCES).await.unwrap();
    let received = || {
        let link = &node.space.ip("-s link show dev portolan1")[0];
        (link["stats64"]["rx"]["packets"].as_u64().unwrap(), link["address"].clone())
    };
    let before = received().0;
    for address in ["10.96.0.10", "fd96::a"] {
        node.space.try_run(&format!("ping -c 1 -W 1 {address}"));
    }
    assert!(received().0 >= before + 2, "no neighbour had to be asked for");
    assert!(node.space.ip("neigh show dev portolan0").is_empty());
    assert_eq!(received().1, "02:70:6f:72:74:6c", "destination and receiver have the same MAC address");
}

#[tokio::test]
async fn uplinks_carry_a_node_address_or_a_default_route() {
    let node = Node::new().await;
    node.links.ensure_service_device(1450).await.unwrap();
    let (_space, spec) = pod(1);
    node.links.create_pod(&spec, nothing).await.unwrap();
    let names = |links: Vec<portolan_node::link::Interface>| {
        links.into_iter().map(|link| link.name).collect::<Vec<_>>()
    };
    let addresses: Vec<IpAddr> = vec![NODE_V4.parse().unwrap(), "127.0.0.1".parse().unwrap()];
    let uplinks = node.links.uplinks(&addresses).await.unwrap();
    assert_eq!(uplinks[0].mtu, 1500);
    assert!(uplinks[0].addresses.contains(&format!("{NODE_V6}/64").parse().unwrap()), "{uplinks:?}");
    assert_eq!(names(uplinks), ["up0"], "not lo");
    assert_eq!(names(node.links.uplinks(&[]).await.unwrap()), Vec::<String>::new());

    node.space.run("ip addr add 198.51.100.1/24 dev up1");
    node.space.run("ip route add default nexthop via 198.51.100.2 dev up1 nexthop via 192.0.2.254 dev up0");
    let mut both = names(node.links.uplinks(&[]).await.unwrap());
    both.sort();
    assert_eq!(both, ["up0", "up1"]);

    let all = node.links.interfaces().await.unwrap();
    let pod = all.iter().find(|link| link.name == spec.host_name).unwrap();
    assert_eq!((pod.kind.as_deref(), pod.mac, pod.up), (Some("veth"), Some(GATEWAY_MAC), true));
}

#[tokio::test]
async fn changes_of_links_and_addresses_are_seen() {
    let node = Node::new().await;
    let mut watch = node.links.watch().await.unwrap();
    node.space.run("ip link add extra type bridge");
    node.space.run("ip addr add 198.51.100.7/24 dev extra");
    node.space.run("ip addr del 198.51.100.7/24 dev extra");
    node.space.run("ip link del extra");
    let address: IpNetwork = "198.51.100.7/24".parse().unwrap();
    let mut seen = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap();
        match event {
            Event::Link(link) if link.name == "extra" => seen.push("link"),
            Event::Address { address: new, .. } if new == address => seen.push("address"),
            Event::AddressGone { address: old, .. } if old == address => seen.push("address gone"),
            Event::LinkGone(link) if link.name == "extra" => break,
            _ => {}
        }
    }
    seen.dedup();
    assert_eq!(seen, ["link", "address", "address gone"]);
}

#[tokio::test]
async fn preparing_a_node_sets_forwarding_and_reserves_node_ports() {
    let space = Space::new();
    space.run("sysctl -qw net.ipv4.ip_local_reserved_ports=8080,32000-33000");
    space.run("ip link add up0 type veth peer name up1");
    space.run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.up0.rp_filter=0 net.ipv4.conf.up1.rp_filter=2");
    let links = space.0.run(Links::new).await.unwrap().unwrap();
    let changes = links.prepare_node(&[30000..=32767]).await.unwrap();
    assert!(
        changes.iter().any(|change| change.path == "net/ipv4/ip_forward" && change.from == "0"),
        "{changes:?}"
    );
    for (path, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/ip_local_reserved_ports", "8080,30000-33000"),
        // The strictness moved; nothing filters less than before.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/up0/rp_filter", "1"),
        ("ipv4/conf/up1/rp_filter", "2"),
        // Router advertisements are still accepted though the node forwards now.
        ("ipv6/conf/up0/accept_ra", "2"),
    ] {
        assert_eq!(space.sysctl(&format!("net/{path}")), value, "{path}");
    }
    assert_eq!(links.prepare_node(&[30000..=32767]).await.unwrap(), [], "a second time changes nothing");
}

#[tokio::test]
async fn a_pods_host_side_is_unfiltered_where_the_default_is_strict() {
    let node = Node::new().await;
    node.space.run("sysctl -qw net.ipv4.conf.default.rp_filter=1");
    let (_space, spec) = pod(1);
    node.links.create_pod(&spec, nothing).await.unwrap();
    assert_eq!(node.space.sysctl("net/ipv4/conf/ptl0000000001/rp_filter"), "0");
}

fn routes(list: &[(&str, &str)]) -> Vec<(IpNetwork, IpAddr)> {
    list.iter().map(|(prefix, via)| (prefix.parse().unwrap(), via.parse().unwrap())).collect()
}

fn nets(list: &[&str]) -> Vec<IpNetwork> {
    list.iter().map(|prefix| prefix.parse().unwrap()).collect()
}

/// Our routes as iproute2 prints them.
fn table(node: &Node, family: &str) -> String {
    node.space.run(&format!("ip {family} route show proto {PROTOCOL}"))
}
