//! Services that come, change and go: new connections follow the object, and nothing of before is left.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_tests::lab::{
    AgentOptions, Endpoint, LongLived, NODE_ADDRESSES, Netns, Shop, UdpEcho, WebServer, cluster_address,
    failure, get, object, slice, udp_ask,
};

const FAMILIES: [bool; 2] = [false, true];
const NODE_PORT: u16 = 30_081;
const PORTS: &str = "ports: [{name: http, port: 80, nodePort: 30081}, \
                     {name: echo, port: 80, nodePort: 30081, protocol: UDP}]";
const SLICE_PORTS: &str = "{name: http, port: 8080}, {name: echo, port: 9000, protocol: UDP}";

/// A cluster address by the last number of it.
fn vip(last: u8, v6: bool) -> SocketAddr {
    let text = if v6 { format!("fd00:10:96::{last}") } else { format!("10.96.0.{last}") };
    at(&text, 80)
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().expect("suites write addresses"), port)
}

/// The service `other`, at the cluster addresses of that last number; `metadata` and `spec` are more fields.
fn other(last: u8, metadata: &str, spec: &str) -> String {
    named("other", last, metadata, &format!("{spec}, {PORTS}"))
}

fn named(name: &str, last: u8, metadata: &str, spec: &str) -> String {
    let families = "ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv6]";
    let addresses =
        format!("clusterIP: 10.96.0.{last}, clusterIPs: [10.96.0.{last}, \"fd00:10:96::{last}\"]");
    object(name, metadata, &format!("{addresses}, {families}, {spec}"))
}

/// Slices of a service with all of the shop's backends.
fn slices(shop: &Shop, service: &str, ports: &str) -> String {
    let of = |v6: bool| {
        let endpoints = shop
            .backends
            .iter()
            .map(|backend| Endpoint::new(backend.pod.address(v6), backend.node, "conditions: {ready: true}"));
        slice(&format!("{service}{v6}"), service, ports, &endpoints.collect::<Vec<_>>())
    };
    FAMILIES.map(of).concat()
}

/// What a client meets where it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Served,
    /// It is told at once: nobody listens at that port.
    Refused,
    /// Nobody answers.
    Silent,
    /// It is nobody's address: silence, or a router that knows no way. Nobody refuses.
    Nowhere,
}

use Fate::{Nowhere, Refused, Served, Silent};

/// Every one meets the same over TCP and UDP.
fn all_are(fate: Fate, asked: &[(&Netns, SocketAddr)], why: &str) -> Result<()> {
    std::thread::scope(|scope| {
        let questions: Vec<_> =
            asked.iter().map(|(netns, to)| scope.spawn(move || meets(fate, netns, *to, why))).collect();
        questions.into_iter().try_for_each(|it| it.join().expect("a question has no bug"))
    })
}

fn meets(fate: Fate, netns: &Netns, to: SocketAddr, why: &str) -> Result<()> {
    for udp in [false, true] {
        let expected: &[ErrorKind] = match fate {
            Served => {
                (if udp { udp_ask(netns, to) } else { get(netns, to) })
                    .map_err(|error| error.context(format!("{why}: {} asks {to}", netns.name())))?;
                continue;
            }
            Refused => &[ErrorKind::ConnectionRefused],
            Silent => &[ErrorKind::TimedOut],
            Nowhere => &[ErrorKind::TimedOut, ErrorKind::HostUnreachable],
        };
        let outcome = failure(netns, udp, to, Duration::from_millis(400))?;
        ensure!(
            outcome.is_some_and(|outcome| expected.contains(&outcome)),
            "{why}: {} meets {outcome:?} at {to}, UDP {udp}, not {fate:?}",
            netns.name()
        );
    }
    Ok(())
}

/// Who asks a cluster address: a pod, and the host of either node.
fn inside(shop: &Shop, last: u8) -> Vec<(&Netns, SocketAddr)> {
    let [one, two] = &shop.cluster.nodes;
    let netns = [&shop.client.netns, &one.netns, &two.netns];
    FAMILIES.into_iter().flat_map(|v6| netns.map(|netns| (netns, vip(last, v6)))).collect()
}

/// Who asks from outside, at an address of each family.
fn outside<'a>(shop: &'a Shop, addresses: [&str; 2], port: u16) -> Vec<(&'a Netns, SocketAddr)> {
    addresses.map(|address| (&shop.cluster.client, at(address, port))).into()
}

#[test]
fn a_service_is_served_at_the_addresses_that_its_type_has() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let backends = slices(&shop, "other", SLICE_PORTS);
    let kinds = [
        ("type: ExternalName, externalName: example.org", Silent, Refused),
        ("type: ClusterIP", Served, Refused),
        ("type: ExternalName, externalName: example.org", Silent, Refused),
        ("type: NodePort", Served, Served),
        ("type: ClusterIP", Served, Refused),
        ("type: LoadBalancer", Served, Served),
        ("type: ExternalName, externalName: example.org", Silent, Refused),
    ];
    // An address of the service range that nobody has is dropped; a port that no service has on a node is the node's own,
    // where nothing listens.
    for (spec, cluster, node_port) in kinds {
        shop.cluster.write("other.yaml", &(other(60, "", spec) + &backends))?;
        shop.settle()?;
        all_are(cluster, &inside(&shop, 60), spec)?;
        for addresses in NODE_ADDRESSES {
            all_are(node_port, &outside(&shop, addresses, NODE_PORT), spec)?;
        }
    }
    Ok(())
}

#[test]
fn a_label_gives_a_service_away_and_its_removal_brings_it_back() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let backends = slices(&shop, "other", SLICE_PORTS);
    let labels = [
        "",
        ", labels: {service.kubernetes.io/service-proxy-name: another}",
        "",
        ", labels: {service.kubernetes.io/headless: \"\"}",
        ", labels: {app: other}",
    ];
    for metadata in labels {
        let served = !metadata.contains("service.kubernetes.io");
        shop.cluster.write("other.yaml", &(other(60, metadata, "type: NodePort") + &backends))?;
        shop.settle()?;
        all_are(if served { Served } else { Silent }, &inside(&shop, 60), metadata)?;
        let node_port = if served { Served } else { Refused };
        all_are(node_port, &outside(&shop, NODE_ADDRESSES[0], NODE_PORT), metadata)?;
    }
    Ok(())
}

#[test]
fn a_service_without_cluster_addresses_is_served_once_it_has_them() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let backends = slices(&shop, "other", SLICE_PORTS);
    for spec in ["clusterIP: None", ""] {
        let text = object("other", "", &format!("{spec}{}{PORTS}", if spec.is_empty() { "" } else { ", " }));
        shop.cluster.write("other.yaml", &(text + &backends))?;
        shop.settle()?;
        all_are(Silent, &inside(&shop, 60), spec)?;
    }
    shop.cluster.write("other.yaml", &(other(60, "", "type: ClusterIP") + &backends))?;
    shop.settle()?;
    all_are(Served, &inside(&shop, 60), "with addresses")
}

#[test]
fn external_addresses_are_served_where_the_operator_allows_them_and_only_while_they_are_named() -> Result<()>
{
    let options = AgentOptions { arguments: vec!["--external-ips".to_owned()], ..Default::default() };
    let shop = Shop::open_with(&[1], &options)?;
    let backends = slices(&shop, "other", SLICE_PORTS);
    let (first, second) = (["198.51.100.31", "2001:db8:f::31"], ["198.51.100.32", "2001:db8:f::32"]);
    for (named, others) in [(first, second), (second, first)] {
        let [v4, v6] = named;
        let spec = format!("type: ClusterIP, externalIPs: [{v4}, \"{v6}\"]");
        shop.cluster.write("other.yaml", &(other(60, "", &spec) + &backends))?;
        shop.settle()?;
        all_are(Served, &outside(&shop, named, 80), "named")?;
        all_are(Nowhere, &outside(&shop, others, 80), "not named")?;
        let pods: Vec<_> = named.map(|address| (&shop.client.netns, at(address, 80))).into();
        all_are(Served, &pods, "a pod")?;
    }
    Ok(())
}

#[test]
fn an_ingress_address_is_served_in_mode_vip_alone() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let backends = slices(&shop, "other", SLICE_PORTS);
    let addresses = ["198.51.100.41", "2001:db8:f::41"];
    let [v4, v6] = addresses;
    for (mode, fate) in [("", Served), (", ipMode: Proxy", Nowhere), (", ipMode: VIP", Served)] {
        let status = format!(
            "status: {{loadBalancer: {{ingress: [{{ip: {v4}{mode}}}, {{ip: \"{v6}\"{mode}}}, {{hostname: lb.example.org}}]}}}}\n"
        );
        let text = other(60, "", "type: LoadBalancer") + &status + &backends;
        shop.cluster.write("other.yaml", &text)?;
        shop.settle()?;
        all_are(fate, &outside(&shop, addresses, 80), mode)?;
        // Nor is a proxy's address taken from the proxy inside of the cluster.
        let pods: Vec<_> = addresses.map(|address| (&shop.client.netns, at(address, 80))).into();
        all_are(fate, &pods, mode)?;
        all_are(Served, &outside(&shop, NODE_ADDRESSES[1], NODE_PORT), mode)?;
    }
    Ok(())
}

#[test]
fn a_service_that_is_made_again_is_served_where_it_is_now() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let backends = slices(&shop, "other", SLICE_PORTS);
    // Away and back at the same addresses, then at others without having been away.
    for last in [60, 60, 61, 60] {
        shop.cluster.write("other.yaml", &(other(last, "", "type: ClusterIP") + &backends))?;
        shop.settle()?;
        all_are(Served, &inside(&shop, last), "its address")?;
        all_are(Silent, &inside(&shop, if last == 60 { 61 } else { 60 }), "the other address")?;
        if last == 60 {
            std::fs::remove_file(shop.cluster.objects().join("other.yaml"))?;
            shop.settle()?;
            all_are(Silent, &inside(&shop, last), "removed")?;
        }
    }
    Ok(())
}

#[test]
fn services_come_and_go_without_touching_each_other() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let whole = |name: &str, last: u8| {
        named(name, last, "", "ports: [{name: http, port: 80}, {name: echo, port: 80, protocol: UDP}]")
            + &slices(&shop, name, SLICE_PORTS)
    };
    let open = FAMILIES.map(|v6| LongLived::start(&shop.client.netns, cluster_address(v6), 4));
    for (name, last) in [("up1", 61), ("up2", 62)] {
        shop.cluster.write(&format!("{name}.yaml"), &whole(name, last))?;
    }
    shop.settle()?;
    all_are(Served, &[inside(&shop, 61), inside(&shop, 62)].concat(), "both are up")?;
    std::fs::remove_file(shop.cluster.objects().join("up1.yaml"))?;
    shop.settle()?;
    all_are(Silent, &inside(&shop, 61), "the first is down")?;
    all_are(Served, &inside(&shop, 62), "the second stays")?;
    shop.cluster.write("up3.yaml", &whole("up3", 63))?;
    shop.settle()?;
    all_are(Served, &[inside(&shop, 62), inside(&shop, 63)].concat(), "a third came")?;
    all_are(Silent, &inside(&shop, 61), "the first is still down")?;
    for open in open {
        let tally = open?.finish();
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
    }
    Ok(())
}

#[test]
fn ports_that_are_added_are_served_and_ports_that_are_deleted_are_not() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let more = &shop.backends[0].pod.netns;
    let _more = (WebServer::start(more, 8081, "more")?, UdpEcho::start(more, 9001, "more")?);
    let (first, second) = (
        "{name: http, port: 80}, {name: echo, port: 80, protocol: UDP}",
        "{name: http2, port: 81}, {name: echo2, port: 81, protocol: UDP}",
    );
    let all =
        format!("{SLICE_PORTS}, {{name: http2, port: 8081}}, {{name: echo2, port: 9001, protocol: UDP}}");
    let backends = slices(&shop, "other", &all);
    for (ports, fates) in [
        (first.to_owned(), [Served, Refused]),
        (format!("{first}, {second}"), [Served, Served]),
        (second.to_owned(), [Refused, Served]),
        (format!("{second}, {first}"), [Served, Served]),
    ] {
        let text = named("other", 60, "", &format!("ports: [{ports}]"));
        shop.cluster.write("other.yaml", &(text + &backends))?;
        shop.settle()?;
        for (port, fate) in [80, 81].into_iter().zip(fates) {
            let asked: Vec<_> = inside(&shop, 60)
                .into_iter()
                .map(|(netns, to)| (netns, SocketAddr::new(to.ip(), port)))
                .collect();
            all_are(fate, &asked, &ports)?;
        }
    }
    // Each port has its own backend port.
    for v6 in FAMILIES {
        let to = vip(60, v6);
        assert_eq!(get(&shop.client.netns, to)?.0, "b0");
        assert_eq!(udp_ask(&shop.client.netns, SocketAddr::new(to.ip(), 81))?.0, "more");
    }
    Ok(())
}
