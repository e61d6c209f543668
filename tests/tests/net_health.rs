//! What load balancers and probes are told about nodes and services, by real clients in both families.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Agent, Condition, Endpoint, Load, NODE_ADDRESSES, Netns, Shop, get, poll, public_address, run, service,
    slice,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];
/// Within the range of NodePorts, as the API server chooses it.
const HEALTH_PORT: u16 = 32_100;
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer of a health port.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn weight(&self) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix("X-Load-Balancing-Endpoint-Weight: "))
    }
}

fn ask(netns: &Netns, at: SocketAddr, path: &str) -> Result<Answer> {
    let said = netns.run(&format!("curl -gsS -i --max-time 5 http://{at}{path}"))?;
    let (head, body) = said.split_once("\r\n\r\n").context("no head")?;
    let code = head.split(' ').nth(1).context("no status")?.parse()?;
    let body = serde_json::from_str(body).with_context(|| format!("no JSON: {said}"))?;
    Ok(Answer { code, head: head.replace("\r\n", "\n"), body })
}

fn at(node: usize, v6: bool, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(NODE_ADDRESSES[node][usize::from(v6)].parse()?, port))
}

/// The answer that an outside client gets of a node, once it has this status.
fn until(shop: &Shop, to: SocketAddr, path: &str, code: u16) -> Result<Answer> {
    poll(PATIENCE, &format!("{to}{path} answers {code}"), || {
        ask(&shop.cluster.client, to, path).ok().filter(|answer| answer.code == code)
    })
}

/// Outside clients stay on their node, and load balancers ask this port.
fn checked(port: u16) -> String {
    service(&format!("  externalTrafficPolicy: Local\n  healthCheckNodePort: {port}\n"))
}

fn view(agent: &Agent, line: &str) -> Result<Value> {
    Ok(serde_json::from_str(&agent.view(&format!("{line} -o json"))?)?)
}

fn conditions(agent: &Agent, line: &str) -> Result<String> {
    Ok(view(agent, line)?["conditions"].to_string())
}

#[test]
fn health_checks_are_answered_by_what_a_node_has_and_wherever_it_is_asked() -> Result<()> {
    let shop = Shop::open(&[0, 0])?;
    shop.cluster.write("service.yaml", &checked(HEALTH_PORT))?;
    let [one, two] = &shop.cluster.nodes;
    for v6 in FAMILIES {
        let answer = until(&shop, at(0, v6, HEALTH_PORT)?, "/", 200)?;
        assert_eq!(answer.weight(), Some("4"), "two pods with an address of each family: {answer:?}");
        for line in ["Content-Type: application/json", "X-Content-Type-Options: nosniff"] {
            ensure!(answer.head.lines().any(|it| it == line), "{line} is not in {}", answer.head);
        }
        let expected = serde_json::json!({
            "service": {"namespace": "shop", "name": "web"}, "localEndpoints": 4, "serviceProxyHealthy": true,
        });
        assert_eq!(answer.body, expected);

        let none = until(&shop, at(1, v6, HEALTH_PORT)?, "/", 503)?;
        assert_eq!((none.weight(), &none.body["localEndpoints"]), (Some("0"), &0.into()));
        assert_eq!(none.body["serviceProxyHealthy"], true);

        for netns in [&one.netns, &two.netns, &shop.client.netns] {
            for (node, code) in [(0, 200), (1, 503)] {
                let answer = ask(netns, at(node, v6, HEALTH_PORT)?, "/any/path?at=all")?;
                assert_eq!(answer.code, code, "{} at node{}", netns.name(), node + 1);
            }
        }
    }
    Ok(())
}

#[test]
fn health_check_ports_follow_their_service() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let is_closed = |port| -> Result<()> {
        for v6 in FAMILIES {
            let to = at(0, v6, port)?;
            let closed = || ask(&shop.cluster.client, to, "/").is_err().then_some(());
            poll(PATIENCE, &format!("{to} is closed"), closed)?;
        }
        Ok(())
    };
    let other = HEALTH_PORT + 1;
    for port in [HEALTH_PORT, other] {
        shop.cluster.write("service.yaml", &checked(port))?;
        for v6 in FAMILIES {
            until(&shop, at(0, v6, port)?, "/", 200)?;
        }
    }
    is_closed(HEALTH_PORT)?;
    // The policy changes, the type does, the service goes.
    shop.cluster.write("service.yaml", &checked(other).replace("Policy: Local", "Policy: Cluster"))?;
    is_closed(other)?;
    shop.cluster.write("service.yaml", &checked(other))?;
    until(&shop, at(0, false, other)?, "/", 200)?;
    shop.cluster.write("service.yaml", &checked(other).replace("type: LoadBalancer", "type: NodePort"))?;
    is_closed(other)?;
    shop.cluster.write("service.yaml", &checked(other))?;
    until(&shop, at(0, false, other)?, "/", 200)?;
    std::fs::remove_file(shop.cluster.objects().join("service.yaml"))?;
    is_closed(other)
}

#[test]
fn health_check_fails_with_only_terminating_endpoints_while_traffic_flows() -> Result<()> {
    let shop = Shop::open(&[0])?;
    shop.cluster.write("service.yaml", &checked(HEALTH_PORT))?;
    for v6 in FAMILIES {
        until(&shop, at(0, v6, HEALTH_PORT)?, "/", 200)?;
    }
    let loads = FAMILIES
        .map(|v6| Load::start(&shop.cluster.client, public_address(v6), Duration::from_millis(20)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    shop.publish(|_| Some(Condition::Terminating))?;
    for v6 in FAMILIES {
        let answer = until(&shop, at(0, v6, HEALTH_PORT)?, "/", 503)?;
        assert_eq!(answer.body["localEndpoints"], 0);
        for _ in 0..5 {
            assert_eq!(get(&shop.cluster.client, public_address(v6))?.0, "b0", "it still serves");
        }
        assert_eq!(ask(&shop.cluster.client, at(0, v6, HEALTH_PORT)?, "/")?.code, 503);
    }
    shop.publish(|_| Some(Condition::Ready))?;
    for v6 in FAMILIES {
        until(&shop, at(0, v6, HEALTH_PORT)?, "/", 200)?;
    }
    for tally in loads.into_iter().map(Load::finish) {
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
        ensure!(tally.answers() > 5, "the client did next to nothing: {tally:?}");
    }
    Ok(())
}

#[test]
fn a_health_check_port_that_somebody_has_is_told_of_and_taken_when_it_is_free() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let (agent, node) = (&shop.agents[0], &shop.cluster.nodes[0].netns);
    let somebody = node.enter(|| TcpListener::bind(("0.0.0.0", HEALTH_PORT)))??;
    shop.cluster.write("service.yaml", &checked(HEALTH_PORT))?;
    let told = || conditions(agent, "status").ok().filter(|it| it.contains("HealthCheckPort"));
    let told = poll(PATIENCE, "the status says so", told)?;
    for word in ["shop/web", &HEALTH_PORT.to_string(), "in use", "spec.healthCheckNodePort"] {
        ensure!(told.contains(word), "{word} is not in {told}");
    }
    let shown = agent.view("service show shop/web")?;
    ensure!(shown.contains("HealthCheckPort: "), "{shown}");
    ensure!(
        !conditions(&shop.agents[1], "status")?.contains("HealthCheckPort"),
        "the other node has its port"
    );
    assert_eq!(get(&shop.cluster.client, public_address(false))?.0, "b0", "all else is served");
    drop(somebody);
    for v6 in FAMILIES {
        until(&shop, at(0, v6, HEALTH_PORT)?, "/", 200)?;
    }
    for line in ["status", "service show shop/web"] {
        let gone = || (!conditions(agent, line).ok()?.contains("HealthCheckPort")).then_some(());
        poll(PATIENCE, "nothing is left of it", gone)?;
    }
    Ok(())
}

#[test]
fn a_node_that_is_about_to_go_fails_healthz_and_stays_live() -> Result<()> {
    const PROBES: u16 = 10_256;
    let shop = Shop::open(&[0])?;
    shop.cluster.write("service.yaml", &checked(HEALTH_PORT))?;
    let path = shop.cluster.objects().join("nodes.yaml");
    let nodes = std::fs::read_to_string(path)?;
    let tainted = nodes.replacen(
        "spec:\n",
        "spec:\n  taints: [{key: ToBeDeletedByClusterAutoscaler, value: \"1\", effect: NoSchedule}]\n",
        1,
    );
    let deleted =
        nodes.replacen("{name: node1, ", "{name: node1, deletionTimestamp: \"2025-01-31T12:00:00Z\", ", 1);
    for leaving in [tainted, deleted] {
        ensure!(leaving != nodes, "nothing was put in");
        for (text, code) in [(&nodes, 200), (&leaving, 503), (&nodes, 200)] {
            shop.cluster.write("nodes.yaml", text)?;
            for v6 in FAMILIES {
                // A change may be under way for a moment.
                let answer = poll(PATIENCE, "nothing waits to be written", || {
                    let answer = until(&shop, at(0, v6, PROBES).ok()?, "/healthz", code).ok()?;
                    (answer.body["lastUpdated"] == answer.body["currentTime"]).then_some(answer)
                })?;
                assert_eq!(answer.body["nodeEligible"], code == 200);
                for (node, path) in [(0, "/livez"), (1, "/livez"), (1, "/healthz")] {
                    let answer = ask(&shop.cluster.client, at(node, v6, PROBES)?, path)?;
                    assert_eq!(answer.code, 200, "{path} of node{}", node + 1);
                }
                until(&shop, at(0, v6, HEALTH_PORT)?, "/", 200)?;
            }
            let on_node = ask(&shop.cluster.nodes[0].netns, "127.0.0.1:10249".parse()?, "/healthz")?;
            assert_eq!(on_node.code, code, "beside the metrics it is the same");
        }
    }
    let metrics = shop.cluster.nodes[0].netns.run("curl -gsS http://127.0.0.1:10249/metrics")?;
    for series in [
        "proxy_healthz_total{code=\"200\"}",
        "proxy_healthz_total{code=\"503\"}",
        "proxy_livez_total{code=\"200\"}",
    ] {
        ensure!(metrics.contains(&format!("\nkubeproxy_{series} ")), "{series} is not in {metrics}");
    }
    Ok(())
}

#[test]
fn the_time_from_a_pods_change_to_the_tables_is_measured() -> Result<()> {
    const LATENCY: &str = "kubeproxy_network_programming_duration_seconds";
    let shop = Shop::open(&[0, 1])?;
    shop.cluster.write(
        "service.yaml",
        &service("  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n"),
    )?;
    let sample = |series: &str| -> Result<f64> {
        let metrics = shop.cluster.nodes[0].netns.run("curl -gsS http://127.0.0.1:10249/metrics")?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {series}"))?.parse()?)
    };
    // The second node's endpoint alone, so that this one has none.
    let publish = |time: &str| -> Result<()> {
        let backend = &shop.backends[1];
        let endpoints = [Endpoint::new(backend.pod.address(false), 1, "conditions: {ready: true}")];
        let ports = "{name: http, port: 8080}, {name: echo, port: 9000, protocol: UDP}";
        let annotation = format!(
            "  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{time}\"}}\n  labels:"
        );
        let text = slice("web-ipv4", "web", ports, &endpoints).replace("  labels:", &annotation);
        shop.cluster.write("slices.yaml", &text)?;
        shop.settle()
    };
    // Older than the agent, no time at all, and one that counts.
    publish("2025-01-31T12:00:00Z")?;
    publish("yesterday")?;
    assert_eq!(sample(&format!("{LATENCY}_count"))?, 0.0);
    let now = run(std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]))?;
    publish(now.trim())?;
    publish(now.trim())?;
    assert_eq!(sample(&format!("{LATENCY}_count"))?, 1.0, "each change once");
    ensure!((0.0..20.0).contains(&sample(&format!("{LATENCY}_sum"))?));
    ensure!(sample("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds")? > 1e9);
    for policy in ["internal", "external"] {
        let series =
            format!("kubeproxy_sync_proxy_rules_no_local_endpoints_total{{traffic_policy=\"{policy}\"}}");
        assert_eq!(sample(&series)?, 2.0, "ports http and echo of IPv4 have an endpoint elsewhere");
    }
    Ok(())
}
