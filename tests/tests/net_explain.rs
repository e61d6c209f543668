//! `portolan explain` says beforehand what then happens to real sockets.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Agent, AgentOptions, Cluster, Condition, Endpoint, NODE_ADDRESSES, Netns, Pod, Shop, WebServer, binary,
    cluster_address, get, node_address, public_address, service, slice,
};
use serde_json::Value;

const PORT: u16 = 80;

fn vip(v6: bool) -> IpAddr {
    if v6 { "fd00:10:96::10" } else { "10.96.0.10" }.parse().expect("an address")
}

fn slices(pods: &[Pod]) -> String {
    let slice = |v6: bool| {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let nodes = ["node1", "node2"];
        let endpoints = pods.iter().zip(nodes).map(|(pod, node)| {
            format!(
                "- {{addresses: [\"{}\"], nodeName: {node}, conditions: {{ready: true}}}}\n",
                pod.address(v6)
            )
        });
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{}\n  namespace: shop\n  \
             labels: {{kubernetes.io/service-name: web}}\naddressType: {family}\n\
             ports:\n- {{name: http, port: 8080, protocol: TCP}}\nendpoints:\n{}---\n",
            family.to_lowercase(),
            endpoints.collect::<String>()
        )
    };
    slice(false) + &slice(true)
}

fn explain(agent: &Agent, source: &str, to: SocketAddr, port: u16) -> Result<Value> {
    let text = agent.view(&format!("explain {source} {to} --source-port {port} -o json"))?;
    serde_json::from_str(&text).context("reading the explanation")
}

/// Who answers a request from that source port.
fn request(netns: &Netns, to: SocketAddr, port: u16) -> Result<String> {
    let answer = netns.run(&format!("curl -gsS --max-time 3 --local-port {port} http://{to}/"))?;
    Ok(answer.split_whitespace().next().unwrap_or_default().to_owned())
}

fn step<'a>(explanation: &'a Value, name: &str) -> &'a str {
    let steps = explanation["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = steps.iter().find(|step| step["step"] == name);
    found.and_then(|step| step["finding"].as_str()).unwrap_or_default()
}

/// What is explained for each of several source ports is what a request from it then meets.
fn foretells(agent: &Agent, source: &str, netns: &Netns, to: SocketAddr, servers: &[Pod]) -> Result<()> {
    let mut met = std::collections::BTreeSet::new();
    // A port that an earlier connection left in TIME-WAIT cannot be bound again, in neither family.
    let first = if to.is_ipv6() { 42_000 } else { 41_000 };
    for port in first + 1..first + 9 {
        let foretold = explain(agent, source, to, port)?;
        let name = request(netns, to, port)?;
        let server = servers.iter().find(|pod| pod.name == name).context("an answer from no pod")?;
        let expected = SocketAddr::new(server.address(to.is_ipv6()), 8080).to_string();
        let backend = step(&foretold, "backend");
        assert!(backend.contains(&expected), "{name} answered at {expected}, but: {foretold:#}");
        assert!(step(&foretold, "frontend").contains("shop/web:http"), "{foretold:#}");
        met.insert(name);
    }
    assert_eq!(met.len(), servers.len(), "eight ports met only {met:?}: nothing was told apart");
    Ok(())
}

#[test]
fn explain_foretells_the_backend_and_every_refusal() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    cluster.write_example("web.yaml")?;
    let agents = cluster.start_agents(&AgentOptions::default())?;
    let servers = [Pod::add(&agents[0], "one")?, Pod::add(&agents[1], "two")?];
    let client = Pod::add(&agents[0], "client")?;
    let _web: Vec<WebServer> =
        servers.iter().map(|pod| WebServer::start(&pod.netns, 8080, &pod.name)).collect::<Result<_>>()?;

    let none = SocketAddr::new(vip(false), PORT);
    let refused = explain(&agents[0], "shop/client", none, 41_000)?;
    assert_eq!((&refused["outcome"], &refused["dropped"]), (&"rejected-no-backend".into(), &true.into()));
    assert!(refused["meaning"].as_str().is_some_and(|text| text.contains("Add an endpoint")), "{refused:#}");
    let failure = request(&client.netns, none, 41_000).expect_err("there is no backend");
    // curl's code 7: refused at once; 28 would be a timeout.
    assert!(format!("{failure:#}").contains("exit status: 7"), "{failure:#}");

    cluster.write("slices.yaml", &slices(&servers))?;
    for v6 in [false, true] {
        let to = SocketAddr::new(vip(v6), PORT);
        portolan_tests::lab::poll(std::time::Duration::from_secs(5), "the service answers", || {
            portolan_tests::lab::get(&client.netns, to).ok()
        })?;
        foretells(&agents[0], "shop/client", &client.netns, to, &servers)?;
        foretells(&agents[0], "host", &cluster.nodes[0].netns, to, &servers)?;
        let outside = if v6 { "2001:db8:c::10" } else { "203.0.113.10" };
        let public = if v6 { "2001:db8:f::10" } else { "198.51.100.10" };
        cluster.route_public_to(0)?;
        foretells(&agents[0], outside, &cluster.client, SocketAddr::new(public.parse()?, PORT), &servers)?;
        let unknown = explain(&agents[0], "shop/client", SocketAddr::new(vip(v6), 81), 41_000)?;
        assert_eq!(unknown["outcome"], "rejected-unknown-port", "{unknown:#}");
        let text = agents[0].view(&format!("explain shop/client {to}"))?;
        assert!(text.contains("internalTrafficPolicy: Cluster; 2 backends on all nodes together"), "{text}");
        println!("{text}");
    }
    let wrong = agents[0].view("explain nobody/there 10.96.0.10:80").expect_err("there is no such pod");
    assert!(format!("{wrong:#}").contains("no pod nobody/there on this node"), "{wrong:#}");
    Ok(())
}

/// An address outside of the cluster.
fn outsider(v6: bool) -> &'static str {
    if v6 { "2001:db8:c::10" } else { "203.0.113.10" }
}

/// The first node explains a packet; a step of that name has all of these words.
fn says(shop: &Shop, source: &str, to: SocketAddr, wanted: (&str, &[&str])) -> Result<Value> {
    let said = explain(&shop.agents[0], source, to, 1025)?;
    let (name, words) = wanted;
    let steps = said["steps"].as_array().context("no steps")?.iter().filter(|step| step["step"] == name);
    let mut findings = steps.filter_map(|step| step["finding"].as_str());
    let found = findings.any(|finding| words.iter().all(|word| finding.contains(word)));
    ensure!(found, "no {name} is {words:?}: {said:#}");
    Ok(said)
}

/// Gives the service these lines in its spec.
fn change(shop: &Shop, extra: &str) -> Result<()> {
    shop.cluster.write("service.yaml", &service(extra))?;
    shop.settle()
}

#[test]
fn explain_tells_what_the_backend_sees_of_its_client() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    for v6 in [false, true] {
        shop.publish(|index| (index == 0).then_some(Condition::Ready))?;
        shop.settle()?;
        let client = shop.client.address(v6).to_string();
        says(&shop, &client, cluster_address(v6), ("source", &["the client itself", &client]))?;
        // Hairpin: the only backend asks its own service.
        let own = shop.backends[0].pod.address(v6).to_string();
        let words = ["the backend is the client", if v6 { "fd70:6f72:746f::1" } else { "169.254.1.1" }];
        says(&shop, &own, cluster_address(v6), ("source", &words))?;
        // A NodePort of this node whose only backend is on the other: masqueraded, from the range.
        shop.publish(|index| (index == 1).then_some(Condition::Ready))?;
        shop.settle()?;
        let node = NODE_ADDRESSES[0][usize::from(v6)];
        let words = ["the backend sees this node", node, "(ports 10240–29999)"];
        says(&shop, outsider(v6), node_address(0, v6), ("source", &words))?;
        let words = ["NodePort 30080 is a frontend of service shop/web:http"];
        says(&shop, outsider(v6), node_address(0, v6), ("frontend", &words))?;
        says(&shop, outsider(v6), node_address(0, v6), ("policy", &["externalTrafficPolicy: Cluster"]))?;
    }
    Ok(())
}

#[test]
fn explain_tells_of_affinity_and_source_ranges_and_addresses_that_nobody_has() -> Result<()> {
    let shop = Shop::open(&[0])?;
    change(
        &shop,
        "  sessionAffinity: ClientIP\n  loadBalancerSourceRanges: [203.0.113.128/25, \"2001:db8:c:1::/64\"]\n",
    )?;
    for v6 in [false, true] {
        let client = shop.client.address(v6).to_string();
        let to = cluster_address(v6);
        says(&shop, &client, to, ("affinity", &["on for 10800 s", "no earlier flow of this client"]))?;
        get(&shop.client.netns, to)?;
        says(&shop, &client, to, ("affinity", &["on for 10800 s", "the client's last flow had backend #"]))?;

        let said = says(
            &shop,
            outsider(v6),
            public_address(v6),
            ("client", &["in none of loadBalancerSourceRanges"]),
        )?;
        ensure!(said["outcome"] == "source-range" && said["dropped"] == true, "{said:#}");
        let admitted = if v6 { "2001:db8:c:1::1" } else { "203.0.113.129" };
        let said =
            says(&shop, admitted, public_address(v6), ("client", &["in one of loadBalancerSourceRanges"]))?;
        ensure!(said["dropped"] == false, "{said:#}");

        let nobody = SocketAddr::new(if v6 { "fd00:10:96::200" } else { "10.96.0.200" }.parse()?, PORT);
        let said = says(&shop, &client, nobody, ("frontend", &["is no service's address"]))?;
        ensure!(said["outcome"] == "unknown-service" && said["dropped"] == true, "{said:#}");
    }
    Ok(())
}

#[test]
fn explain_tells_that_backends_are_terminating_or_meant_for_this_node() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    shop.publish(|_| Some(Condition::Terminating))?;
    shop.settle()?;
    for v6 in [false, true] {
        let words = ["2 backends on all nodes together", "terminating backends: none is ready"];
        says(&shop, "shop/client", cluster_address(v6), ("policy", &words))?;
    }
    let hinted = |v6| {
        let endpoints = shop.backends.iter().map(|backend| {
            let extra = format!(
                "conditions: {{ready: true}}, hints: {{forNodes: [{{name: node{}}}]}}",
                backend.node + 1
            );
            Endpoint::new(backend.pod.address(v6), backend.node, &extra)
        });
        slice(&format!("web{v6}"), "web", "{name: http, port: 8080}", &endpoints.collect::<Vec<_>>())
    };
    shop.cluster.write("slices.yaml", &[false, true].map(hinted).concat())?;
    shop.settle()?;
    for v6 in [false, true] {
        let words = ["1 backend meant for this node", "all hints name nodes"];
        says(&shop, "shop/client", cluster_address(v6), ("policy", &words))?;
    }
    Ok(())
}

#[test]
fn explain_tells_that_a_packet_is_of_a_flow_that_is_there() -> Result<()> {
    let shop = Shop::open(&[0])?;
    for (v6, port) in [(false, 43_001), (true, 43_002)] {
        let (client, to) = (shop.client.address(v6).to_string(), cluster_address(v6));
        let before = explain(&shop.agents[0], &client, to, port)?;
        ensure!(step(&before, "flow").contains("none: the packet opens one"), "{before:#}");
        request(&shop.client.netns, to, port)?;
        let after = explain(&shop.agents[0], &client, to, port)?;
        ensure!(step(&after, "flow").contains("is of a flow in the table"), "{after:#}");
    }
    Ok(())
}

/// The cgroup that [`balancing`] tells of.
const CGROUP: &str = "/sys/fs/cgroup/balanced";

/// A socket that answers as the agent's does, but says that a cgroup's sockets are balanced: whether the kernel lets the
/// hooks be attached does not matter to what `explain` makes of the agent's word.
fn balancing(agent: &Agent) -> Result<PathBuf> {
    let (own, path) = (agent.socket(), agent.directory().join("balancing.sock"));
    let listener = UnixListener::bind(&path)?;
    std::thread::spawn(move || listener.incoming().try_for_each(|stream| pass_on(stream?, &own)));
    Ok(path)
}

fn pass_on(mut stream: UnixStream, to: &Path) -> std::io::Result<()> {
    let mut question = String::new();
    BufReader::new(&stream).read_line(&mut question)?;
    let mut agent = UnixStream::connect(to)?;
    agent.write_all(question.as_bytes())?;
    let answer = std::io::read_to_string(agent)?;
    let told = format!("\"socketCgroup\":\"{CGROUP}\"");
    stream.write_all(answer.replace("\"socketCgroup\":null", &told).as_bytes())
}

#[test]
fn explain_says_first_that_a_socket_gets_its_backend_before_any_packet() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let agent = &shop.agents[0];
    let (told, program) = (balancing(agent)?, binary("portolan")?);
    let (told, pins) = (told.display(), agent.pins().display());
    let ask = |line: &str| -> Result<Value> {
        let line = format!("{} --socket {told} --pins {pins} explain {line} -o json", program.display());
        Ok(serde_json::from_str(&shop.cluster.nodes[0].netns.run(&line)?)?)
    };
    let first = |line: &str, words: &str| -> Result<()> {
        let said = ask(line)?;
        let (first, place) = (&said["steps"][0], format!("cgroup {CGROUP}"));
        let finding = first["finding"].as_str().unwrap_or_default();
        let fits = first["step"] == "socket" && finding.contains(words) && finding.contains(&place);
        ensure!(fits, "{line} is not {words:?}: {said:#}");
        Ok(())
    };
    for (proto, name) in [("tcp", "http"), ("udp", "echo")] {
        let given = format!("gets a backend of service shop/web:{name} at connect");
        for v6 in [false, true] {
            let (pod, vip) = (shop.client.address(v6), cluster_address(v6));
            first(&format!("{pod} {vip} --proto {proto}"), &given)?;
            first(&format!("host {vip} --proto {proto}"), &given)?;
            // What is left to packets is said as well.
            let unknown = SocketAddr::new(vip.ip(), 81);
            first(&format!("{pod} {unknown} --proto {proto}"), "left alone at connect")?;
            // An outside client's socket is on another machine.
            let outside = ask(&format!("{} {} --proto {proto}", outsider(v6), node_address(0, v6)))?;
            ensure!(step(&outside, "socket").is_empty(), "{outside:#}");
        }
        first(&format!("host 127.0.0.1:30080 --proto {proto}"), &given)?;
    }
    let plain = explain(agent, "shop/client", cluster_address(false), 1025)?;
    ensure!(step(&plain, "socket").is_empty(), "this agent balances none: {plain:#}");
    Ok(())
}
