//! Connected sockets whose backend left: of UDP always, of TCP where connections to such backends are reset.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context, bail};
use portolan_abi::{Peer, backend_flag};
use portolan_apply::Connections;
use portolan_core::socket::{Remembered, is_v4, recall};
use portolan_core::{V4, V6};
use portolan_ipam::Meta;
use portolan_node::link::{Links, Netns};
use portolan_node::maps::NodeFamily;
use portolan_node::sockets::{HeldSockets, Sockets, Transport};
use portolan_node::{FamilyTables, LoadError, Tables};

use super::network::Network;
use super::state::Shared;

/// What does not work where the kernel refuses the list.
pub(super) fn unlisted(transport: Transport, err: LoadError) -> String {
    let (err, kind) = (anyhow::Error::from(err), name(transport));
    format!("{kind} are balanced but not ended when their backend leaves: {err:#}")
}

/// What sockets are called.
pub(super) const fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "connected UDP sockets",
        Transport::Tcp => "connected TCP sockets",
    }
}

/// Ends them in the node's network namespace and in every pod's. A pod that is going is left out.
pub(super) async fn end_lost(
    held: &HeldSockets,
    links: &Links,
    network: &Network,
    shared: &Shared,
) -> anyhow::Result<()> {
    let (transport, pods) = (held.transport(), network.pods());
    let opened: Vec<Netns> = pods.iter().filter_map(|pod| Netns::open(&pod.netns).ok()).collect();
    let mut failed = if opened.is_empty() { closed(links, &pods).await.err() } else { None };
    for netns in std::iter::once(links.netns().clone()).chain(opened) {
        let held = held.clone();
        let listed = netns.run(move || Ok((held.read()?, Sockets::open()?))).await;
        let ended = match listed {
            Ok(Ok((held, sockets))) => {
                let held = held.into_iter().map(|held| (held.cookie, held.peer)).collect();
                tokio::task::block_in_place(|| {
                    let lost = lost(transport, held, shared);
                    end_in(transport, sockets, lost)
                })
            }
            Ok(Err(err)) => {
                Err::<_, std::io::Error>(err).context("listing sockets that were given a backend")
            }
            Err(err) => Err(err.into()),
        };
        failed = failed.or(ended.err());
    }
    failed.map_or(Ok(()), Err)
}

/// Says why no pod's network namespace opens, though one of the pods is there.
async fn closed(links: &Links, pods: &[Meta]) -> anyhow::Result<()> {
    if pods.is_empty() {
        return Ok(());
    }
    let interfaces = links.interfaces().await?;
    let is_there = |pod: &&Meta| interfaces.iter().any(|interface| interface.name == pod.host_ifname);
    // One that went, or came back, meanwhile is no reason to worry.
    let still =
        pods.iter().filter(is_there).find_map(|pod| Netns::open(&pod.netns).err().map(|err| (pod, err)));
    match still {
        Some((pod, err)) => bail!("{}", unopened(&pod.netns, &err.into())),
        None => Ok(()),
    }
}

fn unopened(path: &str, err: &anyhow::Error) -> String {
    let directory = path.rsplit_once('/').map_or(path, |(directory, _)| directory);
    format!(
        "no pod's network namespace can be opened, so that pods' sockets are not ended when their backend leaves: \
         {err:#}: an agent in a container needs the node's {directory} mounted, with mountPropagation HostToContainer"
    )
}

/// Those whose backend is not their service's any more, with what they remember.
fn lost(transport: Transport, mut held: HashMap<u64, Peer>, shared: &Shared) -> HashMap<u64, Peer> {
    if held.is_empty() {
        return held;
    }
    let core = shared.core();
    match transport {
        Transport::Udp => held.retain(|_, peer| !is_served(peer, core.applier.tables())),
        Transport::Tcp => {
            let connections = core.applier.connections();
            held.retain(|_, peer| !is_kept(peer, &connections));
        }
    }
    held
}

/// Whether the backend of a connection is still its service's, be it that it gets no new ones.
fn is_kept(peer: &Peer, connections: &Connections) -> bool {
    fn of<F: NodeFamily + Remembered>(peer: &Peer) -> IpAddr {
        F::ip(recall::<F>(peer).addr)
    }
    let addr = if is_v4(&peer.chosen) { of::<V4>(peer) } else { of::<V6>(peer) };
    connections.keep(peer.service, addr, u16::from_be(peer.chosen_port))
}

/// A socket that was connected again meanwhile is another one's.
fn end_in(transport: Transport, mut sockets: Sockets, lost: HashMap<u64, Peer>) -> anyhow::Result<()> {
    if lost.is_empty() {
        return Ok(());
    }
    let connected = sockets.connected(transport).with_context(|| format!("listing {}", name(transport)))?;
    for socket in connected {
        let Some(peer) = lost.get(&socket.cookie()) else { continue };
        if socket.destination() != (peer.chosen, peer.chosen_port) {
            continue;
        }
        let ended = sockets
            .end(&socket)
            .context("ending a socket whose backend left: the kernel needs CONFIG_INET_DIAG_DESTROY")?;
        tracing::debug!(ended, ?transport, "a connected socket lost its backend");
    }
    Ok(())
}

/// Whether the service that a socket asked for still has the backend that it got.
fn is_served(peer: &Peer, tables: &Tables) -> bool {
    fn is_live<F: NodeFamily + Remembered>(peer: &Peer, tables: &FamilyTables<F>) -> bool {
        let chosen = recall::<F>(peer);
        if chosen.choice.backend >= tables.backends.len() {
            return false;
        }
        let record = tables.backends.read(chosen.choice.backend);
        record.flags & backend_flag::LIVE != 0 && record.addr == chosen.addr && record.port == chosen.port
    }
    let is_live = if is_v4(&peer.chosen) { is_live(peer, &tables.v4) } else { is_live(peer, &tables.v6) };
    is_live && tables.draws(peer.service, peer.backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_say_what_does_not_work_and_what_to_do() {
        let refused = unlisted(Transport::Udp, LoadError::NoProgram { program: "held_sockets" });
        assert!(refused.contains("not ended") && refused.contains("held_sockets"), "{refused}");
        let closed = unopened("/var/run/netns/cni-1", &anyhow::anyhow!("no such file"));
        assert!(closed.contains("/var/run/netns mounted") && closed.contains("no such file"), "{closed}");
    }
}
