//! Whoever changes a table behind the agent's back is found out, and the agent mends it.

use anyhow::{Result, ensure};
use portolan_core::V4;
use portolan_node::Tables;
use portolan_node::maps::NodeFamily;
use portolan_tests::lab::{Shop, cluster_address, get};
use serde_json::Value;

#[test]
fn a_frontend_that_was_removed_by_hand_is_named_and_comes_back() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let said = shop.agents[0].view("audit")?;
    ensure!(said == "the kernel's tables are what the objects want\n", "{said}");

    let tables = Tables::open(shop.agents[0].pins())?;
    let addr = V4::of(cluster_address(false).ip());
    let (key, _) = tables
        .v4
        .frontends
        .dump()?
        .into_iter()
        .find(|(key, _)| Some(key.addr) == addr && key.proto == 6)
        .ok_or_else(|| anyhow::anyhow!("the service has no frontend"))?;
    tables.v4.frontends.remove(&key)?;
    get(&shop.client.netns, cluster_address(false)).expect_err("its frontend is gone");

    let output = shop.agents[0].view_command("audit -o json")?.output()?;
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    let differences: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        differences[0]["place"] == "10.96.0.10:80 TCP" && differences[0]["kernel"].is_null(),
        "{differences:#}"
    );

    shop.agents[0].restart()?;
    get(&shop.client.netns, cluster_address(false))?;
    shop.agents[0].view("audit").map(drop)
}
