//! A real container runtime: containerd and runc make containers, and the CNI plugin connects them.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{Agent, AgentOptions, CLUSTER_ADDRESSES, Container, Containerd, Shop, get, poll};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];

/// A container that serves a page with its name, which the lab's clients understand.
const SERVE: &str = "mkdir /www; echo NAME here > /www/index.html; exec httpd -f -p 8080 -h /www";

fn serving<'a>(containerd: &'a Containerd, name: &str) -> Result<Container<'a>> {
    let container = containerd.container(name, &SERVE.replace("NAME", name))?;
    let serves = || fetch(&container, "127.0.0.1:8080").ok();
    poll(Duration::from_secs(5), "the container's server listens", serves)?;
    Ok(container)
}

/// The words of a page that the container gets.
fn fetch(container: &Container<'_>, at: impl Display) -> Result<(String, String)> {
    // Debian's static busybox crashes when wget itself has a time-out.
    let said = container.run(&format!("timeout 5 wget -q -O - http://{at}/"))?;
    let mut words = said.split_whitespace().map(str::to_owned);
    Ok((words.next().context("an empty answer")?, words.next().context("half an answer")?))
}

fn open(nodes: &[usize]) -> Result<(Shop, Containerd)> {
    let shop = Shop::open_with(nodes, &AgentOptions { install_cni: true, ..AgentOptions::default() })?;
    let containerd = Containerd::start(&shop.cluster.nodes[0], &shop.agents[0])?;
    Ok((shop, containerd))
}

/// What the agent says of a pod, by the runtime's name for it.
fn pod(agent: &Agent, attachment: &str) -> Result<Option<Value>> {
    let pods: Vec<Value> = serde_json::from_str(&agent.view("pod list -o json")?)?;
    Ok(pods.into_iter().find(|pod| pod["container"] == attachment))
}

fn addresses(pod: &Value) -> Result<[IpAddr; 2]> {
    let listed: Vec<IpAddr> = serde_json::from_value(pod["addresses"].clone())?;
    let of = |v6| listed.iter().copied().find(|addr| addr.is_ipv6() == v6).context("an address is missing");
    Ok([of(false)?, of(true)?])
}

/// What the machine has where runtimes and plugins keep things.
fn machine() -> Vec<String> {
    let places = [
        "/etc/cni/net.d",
        "/opt/cni/bin",
        "/var/lib/cni",
        "/run/containerd",
        "/run/runc",
        "/var/lib/containerd",
    ];
    let list = |place: &str| {
        let entries = std::fs::read_dir(place).map(|entries| {
            let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            names.sort();
            names
        });
        format!("{place}: {:?}", entries.map_err(|error| error.kind()))
    };
    places.iter().map(|place| list(place)).collect()
}

#[test]
fn a_container_has_the_addresses_that_are_listed_and_talks_with_everybody() -> Result<()> {
    let before = machine();
    let (shop, containerd) = open(&[0, 1])?;
    let container = serving(&containerd, "c1")?;
    let listed = pod(&shop.agents[0], &containerd.attachment("c1"))?.context("the pod is not listed")?;
    let own = addresses(&listed)?;
    for (v6, address) in FAMILIES.into_iter().zip(own) {
        let shown = container.run("ip addr show dev eth0")?;
        ensure!(shown.contains(&format!(" {address}/{}", if v6 { 128 } else { 32 })), "{address} in {shown}");
        // From the container: a service, whose backends see its address, on both nodes.
        let vip = SocketAddr::new(CLUSTER_ADDRESSES[usize::from(v6)].parse()?, 80);
        let mut servers = BTreeSet::new();
        for _ in 0..24 {
            let (server, seen) = fetch(&container, vip)?;
            assert_eq!(seen.parse(), Ok(address), "the backend sees the container");
            servers.insert(server);
        }
        assert_eq!(servers.len(), 2, "both backends answered");
        // To the container: a pod of its node, a pod of the other node, the host.
        let to = SocketAddr::new(address, 8080);
        for from in [&shop.client.netns, &shop.backends[1].pod.netns, &shop.cluster.nodes[0].netns] {
            assert_eq!(get(from, to)?.0, "c1", "{} asks {to}", from.name());
        }
    }
    drop(container);
    drop(containerd);
    assert_eq!(machine(), before, "the machine's own directories");
    Ok(())
}

#[test]
fn a_container_is_a_backend_as_any_pod() -> Result<()> {
    let (shop, containerd) = open(&[])?;
    let container = serving(&containerd, "c1")?;
    let listed = pod(&shop.agents[0], &containerd.attachment("c1"))?.context("the pod is not listed")?;
    let slice = |family: &str, address| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-{0}, namespace: shop, \
             labels: {{kubernetes.io/service-name: web}}}}\naddressType: {family}\n\
             ports: [{{name: http, port: 8080, protocol: TCP}}]\n\
             endpoints: [{{addresses: [\"{address}\"], nodeName: node1, conditions: {{ready: true}}}}]\n---\n",
            family.to_lowercase()
        )
    };
    let [v4, v6] = addresses(&listed)?;
    shop.cluster.write("slices.yaml", &(slice("IPv4", v4) + &slice("IPv6", v6)))?;
    for vip in CLUSTER_ADDRESSES {
        let to = SocketAddr::new(vip.parse()?, 80);
        let answer = || get(&shop.client.netns, to).ok();
        assert_eq!(poll(Duration::from_secs(5), "the container answers as the service", answer)?.0, "c1");
        // Also to itself.
        assert_eq!(fetch(&container, to)?.0, "c1");
    }
    Ok(())
}

#[test]
fn removed_containers_leave_neither_address_nor_interface() -> Result<()> {
    let (shop, containerd) = open(&[])?;
    let (agent, node) = (&shop.agents[0], &shop.cluster.nodes[0].netns);
    let names: Vec<String> = (0..4).map(|number| format!("c{number}")).collect();
    let mut containers: Vec<Container<'_>> = std::thread::scope(|scope| {
        let starting: Vec<_> = names.iter().map(|name| scope.spawn(|| serving(&containerd, name))).collect();
        starting
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("starting a container panicked"))?)
            .collect::<Result<_>>()
    })?;
    let mut given = BTreeSet::new();
    let mut interfaces = Vec::new();
    for name in &names {
        let listed = pod(agent, &containerd.attachment(name))?.context("the pod is not listed")?;
        given.extend(addresses(&listed)?);
        let interface = listed["hostInterface"].as_str().context("no interface")?.to_owned();
        ensure!(interface.starts_with("ptl") && Path::new(&interface).as_os_str().len() == 13, "{interface}");
        node.run(&format!("ip link show dev {interface}"))?;
        interfaces.push(interface);
    }
    assert_eq!(given.len(), 8, "no address was given twice");
    for container in &mut containers {
        container.remove()?;
    }
    for (name, interface) in names.iter().zip(&interfaces) {
        ensure!(pod(agent, &containerd.attachment(name))?.is_none(), "{name} is still listed");
        // The kernel takes an interface down behind the answer.
        let gone = || node.run(&format!("ip link show dev {interface}")).is_err().then_some(());
        poll(Duration::from_secs(3), "the interface is gone", gone)?;
    }
    let status: Value = serde_json::from_str(&agent.view("status -o json")?)?;
    assert_eq!(status["podCidrs"][0]["used"], "1", "only the client's address is in use: {status}");
    for addr in given.iter().filter(|addr| addr.is_ipv4()) {
        let ping = shop.client.netns.run(&format!("ping -c 1 -W 1 {addr}"));
        ensure!(ping.is_err(), "{addr} still answers");
    }
    Ok(())
}

/// Names of files in a directory of pins.
fn pins(agent: &Agent) -> BTreeSet<String> {
    let entries = std::fs::read_dir(agent.pins().join("links")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_container_that_ends_while_no_agent_runs_is_removed_afterwards() -> Result<()> {
    let (mut shop, containerd) = open(&[0])?;
    let before = pins(&shop.agents[0]);
    let mut container = serving(&containerd, "c1")?;
    let attachment = containerd.attachment("c1");
    let listed = pod(&shop.agents[0], &attachment)?.context("the pod is not listed")?;
    let to = SocketAddr::new(addresses(&listed)?[0], 8080);
    shop.agents[0].kill()?;
    assert_eq!(get(&shop.client.netns, to)?.0, "c1", "it is reached without an agent");
    assert_eq!(fetch(&container, CLUSTER_ADDRESSES[0])?.0, "b0", "services are reached without an agent");
    container.remove()?;
    shop.agents[0].restart()?;
    let gone = || pod(&shop.agents[0], &attachment).ok()?.is_none().then_some(());
    poll(Duration::from_secs(5), "the pod is listed no more", gone)?;
    assert_eq!(pins(&shop.agents[0]), before, "no link is left");
    Ok(())
}
