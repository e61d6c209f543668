//! What routers learn from a BGP speaker: BIRD and FRR, and their kernels' tables.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_bgp::{Identity, Peer, Route};
use portolan_tests::lab::{
    Brand, Cluster, NODE_ADDRESSES, Neighbor, Router, SERVICE_ADDRESSES, Speaking, WebServer, get, poll,
};

portolan_tests::with_both_routers! {
    a_router_learns_both_families_over_ipv4
    a_router_learns_both_families_over_ipv6
    a_router_of_the_same_as_learns_the_preference
    a_router_hears_every_change_and_nothing_else
    a_router_behind_another_one_is_reached_by_multihop
    clients_reach_the_nodes_that_announce_an_address
}

/// AS numbers of nodes and router.
const NODES: u32 = 64_512;
const ROUTER: u32 = 64_513;
/// The router's addresses on the nodes' network.
const GATEWAY: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
const PREFIXES: [&str; 2] = ["198.51.100.10/32", "2001:db8:f::10/128"];

fn identity(node: usize) -> Identity {
    let [v4, v6] = NODE_ADDRESSES[node];
    let v4 = v4.parse().expect("an address");
    Identity { next_hop_v4: Some(v4), next_hop_v6: v6.parse().ok(), ..Identity::new(v4, NODES) }
}

/// The router as a node's peer, by an address of IPv4 (0) or IPv6 (1).
fn peer(transport: usize, asn: u32) -> Peer {
    Peer { hold_time: 9, ..Peer::new("tor", GATEWAY[transport].parse().expect("an address"), asn) }
}

fn neighbor(node: usize, transport: usize) -> Neighbor {
    Neighbor::new(NODE_ADDRESSES[node][transport], NODES, GATEWAY[transport])
}

fn router(brand: Brand, cluster: &Cluster, asn: u32, neighbors: &[Neighbor]) -> Result<Router> {
    Router::start(brand, &cluster.router, &cluster.directory().join("router"), asn, neighbors)
}

fn a_router_learns_both_families_over_ipv4(brand: Brand) -> Result<()> {
    learns_both_families(brand, 0)
}

fn a_router_learns_both_families_over_ipv6(brand: Brand) -> Result<()> {
    learns_both_families(brand, 1)
}

fn learns_both_families(brand: Brand, transport: usize) -> Result<()> {
    let cluster = Cluster::new()?;
    let router = router(brand, &cluster, ROUTER, &[neighbor(0, transport)])?;
    let node = Speaking::start(&cluster.nodes[0].netns, identity(0), vec![peer(transport, ROUTER)])?;
    let routes: Vec<Route> = PREFIXES.iter().map(|prefix| tagged(prefix)).collect::<Result<_>>()?;
    node.ask(|speaker| speaker.set_routes(routes))??;
    let status = node.established()?;
    ensure!(status.families.len() == 2 && status.hold_time == Some(9), "{status:#?}");
    for (family, prefix) in PREFIXES.into_iter().enumerate() {
        router.until(prefix, true)?;
        let ways = router.paths(prefix)?;
        let way = ways.first().context("no way")?;
        assert_eq!(way.next_hop.map(|hop| hop.to_string()).as_deref(), Some(NODE_ADDRESSES[0][family]));
        assert_eq!(way.as_path, NODES.to_string());
        assert_eq!(way.communities, "64512:100 64512:200");
        assert_eq!(way.large_communities, "64512:1:2");
    }
    let status = node.status()?;
    assert_eq!((status.announced.ipv4, status.announced.ipv6, status.complete), (1, 1, true));
    assert_eq!(status.warnings, Vec::<String>::new());
    Ok(())
}

fn tagged(prefix: &str) -> Result<Route> {
    let mut route = Route::new(prefix.parse()?);
    route.communities = ["64512:100".parse()?, "64512:200".parse()?].into();
    route.large_communities = ["64512:1:2".parse()?].into();
    // Not for another AS to hear.
    route.local_preference = Some(200);
    Ok(route)
}

fn a_router_of_the_same_as_learns_the_preference(brand: Brand) -> Result<()> {
    let cluster = Cluster::new()?;
    let router = router(brand, &cluster, NODES, &[neighbor(0, 0)])?;
    let node = Speaking::start(&cluster.nodes[0].netns, identity(0), vec![peer(0, NODES)])?;
    let routes = vec![tagged(PREFIXES[0])?, tagged(PREFIXES[1])?];
    node.ask(|speaker| speaker.set_routes(routes))??;
    for prefix in PREFIXES {
        router.until(prefix, true)?;
        let ways = router.paths(prefix)?;
        let way = ways.first().context("no way")?;
        assert_eq!((way.preference, way.as_path.as_str()), (Some(200), ""));
    }
    Ok(())
}

fn a_router_hears_every_change_and_nothing_else(brand: Brand) -> Result<()> {
    let cluster = Cluster::new()?;
    let router = router(brand, &cluster, ROUTER, &[neighbor(0, 0)])?;
    let node = Speaking::start(&cluster.nodes[0].netns, identity(0), vec![peer(0, ROUTER)])?;
    let many: Vec<String> = (0..200).map(|n| format!("198.51.100.{n}/32")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain([PREFIXES[1]]).collect();
    node.announce(&many)?;
    node.established()?;
    for prefix in &many[198..] {
        router.until(prefix, true)?;
    }
    // All IPv4 prefixes in one message, the IPv6 one in another, and an End-of-RIB for each family.
    assert_eq!(node.status()?.messages_sent.update, 4);
    node.announce(&many[1..])?;
    router.until(many[0], false)?;
    ensure!(router.has(many[1])?, "another one is gone as well");
    assert_eq!(node.status()?.messages_sent.update, 5);
    // An aggregate takes the place of its parts, which are never without a way.
    node.announce(&["198.51.100.0/24"])?;
    router.until("198.51.100.0/24", true)?;
    router.until(many[1], false)?;
    router.until(PREFIXES[1], false)?;
    assert_eq!(node.status()?.announced.ipv4, 1);
    Ok(())
}

fn a_router_behind_another_one_is_reached_by_multihop(brand: Brand) -> Result<()> {
    let cluster = Cluster::new()?;
    let far = "203.0.113.10";
    let neighbor = Neighbor { multihop: Some(2), ..Neighbor::new(NODE_ADDRESSES[0][0], NODES, far) };
    let directory = cluster.directory().join("router");
    let router = Router::start(brand, &cluster.client, &directory, ROUTER, &[neighbor])?;
    let near = Peer { hold_time: 9, ..Peer::new("far", far.parse()?, ROUTER) };
    let node = Speaking::start(&cluster.nodes[0].netns, identity(0), vec![near.clone()])?;
    node.announce(&PREFIXES)?;
    let hint = |error: &str| error.contains("peer far (203.0.113.10)") && error.contains("set ebgpMultiHop");
    node.until("the error says what to set", |status| {
        status.last_error.as_ref().is_some_and(|error| hint(&error.text))
    })?;
    let multihop = Peer { ebgp_multihop: Some(2), ..near };
    node.ask(|speaker| speaker.set_peers(vec![multihop]))??;
    node.established()?;
    router.until(PREFIXES[0], true)
}

/// Two nodes, one address: the router spreads clients over both, and leaves out who withdraws.
fn clients_reach_the_nodes_that_announce_an_address(brand: Brand) -> Result<()> {
    const PORT: u16 = 8080;
    let cluster = Cluster::new()?;
    cluster.router.ip("route del 198.51.100.0/24")?;
    cluster.router.ip("route del 2001:db8:f::/64")?;
    for key in ["net/ipv4/fib_multipath_hash_policy", "net/ipv6/fib_multipath_hash_policy"] {
        // By ports as well: there is one client.
        cluster.router.sysctl(key, "1")?;
    }
    let router = router(brand, &cluster, ROUTER, &[neighbor(0, 0), neighbor(1, 0)])?;
    let mut nodes = Vec::new();
    let mut servers = Vec::new();
    for (number, node) in cluster.nodes.iter().enumerate() {
        for prefix in PREFIXES {
            node.netns.ip(&format!("address add {prefix} dev lo"))?;
        }
        servers.push(WebServer::start(&node.netns, PORT, &node.name)?);
        let speaking = Speaking::start(&node.netns, identity(number), vec![peer(0, ROUTER)])?;
        speaking.announce(&PREFIXES)?;
        nodes.push(speaking);
    }
    for family in [0, 1] {
        table(&cluster, family, &[true, true]).with_context(|| router.log())?;
        let to = format!("{}:{PORT}", ["198.51.100.10", "[2001:db8:f::10]"][family]).parse()?;
        let mut answered = std::collections::BTreeSet::new();
        for _ in 0..40 {
            answered.insert(get(&cluster.client, to)?.0);
        }
        assert_eq!(answered.len(), 2, "{answered:?}");
    }
    nodes.remove(0).withdraw("node drained")?;
    for family in [0, 1] {
        table(&cluster, family, &[false, true])?;
        let to = format!("{}:{PORT}", ["198.51.100.10", "[2001:db8:f::10]"][family]).parse()?;
        for _ in 0..10 {
            assert_eq!(get(&cluster.client, to)?.0, "node2");
        }
    }
    Ok(())
}

/// Waits until the router's kernel sends a service's address to these nodes.
fn table(cluster: &Cluster, family: usize, nodes: &[bool; 2]) -> Result<()> {
    let flag = ["-4", "-6"][family];
    let show = || cluster.router.ip(&format!("{flag} route show {}", SERVICE_ADDRESSES[family]));
    let polled = poll(Duration::from_secs(30), "the kernel's table is as wanted", || {
        let shown = show().ok()?;
        let has = |node: usize| shown.contains(&format!("via {} ", NODE_ADDRESSES[node][family]));
        ([has(0), has(1)] == *nodes).then_some(())
    });
    polled.with_context(|| format!("{:?}", show()))
}
