//! Agents that take their objects from an API server.

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_tests::lab::{
    AgentOptions, ApiServer, Backend, Cluster, Condition, Load, Shop, cluster_address, get, poll,
    write_kubeconfig,
};

/// Port of the stand-in on each node's own loopback address: the service network is what is to be made to work.
const API_PORT: u16 = 6443;

/// A cluster whose agents ask an API server.
fn open(nodes: &[usize]) -> Result<(ApiServer, Shop)> {
    let cluster = Cluster::new()?;
    let server = ApiServer::start(&cluster.objects())?;
    for node in &cluster.nodes {
        server.listen_in(&node.netns, API_PORT)?;
    }
    let kubeconfig = cluster.directory().join("kubeconfig");
    let kubeconfig = write_kubeconfig(&kubeconfig, ([127, 0, 0, 1], API_PORT).into())?;
    let arguments = vec!["--source".to_owned(), format!("kubernetes:{}", kubeconfig.display())];
    let shop = Shop::open_in(cluster, nodes, &AgentOptions { arguments, ..AgentOptions::default() })?;
    Ok((server, shop))
}

fn answering(shop: &Shop) -> Option<String> {
    get(&shop.client.netns, cluster_address(false)).ok().map(|(name, _)| name)
}

#[test]
fn services_follow_the_api_server_and_stay_while_it_is_away() -> Result<()> {
    let (server, mut shop) = open(&[0])?;
    shop.backends.push(Backend::add(&shop.agents, 1, "b1")?);
    shop.publish(|index| (index == 1).then_some(Condition::Ready))?;
    poll(Duration::from_secs(5), "the other backend answers", || (answering(&shop)? == "b1").then_some(()))?;

    // Away: everything stays, also over a restart of the agent; pods come and go.
    server.set_away(true);
    let load = Load::start(&shop.client.netns, cluster_address(true), Duration::from_millis(10))?;
    shop.agents[0].kill()?;
    shop.publish(|index| (index == 0).then_some(Condition::Ready))?;
    ensure!(answering(&shop).as_deref() == Some("b1"), "what was served before is served");
    server.set_away(false);
    shop.agents[0].restart()?;
    poll(Duration::from_secs(5), "what changed meanwhile is seen", || {
        (answering(&shop)? == "b0").then_some(())
    })?;
    let tally = load.finish();
    ensure!(tally.failures.is_empty() && tally.answers() > 10, "{tally:?}");
    Ok(())
}
