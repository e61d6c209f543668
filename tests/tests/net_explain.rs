//! `portolan explain` says beforehand what then happens to real sockets.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use portolan_tests::lab::{Agent, AgentOptions, Cluster, Netns, Pod, WebServer};
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
