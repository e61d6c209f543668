//! What plugin and agent say to each other over the agent's socket: one line of JSON there, one back.
//!
//! There: `{"cni": REQUEST}`, with the pod's network namespace as a descriptor beside its first byte (`SCM_RIGHTS`). Back: `{"result": VALUE}` or
//! `{"error": {"code", "msg", "details"}}`. Requests without `cni` are not ours; the same socket serves them.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use portolan_ipam::AttachmentId;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::{CniError, Code, NetworkConfig, PodRef};

/// What the plugin asks of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "UPPERCASE")]
pub enum Request {
    /// Connect a pod. The namespace comes along.
    Add(Call),
    /// Disconnect one. The namespace comes along if there still is one.
    Del(Call),
    /// Compare a pod with `prevResult`. The namespace comes along.
    Check(Call),
    /// Remove attachments that are not in use.
    Gc {
        /// The configuration, with the attachments in use.
        config: NetworkConfig,
    },
    /// Tell whether an ADD would work.
    Status {
        /// The configuration.
        config: NetworkConfig,
    },
}

/// A request about one attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The attachment.
    pub attachment: AttachmentId,
    /// Path of the namespace as the runtime gave it. To be shown, not to be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// The pod.
    #[serde(default)]
    pub pod: PodRef,
    /// The configuration.
    pub config: NetworkConfig,
}

impl Request {
    /// The configuration that it came with.
    pub fn config(&self) -> &NetworkConfig {
        match self {
            Self::Add(call) | Self::Del(call) | Self::Check(call) => &call.config,
            Self::Gc { config } | Self::Status { config } => config,
        }
    }

    /// The line that is sent, with its line feed.
    pub fn to_line(&self) -> String {
        format!("{}\n", serde_json::json!({ "cni": self }))
    }
}

/// Reads a line from the socket. `None`: it is not about CNI.
pub fn decode(line: &str) -> Option<Result<Request, CniError>> {
    let value: Value = serde_json::from_str(line).ok()?;
    let request = value.get("cni")?;
    Some(Request::deserialize(request).map_err(|err| {
        CniError::new(
            Code::Decode,
            "the request is not one that this agent knows: use the plugin of its version",
        )
        .with_details(err.to_string())
    }))
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// It is done. For ADD the CNI result in the version asked for, otherwise null.
    Result(Value),
    /// It is not.
    Error(CniError),
}

impl Reply {
    /// The line that is sent, with its line feed.
    pub fn to_line(&self) -> String {
        format!("{}\n", serde_json::json!(self))
    }
}

impl From<Result<Value, CniError>> for Reply {
    fn from(result: Result<Value, CniError>) -> Self {
        result.map_or_else(Self::Error, Self::Result)
    }
}

/// Longest line in either direction, in bytes: a configuration of 1 MiB with all that JSON may add.
pub const LINE_MAX: usize = 4 << 20;

/// How long connecting, sending and waiting for the answer may take, each.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoReply {
    /// Nobody listens.
    #[error("connecting: {0}")]
    Down(#[source] io::Error),
    /// The agent went away before it had answered; what was asked may be done or not.
    #[error("the connection ended before the answer")]
    Lost,
    /// The agent is there and did not answer in time; what was asked may be done or not.
    #[error("no answer within {} seconds", DEADLINE.as_secs())]
    Late,
    /// The socket cannot be used.
    #[error("talking to it: {0}")]
    Io(#[source] io::Error),
    /// The answer is not one.
    #[error("its answer cannot be read: {0}")]
    Garbled(String),
}

/// Sends a request with its namespace and waits for the answer.
///
/// # Errors
/// [`NoReply`]; after `Down` nothing has happened.
pub fn exchange(socket: &Path, request: &Request, netns: Option<BorrowedFd<'_>>) -> Result<Reply, NoReply> {
    let mut stream = connect(socket)?;
    match send(&mut stream, request.to_line().as_bytes(), netns) {
        // Whoever refuses a request while it is being sent has answered it.
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => return Err(lost_or_late(err)),
        _ => {}
    }
    let line = receive(&mut stream)?;
    serde_json::from_slice(&line).map_err(|err| NoReply::Garbled(err.to_string()))
}

fn connect(path: &Path) -> Result<UnixStream, NoReply> {
    let io = |err: Errno| NoReply::Io(err.into());
    let address = SocketAddrUnix::new(path).map_err(io)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(io)?;
    // Set before connecting: the time limit of sending is the one of waiting in a full backlog.
    set_socket_timeout(&socket, Timeout::Send, Some(DEADLINE)).map_err(io)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(err @ (Errno::NOENT | Errno::CONNREFUSED | Errno::NOTDIR)) => Err(NoReply::Down(err.into())),
        Err(Errno::AGAIN) => Err(NoReply::Late),
        Err(err) => Err(io(err)),
    }
}

fn send(stream: &mut UnixStream, line: &[u8], netns: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = netns.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent =
        rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&line[sent..])
}

/// Everything up to the line feed.
fn receive(stream: &mut UnixStream) -> Result<Vec<u8>, NoReply> {
    let end = Instant::now() + DEADLINE;
    let (mut line, mut chunk) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NoReply::Late);
        }
        stream.set_read_timeout(Some(left)).map_err(NoReply::Io)?;
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Err(NoReply::Lost),
            Ok(count) => count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            Err(err) => return Err(lost_or_late(err)),
        };
        line.extend_from_slice(&chunk[..count]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() > LINE_MAX {
            return Err(NoReply::Garbled("it does not end".into()));
        }
    }
}

fn lost_or_late(err: io::Error) -> NoReply {
    match err.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => NoReply::Lost,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NoReply::Late,
        _ => NoReply::Io(err),
    }
}
