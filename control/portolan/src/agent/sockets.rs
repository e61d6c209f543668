//! Connected UDP sockets whose backend left.

use std::collections::HashSet;

use anyhow::Context;
use portolan_abi::Peer;
use portolan_core::socket::{Chosen, Remembered, is_v4, recall};
use portolan_core::{V4, V6};
use portolan_node::link::{Links, Netns};
use portolan_node::maps::NodeFamily;
use portolan_node::sockets::Sockets;
use portolan_node::{FamilyTables, Tables};

use super::network::Network;
use super::programs::Programs;
use super::state::Shared;

/// Ends them in the node's network namespace and in every pod's. A pod that is going is left out.
pub(super) async fn end_lost(
    programs: &Programs,
    links: &Links,
    network: &Network,
    shared: &Shared,
) -> anyhow::Result<()> {
    let lost = tokio::task::block_in_place(|| lost(programs, shared))?;
    if lost.is_empty() {
        return Ok(());
    }
    let pods = network.namespaces().into_iter().filter_map(|path| Netns::open(path).ok());
    let mut failed = None;
    for netns in std::iter::once(links.netns().clone()).chain(pods) {
        let ended = match netns.run(Sockets::open).await {
            Ok(Ok(sockets)) => tokio::task::block_in_place(|| end_in(sockets, &lost)),
            Ok(Err(err)) => Err(err).context("opening sock_diag"),
            Err(err) => Err(err.into()),
        };
        failed = failed.or(ended.err());
    }
    failed.map_or(Ok(()), Err)
}

/// Cookies of sockets with a backend that is not served any more; TCP's are among them.
fn lost(programs: &Programs, shared: &Shared) -> anyhow::Result<HashSet<u64>> {
    let held = programs.object().held_sockets().context("listing sockets that were given a backend")?;
    let core = shared.core();
    let lost = held.iter().filter(|held| !is_served(&held.peer, core.applier.tables()));
    Ok(lost.map(|held| held.cookie).collect())
}

fn end_in(mut sockets: Sockets, lost: &HashSet<u64>) -> anyhow::Result<()> {
    let connected = sockets.connected().context("listing connected UDP sockets")?;
    for socket in connected.iter().filter(|socket| lost.contains(&socket.cookie())) {
        let ended = sockets
            .end(socket)
            .context("ending a socket whose backend left: the kernel needs CONFIG_INET_DIAG_DESTROY")?;
        tracing::debug!(ended, "a connected UDP socket lost its backend");
    }
    Ok(())
}

fn is_served(peer: &Peer, tables: &Tables) -> bool {
    fn has<F: NodeFamily + Remembered>(peer: &Peer, tables: &FamilyTables<F>) -> bool {
        let Chosen { addr, port, choice } = recall::<F>(peer);
        if choice.backend >= tables.backends.len() {
            return false;
        }
        let record = tables.backends.read(choice.backend);
        record.flags & portolan_abi::backend_flag::LIVE != 0 && record.addr == addr && record.port == port
    }
    if is_v4(&peer.chosen) { has::<V4>(peer, &tables.v4) } else { has::<V6>(peer, &tables.v6) }
}
