//! Reading one request line and the descriptors beside it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::proto::LINE_MAX;

/// What one side of a connection has sent.
#[derive(Debug)]
pub struct Received {
    /// The first line, without its line feed.
    pub line: String,
    /// The descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Reads up to the first line feed. What follows it is lost: a connection carries one request.
///
/// # Errors
/// `TimedOut` when the line is not complete after `deadline`, `UnexpectedEof` when it never will be, `InvalidData` for a line that is longer
/// than [`LINE_MAX`], not UTF-8, or accompanied by more than [`FDS_MAX`] descriptors.
pub async fn receive(stream: &UnixStream, deadline: Duration) -> io::Result<Received> {
    tokio::time::timeout(deadline, read_line(stream)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// No request needs more than one.
const FDS_MAX: usize = 4;

async fn read_line(stream: &UnixStream) -> io::Result<Received> {
    let (mut bytes, mut fds) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let count = stream.async_io(Interest::READABLE, || read_some(stream, &mut chunk, &mut fds)).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if fds.len() > FDS_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "more descriptors than any request needs",
            ));
        }
        let new = &chunk[..count];
        if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
            bytes.extend_from_slice(&new[..end]);
            let line =
                String::from_utf8(bytes).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))?;
            return Ok(Received { line, fds });
        }
        bytes.extend_from_slice(new);
        if bytes.len() > LINE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
        }
    }
}

fn read_some(stream: &UnixStream, chunk: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(chunk)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            fds.extend(received);
        }
    }
    Ok(message.bytes)
}
