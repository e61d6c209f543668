//! Which endpoints get new connections: conditions, fallbacks, topology, endpoints in several slices.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Endpoint, Load, LongLived, NODE_ADDRESSES, Netns, Pod, Resolver, Shop, UdpEcho, WebServer,
    cluster_address, failure, get, node_address, object, public_address, service, slice, udp_ask,
};

const FAMILIES: [bool; 2] = [false, true];
const BOTH_PORTS: &str = "{name: http, port: 8080, protocol: TCP}, {name: echo, port: 9000, protocol: UDP}";
const READY: &str = "conditions: {ready: true}";
const TERMINATING: &str = "conditions: {ready: false, serving: true, terminating: true}";

/// Publishes the shop's backends with these fields, by index; none for those beyond.
fn publish(shop: &Shop, fields: &[&str]) -> Result<()> {
    let slices = FAMILIES.map(|v6| {
        let backends = shop.backends.iter().zip(fields);
        let endpoints: Vec<_> = backends
            .map(|(backend, fields)| Endpoint::new(backend.pod.address(v6), backend.node, fields))
            .collect();
        slice(&format!("web{v6}"), "web", BOTH_PORTS, &endpoints)
    });
    shop.cluster.write("slices.yaml", &slices.concat())?;
    shop.settle()
}

/// The indexes of all backends that answer, over either protocol.
fn servers(netns: &Netns, to: SocketAddr) -> Result<BTreeSet<usize>> {
    let mut met = BTreeSet::new();
    for ask in [get as fn(&Netns, SocketAddr) -> Result<_>, udp_ask] {
        for _ in 0..16 {
            let (server, _) = ask(netns, to).with_context(|| format!("asking {to}"))?;
            met.insert(server.trim_start_matches('b').parse()?);
        }
    }
    Ok(met)
}

/// A connection and a question over UDP are refused.
fn is_refused(netns: &Netns, to: SocketAddr) -> Result<()> {
    for ask in [get as fn(&Netns, SocketAddr) -> Result<_>, udp_ask] {
        let kind = match ask(netns, to) {
            Ok(answer) => anyhow::bail!("{to} is served: {answer:?}"),
            Err(error) => error.downcast_ref::<std::io::Error>().map(std::io::Error::kind),
        };
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{to}: {kind:?}");
    }
    Ok(())
}

#[test]
fn conditions_decide_who_gets_new_connections() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let table = [
        ("conditions: {}", true),
        ("conditions: {ready: true, serving: true, terminating: false}", true),
        ("conditions: {ready: null}", true),
        ("conditions: {ready: false}", false),
        ("conditions: {ready: false, serving: true}", false),
        ("conditions: {ready: false, serving: true, terminating: false}", false),
        (TERMINATING, true),
        ("conditions: {ready: false, serving: false, terminating: true}", false),
        ("conditions: {ready: false, terminating: true}", false),
        // What `publishNotReadyAddresses` makes of a pod that is not ready, and of one that ends as well.
        ("conditions: {ready: true, serving: false, terminating: false}", true),
        ("conditions: {ready: true, serving: false, terminating: true}", true),
    ];
    for (fields, served) in table {
        publish(&shop, &[fields])?;
        for v6 in FAMILIES {
            for (netns, to) in asked(&shop, v6) {
                if served {
                    ensure!(servers(netns, to)? == BTreeSet::from([0]), "{fields}");
                } else {
                    is_refused(netns, to).context(fields)?;
                }
            }
        }
    }
    Ok(())
}

/// One client of each kind, and an address that it asks.
fn asked(shop: &Shop, v6: bool) -> [(&Netns, SocketAddr); 3] {
    [
        (&shop.client.netns, cluster_address(v6)),
        (&shop.cluster.nodes[0].netns, public_address(v6)),
        (&shop.cluster.client, node_address(0, v6)),
    ]
}

/// A client at one node, by its index: what it asks, and whether its node's own backends alone may answer under the policy
/// in question.
struct Client<'a> {
    netns: &'a Netns,
    to: SocketAddr,
    node: usize,
    bound: bool,
}

/// A shop with two backends on the first node and one on the second, and a pod to ask on each.
struct Ending {
    second: Pod,
    shop: Shop,
}

impl Ending {
    /// With these lines in the service's spec.
    fn open(extra: &str) -> Result<Self> {
        let shop = Shop::open(&[0, 0, 1])?;
        let second = Pod::add(&shop.agents[1], "client2")?;
        shop.cluster.write("service.yaml", &service(extra))?;
        shop.settle()?;
        Ok(Self { second, shop })
    }

    /// The pod and the host of a node.
    fn inside(&self, node: usize) -> [&Netns; 2] {
        let pod = if node == 0 { &self.shop.client } else { &self.second };
        [&pod.netns, &self.shop.cluster.nodes[node].netns]
    }

    /// Pods and hosts at the cluster address.
    fn internal(&self) -> Vec<Client<'_>> {
        let of = |node: usize, v6: bool| {
            self.inside(node).map(|netns| Client { netns, to: cluster_address(v6), node, bound: true })
        };
        FAMILIES.into_iter().flat_map(|v6| [of(0, v6), of(1, v6)]).flatten().collect()
    }

    /// Outside clients at either node and at the load balancer's address, which leads to the first. Pods and hosts, which
    /// ask for the same, are bound to no node.
    fn external(&self) -> Vec<Client<'_>> {
        let of = |v6: bool| {
            let outside = |node, to| Client { netns: &self.shop.cluster.client, to, node, bound: true };
            let inside = [0, 1].into_iter().flat_map(move |node| {
                let to = [public_address(v6), node_address(node, v6)];
                self.inside(node).into_iter().zip(to).map(move |(netns, to)| Client {
                    netns,
                    to,
                    node,
                    bound: false,
                })
            });
            [outside(0, node_address(0, v6)), outside(1, node_address(1, v6)), outside(0, public_address(v6))]
                .into_iter()
                .chain(inside)
        };
        FAMILIES.into_iter().flat_map(of).collect()
    }
}

/// These backends answer, each over either protocol, and no others.
fn is_served_by(netns: &Netns, to: SocketAddr, expected: &[usize]) -> Result<()> {
    for (protocol, ask) in [("TCP", get as fn(&Netns, SocketAddr) -> Result<_>), ("UDP", udp_ask)] {
        let mut silent: BTreeSet<usize> = expected.iter().copied().collect();
        for number in 0..64 {
            let (server, _) = ask(netns, to).with_context(|| format!("asking {to} over {protocol}"))?;
            let index: usize = server.trim_start_matches('b').parse()?;
            ensure!(expected.contains(&index), "{server} answers over {protocol}");
            silent.remove(&index);
            if silent.is_empty() && number >= 5 {
                break;
            }
        }
        ensure!(silent.is_empty(), "no answer of {silent:?} over {protocol}");
    }
    Ok(())
}

/// What the three backends say, and who serves: everywhere, or with a local policy on each node.
type Phase<'a> = ([&'a str; 3], &'a [usize], [&'a [usize]; 2]);

const PHASES: [Phase<'_>; 4] = [
    ([READY, READY, READY], &[0, 1, 2], [&[0, 1], &[2]]),
    ([TERMINATING, READY, READY], &[1, 2], [&[1], &[2]]),
    ([TERMINATING, TERMINATING, TERMINATING], &[0, 1, 2], [&[0, 1], &[2]]),
    ([TERMINATING, READY, TERMINATING], &[1], [&[1], &[2]]),
];

/// Ends backends while those clients whom the policy concerns open connections, keep others open, and ask over UDP all the
/// time: none fails, and what is open stays with its backend. With `local` every node uses its own backends alone. In the
/// end the second node's backend serves no more.
fn falls_back_under_traffic(shop: &Shop, clients: &[Client<'_>], local: bool) -> Result<()> {
    let pause = Duration::from_millis(10);
    let ends = || clients.iter().filter(|it| it.bound).map(|it| (it.netns, it.to));
    let new = ends().map(|(netns, to)| Load::start(netns, to, pause)).collect::<Result<Vec<_>>>()?;
    let open = ends().map(|(netns, to)| LongLived::start(netns, to, 2)).collect::<Result<Vec<_>>>()?;
    let asking = ends().map(|(netns, to)| Resolver::start(netns, to, pause)).collect::<Result<Vec<_>>>()?;
    for (fields, anywhere, on_node) in PHASES {
        publish(shop, &fields)?;
        for client in clients {
            let expected = if local && client.bound { on_node[client.node] } else { anywhere };
            is_served_by(client.netns, client.to, expected)
                .with_context(|| format!("{fields:?}: {} at {}", client.netns.name(), client.to))?;
        }
    }
    let tallies = new.into_iter().map(Load::finish).chain(open.into_iter().map(LongLived::finish));
    for tally in tallies.chain(asking.into_iter().map(Resolver::finish)) {
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
        ensure!(tally.answers() > 20, "a client did next to nothing: {tally:?}");
    }
    publish(shop, &[TERMINATING, READY, "conditions: {ready: false, serving: false, terminating: true}"])?;
    for client in clients.iter().filter(|client| client.node == 1) {
        let Client { netns, to, bound, .. } = *client;
        if !(local && bound) {
            is_served_by(netns, to, &[1])?;
            continue;
        }
        for udp in [false, true] {
            let outcome = failure(netns, udp, to, Duration::from_millis(700))?;
            ensure!(outcome == Some(ErrorKind::TimedOut), "{} at {to}: {outcome:?}", netns.name());
        }
    }
    Ok(())
}

fn own_host(shop: &Shop, node: usize, v6: bool) -> (&Netns, SocketAddr) {
    (&shop.cluster.nodes[node].netns, cluster_address(v6))
}

fn outside(shop: &Shop, node: usize, v6: bool) -> (&Netns, SocketAddr) {
    (&shop.cluster.client, node_address(node, v6))
}

#[test]
fn internal_policy_cluster_falls_back_to_terminating_endpoints_under_traffic() -> Result<()> {
    let stage = Ending::open("  internalTrafficPolicy: Cluster\n")?;
    falls_back_under_traffic(&stage.shop, &stage.internal(), false)
}

#[test]
fn internal_policy_local_falls_back_to_terminating_endpoints_under_traffic() -> Result<()> {
    let stage = Ending::open("  internalTrafficPolicy: Local\n")?;
    falls_back_under_traffic(&stage.shop, &stage.internal(), true)
}

#[test]
fn external_policy_cluster_falls_back_to_terminating_endpoints_under_traffic() -> Result<()> {
    let stage = Ending::open("  externalTrafficPolicy: Cluster\n")?;
    falls_back_under_traffic(&stage.shop, &stage.external(), false)
}

#[test]
fn external_policy_local_falls_back_to_terminating_endpoints_under_traffic() -> Result<()> {
    let stage = Ending::open("  externalTrafficPolicy: Local\n")?;
    falls_back_under_traffic(&stage.shop, &stage.external(), true)
}

/// What the two backends say, one on each node, and who serves the clients of each node.
type Hinted = ([&'static str; 2], [&'static [usize]; 2]);

#[test]
fn hints_keep_traffic_in_the_zone_or_on_the_node_and_never_leave_one_without_backends() -> Result<()> {
    const A: &str = "hints: {forZones: [{name: zone-a}]}";
    const B: &str = "hints: {forZones: [{name: zone-b}]}";
    const OTHER: &str = "hints: {forZones: [{name: zone-c}]}";
    const NODE1: &str = "hints: {forNodes: [{name: node1}]}";
    const NODE2: &str = "hints: {forNodes: [{name: node2}]}";
    let table: [Hinted; 10] = [
        ([A, B], [&[0], &[1]]),
        ([B, A], [&[1], &[0]]),
        // One without a hint switches hints off.
        ([A, READY], [&[0, 1], &[0, 1]]),
        // A zone that no hint names uses all, the other its own.
        ([OTHER, B], [&[0, 1], &[1]]),
        ([NODE1, NODE2], [&[0], &[1]]),
        ([NODE2, NODE2], [&[0, 1], &[0, 1]]),
        // A node that no hint names goes by its zone.
        (
            [
                "hints: {forNodes: [{name: node1}], forZones: [{name: zone-a}]}",
                "hints: {forNodes: [{name: node1}], forZones: [{name: zone-b}]}",
            ],
            [&[0, 1], &[1]],
        ),
        // Hints of endpoints that are not ready do not matter.
        ([A, "conditions: {ready: false, serving: true, terminating: true}"], [&[0], &[0]]),
        (
            [
                "hints: {forZones: [{name: zone-a}]}, conditions: {ready: false, serving: true, terminating: true}",
                "hints: {forZones: [{name: zone-a}]}, conditions: {ready: false, serving: true, terminating: true}",
            ],
            [&[0, 1], &[0, 1]],
        ),
        ([READY, READY], [&[0, 1], &[0, 1]]),
    ];
    let shop = Shop::open(&[0, 1])?;
    for (fields, expected) in table {
        publish(&shop, &fields)?;
        for (node, expected) in expected.into_iter().enumerate() {
            let expected: BTreeSet<usize> = expected.iter().copied().collect();
            for (netns, to) in
                FAMILIES.into_iter().flat_map(|v6| [own_host(&shop, node, v6), outside(&shop, node, v6)])
            {
                let met = servers(netns, to)?;
                ensure!(met == expected, "{fields:?}: node{} at {to}: {met:?}", node + 1);
            }
        }
    }
    Ok(())
}

#[test]
fn hints_do_not_concern_traffic_that_stays_on_its_node() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    shop.cluster.write(
        "service.yaml",
        &service("  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n"),
    )?;
    publish(&shop, &["hints: {forZones: [{name: zone-b}]}", "hints: {forZones: [{name: zone-a}]}"])?;
    for node in [0, 1] {
        for (netns, to) in
            FAMILIES.into_iter().flat_map(|v6| [own_host(&shop, node, v6), outside(&shop, node, v6)])
        {
            ensure!(servers(netns, to)? == BTreeSet::from([node]), "{to}");
        }
    }
    Ok(())
}

#[test]
fn of_two_entries_for_one_address_the_one_that_does_not_terminate_counts() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let gone = "conditions: {ready: false, serving: false, terminating: true}";
    // In either order of the slices' names.
    for states in [[gone, READY], [READY, gone], [gone, gone]] {
        let slices = FAMILIES.into_iter().flat_map(|v6| {
            let pod = shop.backends[0].pod.address(v6);
            states.iter().enumerate().map(move |(number, fields)| {
                slice(&format!("s{number}{v6}"), "web", BOTH_PORTS, &[Endpoint::new(pod, 1, fields)])
            })
        });
        shop.cluster.write("slices.yaml", &slices.collect::<String>())?;
        shop.settle()?;
        for (netns, to) in FAMILIES.into_iter().flat_map(|v6| asked(&shop, v6)) {
            if states.contains(&READY) {
                ensure!(servers(netns, to)? == BTreeSet::from([0]), "{to}");
            } else {
                is_refused(netns, to)?;
            }
        }
    }
    Ok(())
}

#[test]
fn several_addresses_and_ports_in_several_slices_are_one_service() -> Result<()> {
    let shop = Shop::open(&[0, 0, 1])?;
    let of = |v6: bool, range: std::ops::Range<usize>| -> Vec<Endpoint> {
        let backends = shop.backends[range].iter();
        backends.map(|it| Endpoint::new(it.pod.address(v6), it.node, READY)).collect()
    };
    let slices = FAMILIES.map(|v6| {
        // One slice for each protocol and one for both; the last names a second address, which means nothing.
        let second = if v6 { "fd00:10:244:1::ffff" } else { "10.244.1.254" };
        let mixed = slice(&format!("c{v6}"), "web", BOTH_PORTS, &of(v6, 2..3));
        slice(&format!("a{v6}"), "web", "{name: http, port: 8080}", &of(v6, 0..2))
            + &slice(&format!("b{v6}"), "web", "{name: echo, port: 9000, protocol: UDP}", &of(v6, 1..2))
            + &mixed.replace("\"]", &format!("\", \"{second}\"]"))
    });
    shop.cluster.write("slices.yaml", &slices.concat())?;
    shop.settle()?;
    let met = |ask: fn(&Netns, SocketAddr) -> Result<(String, String)>, netns: &Netns, to: SocketAddr| {
        (0..40).map(|_| Ok(ask(netns, to)?.0)).collect::<Result<BTreeSet<_>>>()
    };
    let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    for (netns, to) in FAMILIES.into_iter().flat_map(|v6| asked(&shop, v6)) {
        assert_eq!(met(get, netns, to)?, names(&["b0", "b1", "b2"]), "TCP at {to}");
        assert_eq!(met(udp_ask, netns, to)?, names(&["b1", "b2"]), "UDP at {to}");
    }
    Ok(())
}

#[test]
fn two_services_with_the_same_pods_live_and_end_on_their_own() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let twin = ["10.96.0.50", "fd00:10:96::50"];
    let [v4, v6] = twin;
    let spec = format!(
        "clusterIPs: [{v4}, \"{v6}\"], ipFamilies: [IPv4, IPv6], ports: [{{name: http, port: 80}}, \
         {{name: echo, port: 80, protocol: UDP}}]"
    );
    let endpoints = |v6: bool| -> Vec<Endpoint> {
        let backends = shop.backends.iter();
        backends.map(|it| Endpoint::new(it.pod.address(v6), it.node, READY)).collect()
    };
    let slices = FAMILIES.map(|v6| slice(&format!("twin{v6}"), "twin", BOTH_PORTS, &endpoints(v6)));
    shop.cluster.write("twin.yaml", &(object("twin", "", &spec) + &slices.concat()))?;
    shop.settle()?;
    let all = BTreeSet::from([0, 1]);
    let at = |v6: bool| -> Result<SocketAddr> {
        Ok(SocketAddr::new(twin[usize::from(v6)].parse::<IpAddr>()?, 80))
    };
    for v6 in FAMILIES {
        assert_eq!(servers(&shop.client.netns, at(v6)?)?, all);
        assert_eq!(servers(&shop.client.netns, cluster_address(v6))?, all);
    }
    let open = FAMILIES.map(|v6| LongLived::start(&shop.client.netns, cluster_address(v6), 4));
    std::fs::remove_file(shop.cluster.objects().join("twin.yaml"))?;
    shop.settle()?;
    for v6 in FAMILIES {
        ensure!(get(&shop.client.netns, at(v6)?).is_err(), "the twin is gone");
        assert_eq!(servers(&shop.client.netns, cluster_address(v6))?, all, "the other is not");
    }
    for open in open {
        let tally = open?.finish();
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
    }
    Ok(())
}

#[test]
fn pods_and_hosts_keep_to_their_nodes_backends_where_the_policy_says_so() -> Result<()> {
    // Backends in the nodes' own network, as a node-local agent of every node has it.
    let shop = Shop::open(&[])?;
    let second = Pod::add(&shop.agents[1], "client2")?;
    let [one, two] = &shop.cluster.nodes;
    let mut servers_of_hosts = Vec::new();
    for (node, name) in [(one, "b0"), (two, "b1")] {
        let web = WebServer::start(&node.netns, 8080, name)?;
        servers_of_hosts.push((web, UdpEcho::start(&node.netns, 9000, name)?));
    }
    let mut slices = String::new();
    for v6 in FAMILIES {
        let mut endpoints = Vec::new();
        for (node, addresses) in NODE_ADDRESSES.iter().enumerate() {
            endpoints.push(Endpoint::new(addresses[usize::from(v6)].parse()?, node, READY));
        }
        slices += &slice(&format!("web{v6}"), "web", BOTH_PORTS, &endpoints);
    }
    shop.cluster.write("service.yaml", &service("  internalTrafficPolicy: Local\n"))?;
    shop.cluster.write("slices.yaml", &slices)?;
    shop.settle()?;
    for v6 in FAMILIES {
        for (node, netns) in [(0, &shop.client.netns), (1, &second.netns), (0, &one.netns), (1, &two.netns)] {
            assert_eq!(servers(netns, cluster_address(v6))?, BTreeSet::from([node]), "{}", netns.name());
        }
    }
    Ok(())
}
