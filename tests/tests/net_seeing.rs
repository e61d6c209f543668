//! What the operator is shown agrees with what the kernel's own tools and the clients saw.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Agent, Netns, PORT, Shop, cluster_address, node_address, poll, public_address, udp_ask,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];
/// Every view of the command line.
const VIEWS: [&str; 7] = [
    "status",
    "service list",
    "service show shop/web",
    "pod list",
    "flow list",
    "drop list",
    "drop list --all",
];

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("reading {text}"))
}

fn view(agent: &Agent, line: &str) -> Result<Value> {
    json(&agent.view(&format!("{line} -o json"))?)
}

/// A list of a JSON value.
fn list<'a>(value: &'a Value, pointer: &str) -> Result<&'a Vec<Value>> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .with_context(|| format!("no list at {pointer:?} in {value}"))
}

/// Asks by curl; how often each server answered.
fn curl(netns: &Netns, to: SocketAddr, times: usize) -> Result<BTreeMap<String, u64>> {
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let said = netns.run(&format!("curl -gsS --max-time 5 http://{to}/"))?;
        *answers.entry(said.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    Ok(answers)
}

/// All samples of a scrape, by series. Every line has to be right: Prometheus' text format, version 0.0.4.
fn scrape(node: &Netns) -> Result<BTreeMap<String, f64>> {
    let text = node.run("curl -gsS -i http://127.0.0.1:10249/metrics")?;
    let (head, body) = text.split_once("\r\n\r\n").context("no header")?;
    ensure!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    let (mut samples, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    for line in body.lines() {
        if let Some(about) = line.strip_prefix("# TYPE ") {
            let (name, kind) = about.split_once(' ').context("half a TYPE")?;
            ensure!(kinds.insert(name, kind).is_none(), "{name} is described twice");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
            let name = series.split('{').next().unwrap_or_default();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            let kind = kinds.get(name).or_else(|| kinds.get(base?));
            ensure!(kind.is_some(), "{name} is not described before it is used");
            ensure!(kind != Some(&"counter") || name.ends_with("_total"), "{name} is a counter");
            ensure!(samples.insert(series.to_owned(), value.parse()?).is_none(), "{series} is there twice");
        }
    }
    Ok(samples)
}

fn sample(node: &Netns, series: &str) -> Result<f64> {
    scrape(node)?.get(series).copied().with_context(|| format!("no series {series}"))
}

/// The port of the service `shop/web` with this name and family.
fn port(agent: &Agent, name: &str, v6: bool) -> Result<Value> {
    let service = view(agent, "service show shop/web")?;
    let family = if v6 { "IPv6" } else { "IPv4" };
    let mut ports = list(&service, "/ports")?.iter();
    let port = ports.find(|port| port["name"] == name && port["family"] == family);
    port.cloned().with_context(|| format!("no {name} {family} in {service}"))
}

#[test]
fn the_status_agrees_with_the_kernel() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let (agent, node) = (&shop.agents[0], &shop.cluster.nodes[0].netns);
    let status = view(agent, "status")?;
    assert_eq!(status["node"], "node1");
    assert_eq!((&status["ready"], &status["notReady"]), (&Value::Bool(true), &Value::Array(Vec::new())));
    let shown = json(&node.run("ip -j addr show dev eth0 scope global")?)?;
    let of = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    let mut kernel: Vec<IpAddr> =
        list(&shown, "/0/addr_info")?.iter().filter_map(|it| of(&it["local"])).collect();
    let mut told: Vec<IpAddr> = list(&status, "/addresses")?.iter().filter_map(of).collect();
    kernel.sort();
    told.sort();
    assert_eq!(told, kernel);
    let links = json(&node.run("ip -j link show")?)?;
    let ours = |prefix: &str| {
        let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
        names.filter(|name| name.starts_with(prefix)).count()
    };
    assert_eq!(status["pods"], ours("ptl"), "{links}");
    assert_eq!((&status["interfaces"]["portolan0"], ours("portolan0")), (&"service".into(), 1));
    assert_eq!(status["interfaces"]["eth0"], "uplink");
    let routes = FAMILIES.map(|v6| {
        let family = if v6 { "-6" } else { "-4" };
        let text = node.run(&format!("ip {family} route show proto 112"));
        text.map(|text| text.lines().filter(|line| line.contains(" via ")).count())
    });
    let [v4, v6] = routes;
    assert_eq!(status["routes"], v4? + v6?, "routes to the other node");
    for cidr in list(&status, "/podCidrs")? {
        assert_eq!(cidr["used"], "2", "client and backend: {cidr}");
    }
    let text = agent.view("status")?;
    ensure!(text.contains("on node node1, ready, up"), "{text}");
    for word in ["192.0.2.11", "10.244.1.0/24", "tcx at eth0 (uplink)"] {
        ensure!(text.contains(word), "{word} is not in {text}");
    }
    Ok(())
}

#[test]
fn counters_of_a_service_are_the_requests_that_clients_made() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let (agent, node) = (&shop.agents[0], &shop.cluster.nodes[0].netns);
    for v6 in FAMILIES {
        // The harness has asked until the service answered.
        let before = port(agent, "http", v6)?;
        let flows = |value: &Value| value["flows"].as_u64().context("no flows");
        let answers = curl(&shop.client.netns, cluster_address(v6), 40)?;
        let after = port(agent, "http", v6)?;
        assert_eq!(flows(&after)? - flows(&before)?, 40, "{after}");
        for (number, (old, new)) in
            list(&before, "/backends")?.iter().zip(list(&after, "/backends")?).enumerate()
        {
            let address: IpAddr = new["address"].as_str().context("no address")?.parse()?;
            let backend =
                shop.backends.iter().find(|it| it.pod.address(v6) == address).context("whose is it")?;
            let more = flows(new)? - flows(old)?;
            assert_eq!(Some(&more), answers.get(&backend.pod.name), "backend {number}: {answers:?}");
            assert_eq!(new["local"], backend.node == 0);
        }
        let series = format!(
            "portolan_service_flows_total{{namespace=\"shop\",service=\"web\",port=\"http\",protocol=\"TCP\",family=\"{}\"}}",
            if v6 { "IPv6" } else { "IPv4" }
        );
        let scraped = sample(node, &series)?;
        assert_eq!(scraped as u64, flows(&after)?);
        curl(&shop.cluster.client, public_address(v6), 5)?;
        curl(&shop.cluster.client, node_address(0, v6), 5)?;
        assert_eq!(flows(&port(agent, "http", v6)?)?, flows(&after)? + 10, "from outside as well");
    }
    let text = agent.view("service show web")?;
    for word in ["10.96.0.10:80", "[fd00:10:96::10]:80", "198.51.100.10:80", "30080", "local", "remote", "█"]
    {
        ensure!(text.contains(word), "{word} is not in {text}");
    }
    for backend in &shop.backends {
        let at = format!("{}:8080", backend.pod.address(false));
        ensure!(text.contains(&at), "{at} is not in {text}");
    }
    let listed = agent.view("service list -n shop")?;
    ensure!(listed.contains("web") && agent.view("service list -n other")? != listed, "{listed}");
    Ok(())
}

#[test]
fn pods_are_listed_as_the_kernel_has_them() -> Result<()> {
    let shop = Shop::open(&[0, 0])?;
    let pods = view(&shop.agents[0], "pod list")?;
    assert_eq!(pods.as_array().map(Vec::len), Some(3));
    for pod in [&shop.client, &shop.backends[0].pod, &shop.backends[1].pod] {
        let listed = pods.as_array().into_iter().flatten().find(|it| it["name"] == *pod.name);
        let listed = listed.with_context(|| format!("no {} in {pods}", pod.name))?;
        assert_eq!((&listed["namespace"], &listed["interface"]), (&"shop".into(), &"eth0".into()));
        let addresses: Vec<IpAddr> = serde_json::from_value(listed["addresses"].clone())?;
        assert_eq!(addresses, pod.addresses);
        let own = json(&pod.netns.run("ip -j addr show dev eth0")?)?;
        assert_eq!(listed["mac"], own[0]["address"], "the MAC address in the pod");
        for address in &addresses {
            let held = list(&own, "/0/addr_info")?.iter().any(|it| it["local"] == address.to_string());
            ensure!(held, "{address} is not in {own}");
        }
        let host = listed["hostInterface"].as_str().context("no host interface")?;
        let link = json(&shop.cluster.nodes[0].netns.run(&format!("ip -j link show dev {host}"))?)?;
        assert_eq!(link[0]["ifindex"], own[0]["link_index"], "the other end of the pod's interface");
    }
    Ok(())
}

/// Local and remote ends of established connections, as `ss` says.
fn established(netns: &Netns) -> Result<Vec<(SocketAddr, SocketAddr)>> {
    let text = netns.run("ss -Htn state established")?;
    let ends = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let end = |text: &str| -> Option<SocketAddr> {
            let addr: SocketAddr = text.parse().ok()?;
            Some(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
        };
        Some((end(words.get(2)?)?, end(words.get(3)?)?))
    };
    Ok(text.lines().filter_map(ends).collect())
}

fn end(value: &Value) -> Result<SocketAddr> {
    let address = value["address"].as_str().context("no address")?.parse()?;
    Ok(SocketAddr::new(address, value["port"].as_u64().context("no port")?.try_into()?))
}

#[test]
fn flows_are_listed_as_the_sockets_at_both_ends_have_them() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    for v6 in FAMILIES {
        let to = cluster_address(v6);
        let stream = shop.client.netns.enter(move || -> Result<TcpStream> {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            ensure!(stream.read(&mut [0; 512])? > 0, "no answer");
            Ok(stream)
        })??;
        let client = established(&shop.client.netns)?;
        let (source, _) =
            *client.iter().find(|(_, remote)| *remote == to).context("ss has no such socket")?;
        let flows = view(&shop.agents[0], &format!("flow list --limit 0 --address {}", source.ip()))?;
        let request = |flow: &&Value| {
            flow["direction"] == "request" && end(&flow["original"]["source"]).ok() == Some(source)
        };
        let flow =
            list(&flows, "")?.iter().find(request).with_context(|| format!("{source} is not in {flows}"))?;
        assert_eq!(end(&flow["original"]["destination"])?, to);
        assert_eq!((&flow["protocol"], &flow["state"]), (&"TCP".into(), &"established".into()));
        assert_eq!(flow["service"], format!("shop/web:{}", "http"));
        let chosen = end(&flow["translated"]["destination"])?;
        let backend =
            shop.backends.iter().find(|it| it.pod.address(v6) == chosen.ip()).context("whose is it")?;
        let server = established(&backend.pod.netns)?;
        ensure!(
            server.contains(&(chosen, end(&flow["translated"]["source"])?)),
            "{flow} is not in {server:?}"
        );
        drop(stream);
        let over = || {
            let flows = view(&shop.agents[0], "flow list --limit 0 --service shop/web").ok()?;
            let open = list(&flows, "").ok()?.iter().find(request).map(|flow| flow["state"].clone());
            (open.is_none_or(|state| state == "closing" || state == "closed")).then_some(())
        };
        poll(Duration::from_secs(3), "the flow is seen to end", over)?;
    }
    Ok(())
}

/// Packets under a reason.
fn dropped(agent: &Agent, reason: &str) -> Result<u64> {
    let all = view(agent, "drop list --all")?;
    let entry = list(&all, "")?.iter().find(|it| it["reason"] == reason);
    entry.and_then(|it| it["packets"].as_u64()).with_context(|| format!("no reason {reason}"))
}

#[test]
fn drops_are_counted_one_by_one_under_their_reason() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let (agent, node, client) = (&shop.agents[0], &shop.cluster.nodes[0].netns, &shop.client.netns);
    for (reason, v6) in [("rejected-unknown-port", false), ("rejected-unknown-port", true)] {
        let before = dropped(agent, reason)?;
        for _ in 0..7 {
            ensure!(
                udp_ask(client, SocketAddr::new(cluster_address(v6).ip(), PORT + 1)).is_err(),
                "answered"
            );
        }
        assert_eq!(dropped(agent, reason)?, before + 7);
    }
    let before = dropped(agent, "spoofed-address")?;
    client.ip("addr add 10.244.1.200/32 dev eth0")?;
    let ping = client
        .run(&format!("ping -c 3 -i 0.05 -W 0.3 -I 10.244.1.200 {}", shop.backends[0].pod.address(false)));
    ensure!(ping.is_err(), "an answer came");
    assert_eq!(dropped(agent, "spoofed-address")?, before + 3);
    let table = agent.view("drop list")?;
    ensure!(table.contains("spoofed-address") && table.contains("A pod sent with an address"), "{table}");
    for entry in list(&view(agent, "drop list")?, "")? {
        let reason = entry["reason"].as_str().context("no reason")?;
        let series = format!("portolan_drops_total{{reason=\"{reason}\"}}");
        ensure!(sample(node, &series)? >= entry["packets"].as_f64().context("no packets")?, "{reason}");
    }
    Ok(())
}

/// Runs a view as from a terminal: `script` gives it one.
fn on_terminal(agent: &Agent, line: &str) -> Result<String> {
    let command = agent.view_command(line)?;
    let words: Vec<String> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.display()))
        .collect();
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .output()
        .context("starting script")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn colours_are_for_terminals_only_and_json_is_json() -> Result<()> {
    let shop = Shop::open(&[0])?;
    curl(&shop.client.netns, cluster_address(false), 3)?;
    ensure!(
        udp_ask(&shop.client.netns, SocketAddr::new(cluster_address(false).ip(), 99)).is_err(),
        "answered"
    );
    for line in VIEWS {
        let plain = shop.agents[0].view(line)?;
        ensure!(
            !plain.contains('\u{1b}') && plain.ends_with('\n') && plain.lines().count() > 1,
            "{line}: {plain:?}"
        );
        view(&shop.agents[0], line)?;
        let coloured = on_terminal(&shop.agents[0], line)?;
        ensure!(coloured.contains('\u{1b}'), "{line} on a terminal: {coloured:?}");
    }
    let mut without = shop.agents[0].view_command("status")?;
    let output = without.env("NO_COLOR", "1").env("CLICOLOR_FORCE", "0").output()?;
    ensure!(!output.stdout.contains(&0x1b), "NO_COLOR is heeded");
    Ok(())
}

/// Exit status and standard error.
fn failed(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_cannot_be_shown_is_said_in_words_and_in_the_exit_status() -> Result<()> {
    let mut shop = Shop::open(&[0])?;
    let (code, said) = failed(&shop.agents[0].view_command("service show nothing")?.output()?);
    ensure!(code == Some(1) && said.contains("there is no service nothing"), "{code:?} {said}");
    let (code, said) = failed(&shop.agents[0].view_command("service show")?.output()?);
    ensure!(code == Some(2) && said.contains("Usage"), "{code:?} {said}");
    curl(&shop.client.netns, cluster_address(false), 3)?;
    shop.agents[0].kill()?;
    for line in ["service list", "pod list"] {
        let (code, said) = failed(&shop.agents[0].view_command(line)?.output()?);
        ensure!(
            code == Some(1) && said.contains("the agent does not run on this node"),
            "{line}: {code:?} {said}"
        );
    }
    // What the kernel knows is shown without an agent.
    for line in ["flow list", "drop list --all"] {
        ensure!(!list(&view(&shop.agents[0], line)?, "")?.is_empty(), "{line} is empty");
    }
    Ok(())
}

#[test]
fn metrics_are_served_on_loopback_only_and_rise_with_traffic() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let node = &shop.cluster.nodes[0].netns;
    let listening = node.run("ss -Hltn sport = :10249")?;
    let places: Vec<&str> = listening.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    assert_eq!(places, ["127.0.0.1:10249"]);
    ensure!(
        shop.cluster.client.run("curl -gsS --max-time 2 http://192.0.2.11:10249/metrics").is_err(),
        "served"
    );
    let before = scrape(node)?;
    for v6 in FAMILIES {
        curl(&shop.client.netns, cluster_address(v6), 10)?;
    }
    let after = scrape(node)?;
    let rise = |series: &str| Some(after.get(series)? - before.get(series)?);
    // Each request is at least seven packets to pods of this node.
    let packets = rise("portolan_packets_total{outcome=\"to-pod\"}").context("no packets")?;
    ensure!(packets >= 140.0, "{packets} packets to pods");
    for (series, old) in &before {
        let counts = series.contains("_total") || series.contains("_bucket") || series.contains("_count");
        ensure!(!counts || after.get(series) >= Some(old), "{series} fell");
    }
    for name in ["dangling-index", "kernel-refused", "flow-table"] {
        assert_eq!(after.get(&format!("portolan_drops_total{{reason=\"{name}\"}}")), Some(&0.0), "{name}");
    }
    // Writing an object counts as a change, under kube-proxy's names too.
    let changes = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    shop.publish(|_| None)?;
    let more = || (scrape(node).ok()?.get(changes)? > after.get(changes)?).then_some(());
    poll(Duration::from_secs(3), "the change is counted", more)
}
