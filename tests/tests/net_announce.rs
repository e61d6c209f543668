//! Public addresses that agents announce: routers learn them by BGP or find their owner by ARP and neighbour discovery, and outside
//! clients reach pods.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    AgentOptions, Brand, Cluster, Condition, Controller, Endpoint, Load, LongLived, NODE_ADDRESSES, Neighbor,
    Router, SERVICE_ADDRESSES, Shop, WebServer, get, object, poll, public_address, run, service, slice,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];
const PREFIXES: [&str; 2] = ["198.51.100.10/32", "2001:db8:f::10/128"];

/// Longest time from an edit to its effect at a router. It takes milliseconds, but a test machine may be busy.
const AT_ONCE: Duration = Duration::from_secs(20);

/// A pool with the shop's own addresses, a router, and an advertisement of everything.
const OBJECTS: &str = "\
apiVersion: portolan.dev/v1alpha1
kind: LoadBalancerPool
metadata: {name: public}
spec: {addresses: [198.51.100.8/29, \"2001:db8:f::8-2001:db8:f::1f\"]}
---
apiVersion: portolan.dev/v1alpha1
kind: BGPPeer
metadata: {name: tor}
spec: {peerASN: 64513, peerAddress: 192.0.2.1, holdTime: 9s}
---
apiVersion: portolan.dev/v1alpha1
kind: BGPAdvertisement
metadata: {name: all}
spec: {communities: [\"64512:100\"]}
";

/// Whichever node a client is sent to next, it leads to the same backend, which sees the client itself.
const STEADY: [&str; 4] = ["--external-mode", "dsr", "--external-selection", "maglev"];

fn options(more: &[&str]) -> AgentOptions {
    let arguments = STEADY.iter().chain(more).map(|&word| word.to_owned()).collect();
    AgentOptions { arguments, ..AgentOptions::default() }
}

/// The example's nodes, some of them cordoned.
fn nodes(cordoned: [bool; 2]) -> Result<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples").join("nodes.yaml");
    let mut text = std::fs::read_to_string(path)?;
    for (number, cordoned) in cordoned.into_iter().enumerate() {
        let pods = format!("  podCIDRs: [10.244.{}.0/24", number + 1);
        ensure!(text.contains(&pods), "the example has other podCIDRs");
        if cordoned {
            text = text.replace(&pods, &format!("  unschedulable: true\n{pods}"));
        }
    }
    Ok(text)
}

/// A shop whose addresses the router knows from the agents alone.
struct Scene {
    router: Router,
    shop: Shop,
}

impl Scene {
    fn new(options: &AgentOptions) -> Result<Self> {
        let cluster = Cluster::new()?;
        cluster.router.ip("route del 198.51.100.0/24")?;
        cluster.router.ip("route del 2001:db8:f::/64")?;
        for key in ["net/ipv4/fib_multipath_hash_policy", "net/ipv6/fib_multipath_hash_policy"] {
            // By ports as well: there is one client.
            cluster.router.sysctl(key, "1")?;
        }
        let neighbors = NODE_ADDRESSES.map(|node| Neighbor::new(node[0], 64_512, "192.0.2.1"));
        let directory = cluster.directory().join("router");
        let router = Router::start(Brand::Bird, &cluster.router, &directory, 64_513, &neighbors)?;
        cluster.write("bgp.yaml", OBJECTS)?;
        let shop = Shop::open_in(cluster, &[0, 1], options)?;
        Ok(Self { router, shop })
    }

    /// Waits until the router sends both addresses to exactly these nodes.
    fn leads_to(&self, nodes: [bool; 2]) -> Result<()> {
        (0..2).try_for_each(|family| self.prefix_leads_to(family, PREFIXES[family], nodes))
    }

    fn prefix_leads_to(&self, family: usize, prefix: &str, nodes: [bool; 2]) -> Result<()> {
        let hops = || -> Result<[bool; 2]> {
            let ways = self.router.paths(prefix)?;
            let has = |node: usize| {
                let hop = NODE_ADDRESSES[node][family];
                ways.iter().any(|way| way.next_hop.is_some_and(|it| it.to_string() == hop))
            };
            Ok([has(0), has(1)])
        };
        let flag = ["-4", "-6"][family];
        let kernel = || self.shop.cluster.router.ip(&format!("{flag} route show {prefix}"));
        let polled = poll(AT_ONCE, &format!("{prefix} leads to {nodes:?}"), || {
            let shown = kernel().ok()?;
            let has = |node: usize| shown.contains(&format!("via {} ", NODE_ADDRESSES[node][family]));
            (hops().ok()? == nodes && [has(0), has(1)] == nodes).then_some(())
        });
        polled.with_context(|| format!("{:?} {:?}\n{}", hops(), kernel(), self.views()))
    }

    /// Waits until the router has seen a session end and keeps its routes for now, or has them all from their nodes.
    fn keeps_routes(&self, wanted: bool) -> Result<()> {
        let keeps = || self.router.sessions().contains("Neighbor graceful restart active");
        let polled = poll(AT_ONCE, &format!("the router keeps routes: {wanted}"), || {
            (keeps() == wanted).then_some(())
        });
        polled.with_context(|| self.router.sessions())
    }

    fn cordon(&self, cordoned: [bool; 2]) -> Result<()> {
        self.shop.cluster.write("nodes.yaml", &nodes(cordoned)?)
    }

    /// New connections of the outside client are answered.
    fn answered(&self) -> Result<()> {
        for v6 in FAMILIES {
            for _ in 0..10 {
                get(&self.shop.cluster.client, public_address(v6))?;
            }
        }
        Ok(())
    }

    fn load(&self) -> Result<[Load; 2]> {
        let start = |v6| Load::start(&self.shop.cluster.client, public_address(v6), Duration::from_millis(5));
        Ok([start(false)?, start(true)?])
    }

    fn views(&self) -> String {
        let views = ["bgp peers", "bgp routes", "lb list", "status"];
        let agents = self.shop.agents.iter();
        agents
            .flat_map(|agent| views.map(|view| agent.view(view).unwrap_or_else(|error| format!("{error:#}"))))
            .collect()
    }
}

fn none_failed(loads: [Load; 2]) -> Result<()> {
    for load in loads {
        let tally = load.finish();
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
        ensure!(tally.answers() > 20, "too few answers to mean anything: {tally:?}");
    }
    Ok(())
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| text.to_owned())
}

/// The address's entry in `lb list`, as an agent says.
fn listed(shop: &Shop, agent: usize, address: &str) -> Result<Value> {
    let services = json(&shop.agents[agent].view("lb list -o json")?)?;
    let all = services.as_array().into_iter().flatten();
    let mut addresses = all.flat_map(|service| service["addresses"].as_array().into_iter().flatten());
    addresses.find(|it| it["address"] == address).cloned().with_context(|| services.to_string())
}

#[test]
fn a_router_sends_clients_to_the_nodes_that_can_serve_them() -> Result<()> {
    let mut scene = Scene::new(&options(&[]))?;
    follows_endpoints_and_nodes(&scene)?;
    ensure!(scene.shop.agents[0].terminate()?.success(), "{}", scene.shop.agents[0].log());
    scene.keeps_routes(true)?;
    scene.leads_to([true, true]).context("when an agent was asked to end")?;
    scene.answered()?;
    scene.shop.agents[0].restart()?;
    scene.keeps_routes(false)?;
    scene.leads_to([true, true]).context("when it is there again")?;
    std::fs::remove_file(scene.shop.cluster.objects().join("bgp.yaml"))?;
    scene.leads_to([false, false]).context("without any pool")
}

fn follows_endpoints_and_nodes(scene: &Scene) -> Result<()> {
    let shop = &scene.shop;
    scene.leads_to([true, true]).context("at first")?;
    let ways = scene.router.paths(PREFIXES[0])?;
    ensure!(ways.iter().all(|way| way.communities == "64512:100"), "{ways:?}");
    scene.answered()?;
    views_say_so(scene)?;

    shop.publish(|_| None)?;
    scene.leads_to([false, false]).context("without endpoints")?;
    let list = shop.agents[0].view("lb list")?;
    ensure!(list.contains("NoEndpoints: 198.51.100.10: "), "{list}");
    shop.publish(|_| Some(Condition::Terminating))?;
    scene.leads_to([true, true]).context("with endpoints that end and still answer")?;
    scene.answered()?;
    shop.publish(|_| Some(Condition::Ready))?;

    shop.cluster.write("service.yaml", &service("  externalTrafficPolicy: Local\n"))?;
    shop.publish(|backend| (backend == 1).then_some(Condition::Ready))?;
    scene.leads_to([false, true]).context("with policy Local")?;
    scene.answered()?;
    shop.cluster.write("service.yaml", &service(""))?;
    shop.publish(|_| Some(Condition::Ready))?;
    scene.leads_to([true, true])?;

    let held = FAMILIES.map(|v6| LongLived::start(&shop.cluster.client, public_address(v6), 8));
    scene.cordon([true, false])?;
    scene.leads_to([false, true]).context("with a cordoned node")?;
    scene.answered()?;
    ensure!(shop.agents[0].view("lb list")?.contains("NodeCordoned"), "{}", scene.views());
    for held in held {
        let tally = held?.finish();
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
    }
    scene.cordon([false, false])?;
    scene.leads_to([true, true])
}

fn views_say_so(scene: &Scene) -> Result<()> {
    let agent = &scene.shop.agents[0];
    let peers = json(&agent.view("bgp peers -o json")?)?;
    let peer = &peers[0];
    ensure!(peer["name"] == "tor" && peer["state"] == "Established", "{peers}");
    ensure!(peer["announced"]["ipv4"] == 1 && peer["announced"]["ipv6"] == 1, "{peers}");
    let routes = json(&agent.view("bgp routes -o json")?)?;
    for (route, (prefix, hop)) in
        [0, 1].map(|it| &routes[it]).iter().zip(PREFIXES.iter().zip(NODE_ADDRESSES[0]))
    {
        ensure!(route["prefix"] == **prefix && route["nextHops"][0] == hop, "{routes}");
        ensure!(route["peers"][0] == "tor" && route["communities"][0] == "64512:100", "{routes}");
    }
    let listed = listed(&scene.shop, 0, SERVICE_ADDRESSES[0])?;
    ensure!(listed["pool"] == "public" && listed["announced"][0] == "BGP to tor", "{listed}");
    let metrics = scene.shop.cluster.nodes[0].netns.enter(portolan_metrics)??;
    for line in ["portolan_bgp_session_up{peer=\"tor\"} 1", "portolan_bgp_routes 2", "portolan_l2_owned 0"] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    Ok(())
}

/// What the agent of this network namespace counts.
fn portolan_metrics() -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect("127.0.0.1:10249")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn routes_stay_while_an_agent_is_killed_and_go_when_it_is_told_so() -> Result<()> {
    let mut scene = Scene::new(&options(&["--on-stop", "withdraw"]))?;
    scene.leads_to([true, true])?;
    let loads = scene.load()?;
    scene.shop.agents[0].kill()?;
    scene.keeps_routes(true)?;
    scene.leads_to([true, true]).context("while the agent is away")?;
    scene.shop.agents[0].restart()?;
    scene.keeps_routes(false)?;
    scene.leads_to([true, true]).context("when it is there again")?;
    ensure!(scene.shop.agents[0].terminate()?.success(), "{}", scene.shop.agents[0].log());
    scene.leads_to([false, true]).context("when it was told to withdraw")?;
    scene.shop.agents[0].restart()?;
    scene.leads_to([true, true])?;
    none_failed(loads)
}

#[test]
fn nodes_are_drained_one_after_the_other_without_a_failed_request() -> Result<()> {
    let mut scene = Scene::new(&options(&["--on-stop", "withdraw"]))?;
    scene.leads_to([true, true])?;
    let loads = scene.load()?;
    for node in [0, 1] {
        let but_this = [node == 1, node == 0];
        scene.cordon([node == 0, node == 1])?;
        scene.leads_to(but_this)?;
        scene.shop.publish(|backend| {
            Some(if backend == node { Condition::Terminating } else { Condition::Ready })
        })?;
        scene.shop.settle()?;
        scene.shop.publish(|backend| (backend != node).then_some(Condition::Ready))?;
        scene.shop.settle()?;
        // What was accepted before is answered by now.
        std::thread::sleep(Duration::from_millis(200));
        scene.shop.backends[node].web = None;
        ensure!(scene.shop.agents[node].terminate()?.success(), "{}", scene.shop.agents[node].log());
        scene.shop.agents[node].restart()?;
        let backend = &mut scene.shop.backends[node];
        backend.web = Some(WebServer::start(&backend.pod.netns, 8080, &format!("b{node}"))?);
        scene.cordon([false, false])?;
        scene.leads_to([true, true])?;
        // As Kubernetes does: pods come to a node after it is uncordoned. A connection that lived through both, a change of its way
        // and one of the backends, might meet another backend at the other node.
        scene.shop.publish(|_| Some(Condition::Ready))?;
        scene.shop.settle()?;
    }
    none_failed(loads)
}

#[test]
fn an_address_that_a_controller_gives_is_at_the_router_at_once() -> Result<()> {
    let scene = Scene::new(&options(&[]))?;
    let shop = &scene.shop;
    let _controller = Controller::start(&shop.cluster)?;
    let slices = FAMILIES.map(|v6| {
        let endpoints = shop.backends.iter().map(|it| Endpoint::new(it.pod.address(v6), it.node, ""));
        slice(&format!("a{v6}"), "a", "{name: http, port: 8080}", &endpoints.collect::<Vec<_>>())
    });
    let spec = "type: LoadBalancer, clusterIP: 10.96.0.60, clusterIPs: [10.96.0.60, \"fd00:10:96::60\"], \
                ipFamilies: [IPv4, IPv6], ports: [{name: http, port: 80}]";
    let begun = Instant::now();
    shop.cluster.write("a.yaml", &(object("a", "", spec) + &slices.concat()))?;
    for (family, prefix) in ["198.51.100.8/32", "2001:db8:f::8/128"].into_iter().enumerate() {
        scene.prefix_leads_to(family, prefix, [true, true])?;
        println!("{prefix} was at the router within {:?}", begun.elapsed());
    }
    for address in ["198.51.100.8:80", "[2001:db8:f::8]:80"] {
        get(&shop.cluster.client, address.parse()?)?;
    }
    Ok(())
}

/// A peer without its password is left out and says so; with it, it is there without a restart.
#[test]
fn a_peer_waits_for_its_password_file() -> Result<()> {
    let cluster = Cluster::new()?;
    let file = cluster.directory().join("password");
    let neighbor = Neighbor {
        password: Some("s3cret".to_owned()),
        ..Neighbor::new(NODE_ADDRESSES[0][0], 64_512, "192.0.2.1")
    };
    let directory = cluster.directory().join("router");
    let router = Router::start(Brand::Bird, &cluster.router, &directory, 64_513, &[neighbor])?;
    let guarded = format!("holdTime: 9s, password: {{file: {}}}", file.display());
    cluster.write("bgp.yaml", &OBJECTS.replace("holdTime: 9s", &guarded))?;
    let shop = Shop::open_in(cluster, &[0], &options(&[]))?;
    let peers = shop.agents[0].view("bgp peers")?;
    ensure!(peers.contains("LeftOut") && peers.contains("password.file"), "{peers}");
    let status = json(&shop.agents[0].view("status -o json")?)?;
    ensure!(status["warnings"].to_string().contains("BGP peer tor is left out"), "{status}");
    std::fs::write(&file, "s3cret\n")?;
    router.until(PREFIXES[0], true)
}

/// Which node owns an address on layer 2, as both say.
fn owner(shop: &Shop, address: &str) -> Option<usize> {
    let says = |agent| listed(shop, agent, address).ok()?["announced"][0].as_str().map(str::to_owned);
    let (one, other) = (says(0)?, says(1)?);
    (one == other).then_some(())?;
    ["L2 by node1", "L2 by node2"].iter().position(|it| *it == one)
}

/// Waits until the router has a node's Ethernet address for an address.
fn neighbour(shop: &Shop, address: &str, node: usize) -> Result<()> {
    let link = shop.cluster.nodes[node].netns.ip("link show dev eth0")?;
    let mac =
        link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("no address")?;
    let shown = || shop.cluster.router.ip(&format!("neigh show {address} dev br0")).unwrap_or_default();
    let polled = poll(AT_ONCE, &format!("{address} leads to {mac}"), || shown().contains(mac).then_some(()));
    polled.with_context(shown)
}

#[test]
fn an_address_has_one_owner_on_layer_2_and_another_one_when_that_stops_or_is_drained() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.router.ip("route replace 198.51.100.0/24 dev br0")?;
    cluster.router.ip("route replace 2001:db8:f::/64 dev br0")?;
    cluster.write("pool.yaml", OBJECTS)?;
    let shop = Shop::open_in(cluster, &[0, 1], &options(&["--l2-interfaces", "uplinks"]))?;
    for (v6, vip) in FAMILIES.into_iter().zip(SERVICE_ADDRESSES) {
        let ask = || (0..20).try_for_each(|_| get(&shop.cluster.client, public_address(v6)).map(drop));
        let first = poll(AT_ONCE, "both name one owner", || owner(&shop, vip))?;
        ask()?;
        neighbour(&shop, vip, first)?;
        let held = LongLived::start(&shop.cluster.client, public_address(v6), 8)?;
        let process = shop.agents[first].process().context("the agent runs")?.to_string();
        run(Command::new("kill").args(["-STOP", &process]))?;
        let moved = neighbour(&shop, vip, 1 - first).and_then(|()| ask());
        run(Command::new("kill").args(["-CONT", &process]))?;
        moved.context("while its agent is stopped")?;
        neighbour(&shop, vip, first).context("when it goes on")?;
        shop.cluster.write("nodes.yaml", &nodes([first == 0, first == 1])?)?;
        neighbour(&shop, vip, 1 - first).context("when the node is cordoned")?;
        ask()?;
        poll(AT_ONCE, "both name the other one", || owner(&shop, vip).filter(|it| *it != first))?;
        shop.cluster.write("nodes.yaml", &nodes([false, false])?)?;
        neighbour(&shop, vip, first).context("when it is not any more")?;
        let tally = held.finish();
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
    }
    Ok(())
}
