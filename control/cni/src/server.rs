//! The agent's side: requests in, a pod network behind a trait, answers out.
//!
//! The agent owns the listener (0600, peer checked) and serves other requests on it, too. For each connection it calls [`receive`], then
//! [`Server::answer`], and writes the line that comes back.

mod receive;
mod turns;

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use portolan_ipam::AttachmentId;
use serde_json::Value;
use tracing::Instrument;

pub use receive::{Received, receive};
use turns::Turns;

use crate::netns::Netns;
use crate::pending;
use crate::proto::{Call, Reply, Request, decode};
use crate::spec::{Attached, CniError, Code, NetworkConfig, PodRef, RuntimeConfig, Success};

/// What makes, removes and inspects pods' interfaces.
///
/// Calls for one attachment never overlap, calls for different ones do; while `gc` runs nothing else does but `status`. Every call runs to its
/// end, also when the runtime has gone away.
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the pod. After an error nothing of it is left.
    fn add(&self, request: PodRequest) -> impl Future<Output = Result<Attached, CniError>> + Send;
    /// Disconnects the pod. Nothing to disconnect is success.
    fn del(&self, request: DelRequest) -> impl Future<Output = Result<(), CniError>> + Send;
    /// Tells what of the pod's connection is in the kernel. The comparison with `prevResult` is not its business.
    fn check(&self, request: PodRequest) -> impl Future<Output = Result<Attached, CniError>> + Send;
    /// Disconnects every attachment of `network` that is not in `valid`, goes on after errors, and reports all of them.
    fn gc(
        &self,
        network: String,
        valid: HashSet<AttachmentId>,
    ) -> impl Future<Output = Result<(), CniError>> + Send;
    /// Tells whether an ADD would work: code 50 or 51 if not.
    fn status(&self) -> impl Future<Output = Result<(), CniError>> + Send;
}

/// ADD or CHECK of one attachment.
#[derive(Debug)]
pub struct PodRequest {
    /// The attachment.
    pub attachment: AttachmentId,
    /// The pod's namespace: use this descriptor, not its path.
    pub netns: Netns,
    /// The pod.
    pub pod: PodRef,
    /// The CNI network's name.
    pub network: String,
    /// hostPorts, bandwidth and what else the runtime wants.
    pub runtime: RuntimeConfig,
}

/// DEL of one attachment.
#[derive(Debug)]
pub struct DelRequest {
    /// The attachment.
    pub attachment: AttachmentId,
    /// The pod's namespace, if there still is one.
    pub netns: Option<Netns>,
    /// The pod.
    pub pod: PodRef,
    /// The CNI network's name.
    pub network: String,
}

/// Answers requests by a pod network. Cloning is cheap; clones share their order of calls.
#[derive(Debug)]
pub struct Server<N> {
    inner: Arc<Inner<N>>,
}

impl<N> Clone for Server<N> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<N: PodNetwork> Server<N> {
    /// A server in front of `network`.
    pub fn new(network: Arc<N>) -> Self {
        Self { inner: Arc::new(Inner { network, turns: Turns::default() }) }
    }

    /// The line (with its line feed) that answers `line`, or `None` when it is not about CNI.
    pub async fn answer(&self, line: &str, fds: Vec<OwnedFd>) -> Option<String> {
        let reply = match decode(line)? {
            Ok(request) => self.serve(request, fds).await,
            Err(error) => Reply::Error(error),
        };
        Some(reply.to_line())
    }

    /// Does what `request` asks. It goes on when this future is dropped, and a panic in it becomes an error with code 100.
    pub async fn serve(&self, request: Request, fds: Vec<OwnedFd>) -> Reply {
        let inner = Arc::clone(&self.inner);
        let span = span(&request);
        let work = async move {
            let result = inner.serve(request, fds).await;
            match &result {
                Ok(_) => tracing::info!("done"),
                Err(err) => tracing::warn!(code = u32::from(err.code), %err, "failed"),
            }
            result
        };
        let result = tokio::spawn(work.instrument(span)).await;
        result.unwrap_or_else(|err| Err(internal(&err.to_string()))).into()
    }

    /// Does the DELs that were asked for while no agent ran, and returns how many. Call it after the socket is bound and before anything is
    /// accepted. What fails stays for the next start.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub async fn replay(&self, state_dir: &Path) -> io::Result<usize> {
        let queue = pending::list(state_dir)?;
        for path in queue.unreadable {
            tracing::warn!(path = %path.display(), "not a queued DEL: look at it and remove it");
        }
        let mut done = 0;
        for waiting in queue.pending {
            if let Reply::Result(_) = self.serve(Request::Del(waiting.call.clone()), Vec::new()).await {
                waiting.done()?;
                done += 1;
            }
        }
        Ok(done)
    }
}

#[derive(Debug)]
struct Inner<N> {
    network: Arc<N>,
    turns: Turns,
}

impl<N: PodNetwork> Inner<N> {
    async fn serve(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Value, CniError> {
        match request {
            Request::Add(call) => self.add(call, fds).await,
            Request::Del(call) => self.del(call, fds).await,
            Request::Check(call) => self.check(call, fds).await,
            Request::Gc { config } => self.gc(config).await,
            Request::Status { .. } => self.network.status().await.map(|()| Value::Null),
        }
    }

    async fn add(&self, call: Call, fds: Vec<OwnedFd>) -> Result<Value, CniError> {
        let version = call.config.cni_version;
        let request = pod_request(call, fds)?;
        let _turn = self.turns.take(&request.attachment).await;
        let (ifname, netns) = (request.attachment.ifname().to_owned(), request.netns.path().to_owned());
        let attached = self.network.add(request).await?;
        Ok(attached.success(&ifname, &netns).to_value(version))
    }

    async fn del(&self, call: Call, fds: Vec<OwnedFd>) -> Result<Value, CniError> {
        let netns = netns(&call, fds).ok();
        let Call { attachment, pod, config, .. } = call;
        let _turn = self.turns.take(&attachment).await;
        self.network.del(DelRequest { attachment, netns, pod, network: config.name }).await?;
        Ok(Value::Null)
    }

    async fn check(&self, call: Call, fds: Vec<OwnedFd>) -> Result<Value, CniError> {
        let missing =
            || CniError::new(Code::InvalidConfig, "CHECK needs prevResult in the network configuration");
        let previous = Success::parse(call.config.prev_result.as_ref().ok_or_else(missing)?)?;
        let request = pod_request(call, fds)?;
        let _turn = self.turns.take(&request.attachment).await;
        let ifname = request.attachment.ifname().to_owned();
        self.network.check(request).await?.check(&previous, &ifname)?;
        Ok(Value::Null)
    }

    async fn gc(&self, config: NetworkConfig) -> Result<Value, CniError> {
        // Taking absence for "none is in use" would disconnect every pod of the node.
        let Some(valid) = config.valid_attachments() else {
            let msg = "GC needs cni.dev/valid-attachments in the network configuration";
            return Err(CniError::new(Code::InvalidConfig, msg));
        };
        let valid = valid.cloned().collect();
        let _turn = self.turns.take_all().await;
        self.network.gc(config.name, valid).await?;
        Ok(Value::Null)
    }
}

fn pod_request(call: Call, fds: Vec<OwnedFd>) -> Result<PodRequest, CniError> {
    let netns = netns(&call, fds)?;
    let Call { attachment, pod, config, .. } = call;
    Ok(PodRequest { attachment, netns, pod, network: config.name, runtime: config.runtime_config })
}

/// The plugin has checked the descriptor. Whoever can connect could have sent another, so it is checked again.
fn netns(call: &Call, fds: Vec<OwnedFd>) -> Result<Netns, CniError> {
    let invalid = |msg: String| CniError::new(Code::InvalidEnvironment, msg);
    let [fd] = <[OwnedFd; 1]>::try_from(fds)
        .map_err(|fds| invalid(format!("the request carries {} network namespaces, not one", fds.len())))?;
    Netns::from_fd(fd, call.netns.as_deref().unwrap_or_default())
        .map_err(|err| invalid(format!("CNI_NETNS: {err}")))
}

fn span(request: &Request) -> tracing::Span {
    match request {
        Request::Add(call) => call_span("ADD", call),
        Request::Del(call) => call_span("DEL", call),
        Request::Check(call) => call_span("CHECK", call),
        Request::Gc { config } => tracing::info_span!("cni", command = "GC", network = config.name),
        Request::Status { .. } => tracing::info_span!("cni", command = "STATUS"),
    }
}

fn call_span(command: &'static str, call: &Call) -> tracing::Span {
    let pod = format_args!("{}/{}", call.pod.namespace, call.pod.name);
    tracing::info_span!("cni", command, %pod, attachment = %call.attachment, netns = call.netns)
}

fn internal(details: &str) -> CniError {
    CniError::new(Code::Internal, "the agent failed by a defect of its own: please report it")
        .with_details(details)
}

#[cfg(test)]
mod tests;
