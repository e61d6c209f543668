//! Whoever changes a table, a program or a pin behind the agent's back is found out, and the agent mends it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_abi::Config;
use portolan_core::V4;
use portolan_node::Tables;
use portolan_node::maps::NodeFamily;
use portolan_tests::lab::{Agent, AgentOptions, Shop, cluster_address, get, poll};
use serde_json::Value;

const FINE: &str = "the kernel's tables are what the objects want\n";

#[test]
fn a_frontend_that_was_removed_by_hand_is_named_and_comes_back() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let said = shop.agents[0].view("audit")?;
    ensure!(said == FINE, "{said}");
    remove_frontend(&shop.agents[0])?;
    get(&shop.client.netns, cluster_address(false)).expect_err("its frontend is gone");

    assert_eq!(places(&shop.agents[0])?, ["10.96.0.10:80 TCP"]);

    shop.agents[0].restart()?;
    get(&shop.client.netns, cluster_address(false))?;
    shop.agents[0].view("audit").map(drop)
}

/// Does something to a node that its agent would not.
type Spoil = fn(&Shop) -> Result<()>;

/// What is spoiled, and where it is seen; `{pod}`, `{client}` and `{uplink}` stand for the client pod's address and
/// interface, and the uplink.
const SPOILED: [(&str, Spoil); 6] = [
    ("10.96.0.10:80 TCP", |shop| remove_frontend(&shop.agents[0])),
    ("node: masquerade ports", |shop| {
        let mut tables = Tables::open(shop.agents[0].pins())?;
        let config = tables.config.read(0);
        tables.config.write(0, Config { masquerade_count: 0, ..config });
        Ok(())
    }),
    ("pod {pod}", |shop| {
        let addr = V4::of(shop.client.address(false)).context("the pod has no IPv4 address")?;
        ensure!(Tables::open(shop.agents[0].pins())?.v4.endpoints.remove(&addr)?, "no such pod");
        Ok(())
    }),
    ("program from_pod at {client} ingress", |shop| {
        let line = format!("tc filter del dev {} ingress", client_interface(shop)?);
        shop.cluster.nodes[0].netns.run(&line).map(drop)
    }),
    ("program to_uplink at {uplink} egress", |shop| {
        let (node, uplink) = (&shop.cluster.nodes[0].netns, uplink(shop)?);
        let pin = shop.agents[0].pins().join("links").join(format!("{}-egress", uplink.replace('.', ":")));
        if pin.exists() {
            return Ok(std::fs::remove_file(pin)?);
        }
        node.run(&format!("tc filter del dev {uplink} egress")).map(drop)
    }),
    ("pin of table SLAB", |shop| Ok(std::fs::remove_file(shop.agents[0].pins().join("SLAB"))?)),
];

#[test]
fn what_was_spoiled_under_a_running_agent_is_named_by_the_audit() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let mut expected = Vec::new();
    for (place, spoil) in SPOILED {
        spoil(&shop)?;
        expected.push(filled(place, &shop)?);
        let mut found = places(&shop.agents[0])?;
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }
    Ok(())
}

#[test]
fn a_running_agent_mends_what_was_spoiled_and_tells_it() -> Result<()> {
    let options = AgentOptions {
        arguments: ["--audit-interval", "1"].map(str::to_owned).to_vec(),
        ..AgentOptions::default()
    };
    let shop = Shop::open_with(&[0], &options)?;
    let agent = &shop.agents[0];
    ensure!(!agent.log().contains(TOLD), "before anybody did anything:\n{}", agent.log());
    let process = agent.process();
    for (number, (place, spoil)) in SPOILED.into_iter().enumerate() {
        spoil(&shop)?;
        let place = filled(place, &shop)?;
        let told = || {
            let log = agent.log();
            log.lines().any(|line| line.contains(TOLD) && line.contains(&place)).then_some(())
        };
        poll(Duration::from_secs(20), &format!("{place} is told"), told)?;
        let mended = || agent.view("audit").is_ok_and(|said| said == FINE).then_some(());
        poll(Duration::from_secs(20), &format!("{place} is mended"), mended)?;
        get(&shop.client.netns, cluster_address(false)).with_context(|| format!("after {place}"))?;
        let counted = || (differences(&shop).ok()? > number as u64).then_some(());
        poll(Duration::from_secs(5), &format!("{place} is counted"), counted)?;
    }
    assert_eq!(agent.process(), process, "it is the same agent");
    ensure!(agent.ask(r#"{"query":"status"}"#)?.contains(r#""warnings":[]"#), "everything was mended");
    Ok(())
}

/// How the agent's log tells of a difference.
const TOLD: &str = "not as the objects want it";

/// Takes the TCP frontend of the service's cluster address out.
fn remove_frontend(agent: &Agent) -> Result<()> {
    let tables = Tables::open(agent.pins())?;
    let addr = V4::of(cluster_address(false).ip());
    let (key, _) = tables
        .v4
        .frontends
        .dump()?
        .into_iter()
        .find(|(key, _)| Some(key.addr) == addr && key.proto == 6)
        .context("the service has no frontend")?;
    tables.v4.frontends.remove(&key).map(drop).map_err(Into::into)
}

/// Places of the differences that `portolan audit` lists, which must not be none.
fn places(agent: &Agent) -> Result<Vec<String>> {
    let output = agent.view_command("audit -o json")?.output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let differences: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    Ok(differences.iter().filter_map(|it| Some(it["place"].as_str()?.to_owned())).collect())
}

fn filled(place: &str, shop: &Shop) -> Result<String> {
    let pod = shop.client.address(false).to_string();
    let place = place.replace("{pod}", &pod).replace("{client}", &client_interface(shop)?);
    Ok(place.replace("{uplink}", &uplink(shop)?))
}

/// Name of the host's side of the client pod's interface.
fn client_interface(shop: &Shop) -> Result<String> {
    let pods: Vec<Value> = serde_json::from_str(&shop.agents[0].view("pod list -o json")?)?;
    let pod = pods.iter().find(|pod| pod["name"] == "client").context("no client pod")?;
    Ok(pod["hostInterface"].as_str().context("it has no interface")?.to_owned())
}

fn uplink(shop: &Shop) -> Result<String> {
    let status: Value = serde_json::from_str(&shop.agents[0].view("status -o json")?)?;
    let interfaces = status["interfaces"].as_object().context("no interfaces")?;
    let uplink = interfaces.iter().find(|(_, role)| *role == "uplink").context("no uplink")?;
    Ok(uplink.0.clone())
}

/// What the agent's metrics count.
fn differences(shop: &Shop) -> Result<u64> {
    let text = shop.cluster.nodes[0].netns.run("curl -gsS http://127.0.0.1:10249/metrics")?;
    let value = text.lines().find_map(|line| line.strip_prefix("portolan_audit_differences_total "));
    Ok(value.context("not in the metrics")?.trim().parse()?)
}
