//! The agent's socket: CNI requests and the command line's questions.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use portolan_cni::server::{Server, receive};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::Options;
use super::announce;
use super::audit;
use super::network::Network;
use super::state::Shared;
use super::views;
use crate::api::{Query, Reply, Request};

/// Time for a request to arrive and for its answer to leave. No client can hold a connection for longer.
const DEADLINE: Duration = Duration::from_secs(10);

/// The listening socket, not served yet.
pub(super) struct Bound(std::os::unix::net::UnixListener);

/// Binds the socket, readable and writable for root only. A socket file that nobody answers on is replaced.
pub(super) fn bind(path: &Path) -> anyhow::Result<Bound> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("another agent answers on {}: stop it first, or choose another --socket", path.display());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)
        .with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(Bound(listener))
}

/// Does what was asked for while no agent ran, then answers requests.
pub(super) async fn serve(
    bound: Bound,
    network: Arc<Network>,
    shared: Arc<Shared>,
    options: &Options,
) -> anyhow::Result<JoinHandle<()>> {
    let listener = UnixListener::from_std(bound.0)?;
    let server = Server::new(Arc::clone(&network));
    let replayed = server
        .replay(&options.directories.state_dir)
        .await
        .context("replaying requests queued while no agent ran")?;
    if replayed > 0 {
        tracing::info!(replayed, "queued requests done");
    }
    Ok(tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (server, network, shared) =
                        (server.clone(), Arc::clone(&network), Arc::clone(&shared));
                    tokio::spawn(async move {
                        if let Err(err) = answer(stream, &server, &network, &shared).await {
                            tracing::warn!(%err, "request on the agent's socket");
                        }
                    });
                }
                Err(err) => {
                    // Out of descriptors, as a rule: others must end before one more can be taken.
                    tracing::error!(%err, "accepting on the agent's socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }))
}

async fn answer(
    mut stream: UnixStream,
    server: &Server<Network>,
    network: &Network,
    shared: &Shared,
) -> anyhow::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 {
        bail!("user {uid} is not root: refused");
    }
    let received = receive(&stream, DEADLINE).await?;
    let line = match server.answer(&received.line, received.fds).await {
        Some(line) => line,
        None => {
            let mut line = serde_json::to_string(&reply(&received.line, network, shared).await)?;
            line.push('\n');
            line
        }
    };
    tokio::time::timeout(DEADLINE, stream.write_all(line.as_bytes())).await??;
    Ok(())
}

async fn reply(line: &str, network: &Network, shared: &Shared) -> Reply {
    let request: Request = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(err) => return Reply::Error(format!("the request was not understood: {err}")),
    };
    match request.query {
        Query::Status => Reply::Status(Box::new(views::status(shared, network))),
        Query::Services => Reply::Services(views::services(shared)),
        Query::Pods => Reply::Pods(views::pods(network)),
        Query::LoadBalancers => Reply::LoadBalancers(views::load_balancers(shared)),
        Query::BgpPeers => Reply::BgpPeers(announce::peers(&shared.announce)),
        Query::BgpRoutes => Reply::BgpRoutes(announce::routes(&shared.announce)),
        Query::Audit => match audit::inspect(shared, network).await {
            Ok(findings) => Reply::Audit(views::audit(&findings)),
            Err(err) => Reply::Error(format!("reading the tables and programs: {err:#}")),
        },
    }
}
