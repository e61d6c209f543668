//! hostPorts: a port of the node's addresses leads to one pod, and takes nothing else away.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Agent, AgentOptions, Cluster, NODE_ADDRESSES, NODE_PORT, Netns, Pod, Shop, UdpEcho, WebServer,
    balances_sockets, failure, get, get_from, poll, udp_ask,
};
use serde_json::{Value, json};

const FAMILIES: [bool; 2] = [false, true];
const PORT: u16 = 8088;

fn open(sockets: bool) -> Result<(Cluster, [Agent; 2])> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let agents = cluster.start_agents(&AgentOptions { sockets, ..AgentOptions::default() })?;
    Ok((cluster, agents))
}

/// A pod that answers at some ports of its node.
struct Server {
    pod: Pod,
    _web: WebServer,
    _echo: UdpEcho,
}

/// Adds a pod with servers over TCP (8080) and UDP (9000); `ports` are its `portMappings`.
fn serve(agent: &Agent, name: &str, ports: &Value) -> Result<Server> {
    let pod = Pod::add_with(agent, name, json!({ "portMappings": ports }))?;
    let (web, echo) = (WebServer::start(&pod.netns, 8080, name)?, UdpEcho::start(&pod.netns, 9000, name)?);
    Ok(Server { pod, _web: web, _echo: echo })
}

fn tcp(host_port: u16, host_ip: &str) -> Value {
    json!({"hostPort": host_port, "containerPort": 8080, "protocol": "tcp", "hostIP": host_ip})
}

fn udp(host_port: u16, host_ip: &str) -> Value {
    json!({"hostPort": host_port, "containerPort": 9000, "protocol": "udp", "hostIP": host_ip})
}

fn at(node: usize, v6: bool, port: u16) -> SocketAddr {
    let address: IpAddr = NODE_ADDRESSES[node][usize::from(v6)].parse().expect("the constants are addresses");
    SocketAddr::new(address, port)
}

fn loopback(v6: bool, port: u16) -> SocketAddr {
    let address: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    SocketAddr::new(address, port)
}

fn refused(netns: &Netns, udp: bool, to: SocketAddr) -> Result<()> {
    let kind = failure(netns, udp, to, Duration::from_secs(2))?;
    ensure!(kind == Some(ErrorKind::ConnectionRefused), "{to} from {}: {kind:?}", netns.name());
    Ok(())
}

/// The plugin's answer to an ADD that must fail: its code, and its text.
fn fails(agent: &Agent, name: &str, ports: &Value) -> Result<(u64, String)> {
    let pod = Pod::add_with(agent, name, json!({ "portMappings": ports }));
    let text = format!("{:#}", pod.err().with_context(|| format!("an ADD with {ports}"))?);
    let answer: Value = serde_json::from_str(&text[text.find('{').context("no answer")?..])?;
    Ok((answer["code"].as_u64().context("no code")?, text))
}

fn pods(agent: &Agent) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&agent.view("pod list -o json")?)?)
}

/// What an audit finds.
fn sound(agent: &Agent) -> Result<()> {
    agent.view("audit").map(drop).context("the tables are not as they should be")
}

#[test]
fn every_client_reaches_the_pod_at_its_nodes_addresses_and_nothing_else_changes() -> Result<()> {
    let (cluster, agents) = open(false)?;
    let server = serve(&agents[0], "web", &json!([tcp(PORT, ""), udp(PORT, ""), tcp(80, "")]))?;
    let near = Pod::add(&agents[0], "near")?;
    let far = Pod::add(&agents[1], "far")?;
    let own = WebServer::start(&cluster.nodes[0].netns, 7000, "host")?;
    for v6 in FAMILIES {
        let outside = if v6 { "2001:db8:c::10" } else { "203.0.113.10" };
        let clients = [
            ("outside", &cluster.client, Some(outside.to_owned())),
            ("a pod of the node", &near.netns, Some(near.address(v6).to_string())),
            ("a pod of another node", &far.netns, Some(far.address(v6).to_string())),
            ("the node", &cluster.nodes[0].netns, None),
            ("another node", &cluster.nodes[1].netns, Some(NODE_ADDRESSES[1][usize::from(v6)].to_owned())),
            // It cannot see itself as its own client.
            ("the pod itself", &server.pod.netns, None),
        ];
        for (who, netns, seen) in clients {
            for answer in
                [get(netns, at(0, v6, PORT)), get(netns, at(0, v6, 80)), udp_ask(netns, at(0, v6, PORT))]
            {
                let (name, client) = answer.with_context(|| format!("{who}, IPv6: {v6}"))?;
                assert_eq!(name, "web", "{who}");
                ensure!(seen.as_ref().is_none_or(|seen| *seen == client), "{who} is seen as {client}");
            }
            // The node's other ports and protocols are its own.
            assert_eq!(get(netns, at(0, v6, 7000))?.0, "host", "{who}");
            refused(netns, false, at(0, v6, 7001)).context(who)?;
            refused(netns, true, at(0, v6, 80)).context(who)?;
            netns.run(&format!("ping -c 1 -W 2 {}", at(0, v6, 0).ip())).context(who)?;
        }
        // Another node has nothing of it.
        refused(&cluster.client, false, at(1, v6, PORT))?;
    }
    drop(own);
    sound(&agents[0])?;
    let listed = pods(&agents[0])?;
    let web = listed.iter().find(|pod| pod["name"] == "web").context("the pod is not listed")?;
    assert_eq!(web["hostPorts"][1], json!({"hostPort": PORT, "containerPort": 9000, "protocol": "UDP"}));
    ensure!(agents[0].view("pod list")?.contains("8088/UDP → 9000"), "{}", agents[0].view("pod list")?);
    ensure!(agents[0].view("service list")?.contains("hostport:web"), "{}", agents[0].view("service list")?);
    Ok(())
}

#[test]
fn pods_share_a_port_where_protocol_or_address_differ() -> Result<()> {
    let (cluster, agents) = open(true)?;
    for v6 in FAMILIES {
        // As the conformance test "validates that there is no conflict between pods with same hostPort but different hostIP
        // and protocol" has them.
        let (node, own) = (&cluster.nodes[0].netns, at(0, v6, 54_323));
        let ip = own.ip().to_string();
        let one = serve(&agents[0], "one", &json!([tcp(54_323, &loopback(v6, 0).ip().to_string())]))?;
        let two = serve(&agents[0], "two", &json!([tcp(54_323, &ip)]))?;
        let three = serve(&agents[0], "three", &json!([udp(54_323, &ip)]))?;
        assert_eq!(get(node, loopback(v6, 54_323))?.0, "one");
        assert_eq!(
            get_from(node, own.ip(), loopback(v6, 54_323))?.0,
            "one",
            "with the node's address as source"
        );
        for client in [node, &cluster.client, &cluster.nodes[1].netns] {
            assert_eq!(get(client, own)?.0, "two");
            assert_eq!(udp_ask(client, own)?.0, "three");
        }
        refused(node, true, loopback(v6, 54_323))?;
        sound(&agents[0])?;
        drop((one, two, three));
        refused(node, false, loopback(v6, 54_323))?;
        refused(node, false, own)?;
    }
    Ok(())
}

#[test]
fn a_port_of_all_addresses_answers_the_nodes_own_processes_at_loopback() -> Result<()> {
    let (cluster, agents) = open(true)?;
    let _server = serve(&agents[0], "web", &json!([tcp(PORT, ""), udp(PORT, "")]))?;
    let other = Pod::add(&agents[0], "other")?;
    for v6 in FAMILIES {
        assert_eq!(get(&cluster.nodes[0].netns, loopback(v6, PORT))?.0, "web");
        assert_eq!(get(&cluster.nodes[0].netns, at(0, v6, PORT))?.0, "web");
        // A pod's loopback is its own.
        refused(&other.netns, false, loopback(v6, PORT))?;
    }
    Ok(())
}

#[test]
fn without_balanced_sockets_loopback_is_refused_and_a_port_of_all_addresses_leaves_it_alone() -> Result<()> {
    if balances_sockets() {
        return Ok(());
    }
    let (cluster, agents) = open(false)?;
    let _server = serve(&agents[0], "web", &json!([tcp(PORT, "")]))?;
    for v6 in FAMILIES {
        let (code, text) = fails(&agents[0], "two", &json!([tcp(81, &loopback(v6, 0).ip().to_string())]))?;
        ensure!(code == 7 && text.contains("--socket-cgroup"), "{text}");
        // What the node says to itself is not translated: there is nobody.
        refused(&cluster.nodes[0].netns, false, loopback(v6, PORT))?;
        let _web = WebServer::start(&cluster.nodes[0].netns, PORT, "host")?;
        assert_eq!(get(&cluster.nodes[0].netns, loopback(v6, PORT))?.0, "host");
        assert_eq!(get(&cluster.nodes[0].netns, at(0, v6, PORT))?.0, "web");
    }
    Ok(())
}

#[test]
fn a_port_that_another_has_is_refused_by_name_and_nothing_is_left() -> Result<()> {
    let shop = Shop::open_with(&[0], &AgentOptions { sockets: true, ..AgentOptions::default() })?;
    let agent = &shop.agents[0];
    let _server = serve(agent, "web", &json!([tcp(PORT, ""), udp(81, "192.0.2.11")]))?;
    let before =
        (pods(agent)?.len(), agent.view("service list -o json")?, links(&shop.cluster.nodes[0].netns)?);
    let nodeport = "NodePort of service shop/web";
    for (ports, code, text) in [
        (json!([tcp(PORT, "")]), 11, "taken by pod shop/web"),
        (json!([tcp(PORT, "127.0.0.1")]), 11, "taken by pod shop/web"),
        (json!([tcp(80, ""), udp(81, "")]), 11, "192.0.2.11:81/UDP is taken by pod shop/web"),
        (json!([tcp(NODE_PORT, "")]), 7, nodeport),
        (json!([tcp(NODE_PORT, "192.0.2.11")]), 7, nodeport),
        (json!([tcp(80, "192.0.2.12")]), 7, "no address of this node, which has 192.0.2.11"),
        (json!([tcp(80, "203.0.113.10")]), 7, "no address of this node"),
        (json!([tcp(80, ""), tcp(80, "192.0.2.11")]), 7, "of this pod meet"),
        (json!([{"hostPort": 80, "containerPort": 80, "protocol": "sctp"}]), 2, "SCTP"),
    ] {
        let (found, said) = fails(agent, "two", &ports)?;
        ensure!(found == code && said.contains(text), "{ports}: {said}");
    }
    assert_eq!(
        (pods(agent)?.len(), agent.view("service list -o json")?, links(&shop.cluster.nodes[0].netns)?),
        before
    );
    // What does not meet is fine.
    let _other = serve(agent, "two", &json!([udp(PORT, ""), udp(81, "2001:db8:1::11"), tcp(81, "")]))?;
    sound(agent)
}

fn links(node: &Netns) -> Result<Vec<String>> {
    let mut names: Vec<String> = node
        .run("ip -o link show type veth")?
        .lines()
        .filter_map(|line| Some(line.split_whitespace().nth(1)?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

#[test]
fn a_nodeport_that_comes_after_a_hostport_says_who_has_it_here() -> Result<()> {
    let (cluster, agents) = open(false)?;
    let server = serve(&agents[0], "web", &json!([tcp(NODE_PORT, "")]))?;
    cluster.write(
        "late.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: late, namespace: shop}}\nspec: {{type: NodePort, clusterIP: \
             10.96.0.77, ports: [{{port: 80, nodePort: {NODE_PORT}}}]}}\n"
        ),
    )?;
    let condition = |agent: &Agent| {
        let shown = agent.view("service show late").ok()?;
        shown.contains("HostPort: node port 30080").then_some(())
    };
    poll(Duration::from_secs(10), "the service says who has its port", || condition(&agents[0]))?;
    assert_eq!(get(&cluster.client, at(0, false, NODE_PORT))?.0, "web");
    drop(server);
    poll(Duration::from_secs(10), "the service has its port", || {
        condition(&agents[0]).is_none().then_some(())
    })?;
    Ok(())
}

#[test]
fn ports_outlive_the_agent_and_go_with_their_pod() -> Result<()> {
    let (cluster, mut agents) = open(false)?;
    let ports = json!([tcp(PORT, ""), udp(PORT, "")]);
    let server = serve(&agents[0], "web", &ports)?;
    let answers = |name: &str| -> Result<()> {
        for v6 in FAMILIES {
            assert_eq!(get(&cluster.client, at(0, v6, PORT))?.0, name);
            assert_eq!(udp_ask(&cluster.client, at(0, v6, PORT))?.0, name);
        }
        Ok(())
    };
    answers("web")?;
    agents[0].kill()?;
    answers("web").context("without an agent")?;
    agents[0].restart()?;
    answers("web").context("after a restart")?;
    sound(&agents[0])?;
    ensure!(fails(&agents[0], "two", &ports)?.1.contains("taken by pod shop/web"), "it is remembered");
    ensure!(server.pod.call("DEL")?.status.success());
    for v6 in FAMILIES {
        refused(&cluster.client, false, at(0, v6, PORT)).context("after DEL")?;
        refused(&cluster.client, true, at(0, v6, PORT)).context("after DEL")?;
    }
    let next = serve(&agents[0], "next", &ports)?;
    answers("next")?;
    // The agent is down while the pod goes; another has its port afterwards.
    agents[0].kill()?;
    ensure!(next.pod.call("DEL")?.status.success());
    agents[0].restart()?;
    let _last = serve(&agents[0], "last", &ports)?;
    answers("last")?;
    sound(&agents[0])
}

#[test]
fn a_pod_whose_interface_is_removed_keeps_its_port_until_del_and_gets_nothing() -> Result<()> {
    let (cluster, mut agents) = open(false)?;
    let ports = json!([tcp(PORT, "")]);
    let server = serve(&agents[0], "web", &ports)?;
    let listed = pods(&agents[0])?;
    let link = listed[0]["hostInterface"].as_str().context("no interface")?.to_owned();
    assert_eq!(listed[0]["interfacePresent"], true);
    cluster.nodes[0].netns.ip(&format!("link del {link}"))?;
    let gone = |agent: &Agent| (pods(agent).ok()?[0]["interfacePresent"] == false).then_some(());
    poll(Duration::from_secs(5), "the interface is known to be gone", || gone(&agents[0]))?;
    for v6 in FAMILIES {
        refused(&cluster.client, false, at(0, v6, PORT))?;
    }
    ensure!(agents[0].view("pod list")?.contains("(gone)"));
    ensure!(fails(&agents[0], "two", &ports)?.0 == 11, "the port is kept");
    sound(&agents[0])?;
    // As after a reboot: the record is there, the interface is not.
    agents[0].restart()?;
    gone(&agents[0]).context("after a restart")?;
    refused(&cluster.client, false, at(0, false, PORT))?;
    sound(&agents[0])?;
    ensure!(server.pod.call("DEL")?.status.success());
    assert_eq!(pods(&agents[0])?, Vec::<Value>::new());
    let _next = serve(&agents[0], "next", &ports)?;
    assert_eq!(get(&cluster.client, at(0, false, PORT))?.0, "next");
    Ok(())
}

#[test]
fn a_port_is_no_source_of_the_nodes_own_connections() -> Result<()> {
    let (cluster, agents) = open(false)?;
    let _server = serve(&agents[0], "web", &json!([tcp(45_678, "")]))?;
    let reserved = cluster.nodes[0].netns.run("cat /proc/sys/net/ipv4/ip_local_reserved_ports")?;
    ensure!(reserved.contains("45678"), "{reserved}");
    Ok(())
}
