//! A route netlink socket that sends many requests in one system call.
//!
//! The kernel handles every message of a datagram in order and answers before `send` returns, so this
//! socket blocks for no longer than the work itself takes and needs no reactor.

use std::{collections::VecDeque, io};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};

use super::Error;

/// Answers queue in the socket's receive buffer (about 1 KiB each of 208 KiB by default) until they are
/// read; the kernel drops those that do not fit.
const BATCH: usize = 64;
/// The kernel fills at most 32 KiB per datagram of a dump.
const DATAGRAM: usize = 64 * 1024;
/// A dump that others' changes keep interrupting is given up after so many tries.
const DUMP_TRIES: usize = 16;
/// Length of a netlink message header, and of an attribute's.
const HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One change that the kernel is asked for.
pub(super) struct Request {
    pub(super) message: RouteNetlinkMessage,
    /// `NLM_F_CREATE` and the like.
    pub(super) flags: u16,
    /// "adding route 10.0.0.0/24", for the error.
    pub(super) doing: String,
}

impl Request {
    pub(super) fn new(message: RouteNetlinkMessage, flags: u16, doing: impl Into<String>) -> Self {
        Self { message, flags, doing: doing.into() }
    }
}

/// The answer to one request: what the kernel sent before its acknowledgement, if anything.
pub(super) type Answer = Result<Option<RouteNetlinkMessage>, Error>;

/// A connected `NETLINK_ROUTE` socket of the namespace it was opened in.
pub(super) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, Error> {
        connect().map(|inner| Self { inner, sequence: 0, buffer: vec![0; DATAGRAM] }).map_err(|source| {
            Error::Netlink { doing: "opening a route netlink socket".into(), reason: None, source }
        })
    }

    /// Sends all requests, each of which is carried out whether or not one before it failed, and returns
    /// the first failure.
    pub(super) fn run(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        self.transact(requests)?.into_iter().try_for_each(|answer| answer.map(drop))
    }

    /// Sends one request.
    pub(super) fn run_one(&mut self, request: Request) -> Answer {
        // One request has one answer.
        self.transact(vec![request])?.pop().unwrap_or(Ok(None))
    }

    /// Sends all requests, each of which is carried out whether or not one before it failed.
    pub(super) fn transact(&mut self, requests: Vec<Request>) -> Result<Vec<Answer>, Error> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut pending = VecDeque::from(requests);
        while !pending.is_empty() {
            let batch = pending.drain(..pending.len().min(BATCH)).collect();
            self.exchange(batch, &mut answers)?;
        }
        Ok(answers)
    }

    /// All objects that `message` asks for. Starts again when they changed underneath.
    pub(super) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        doing: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_TRIES {
            if let Some(objects) = self.dump_once(message, doing)? {
                return Ok(objects);
            }
        }
        Err(failed(doing, None, io::Error::from(io::ErrorKind::Interrupted)))
    }

    fn exchange(&mut self, batch: Vec<Request>, answers: &mut Vec<Answer>) -> Result<(), Error> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(4096);
        let mut doings = Vec::with_capacity(batch.len());
        for request in batch {
            self.append(&mut bytes, request.message, request.flags | NLM_F_ACK);
            doings.push(request.doing);
        }
        self.send(&bytes, &doings[0])?;
        let (mut replies, mut done) = (doings.iter().map(|_| None).collect::<Vec<_>>(), 0);
        while done < doings.len() {
            for message in self.receive(&doings[done])? {
                let slot = message.header.sequence_number.wrapping_sub(first) as usize;
                // An answer to an earlier exchange that was given up half-way.
                let Some(doing) = doings.get(slot) else { continue };
                let tlvs = message.header.flags & NLM_F_ACK_TLVS != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => replies[slot] = Some(inner),
                    NetlinkPayload::Error(error) => {
                        done += 1;
                        answers.push(match error.code {
                            None => Ok(replies[slot].take()),
                            Some(_) => {
                                let reason = tlvs.then(|| explanation(&error.header)).flatten();
                                Err(failed(doing, reason, error.to_io()))
                            }
                        });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// `None` if the dump was inconsistent.
    fn dump_once(
        &mut self,
        message: &RouteNetlinkMessage,
        doing: &str,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let mut bytes = Vec::with_capacity(128);
        self.append(&mut bytes, message.clone(), NLM_F_DUMP);
        let sequence = self.sequence;
        self.send(&bytes, doing)?;
        let (mut objects, mut consistent) = (Vec::new(), true);
        loop {
            for message in self.receive(doing)? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => objects.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(failed(doing, None, error.to_io()));
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(failed(doing, None, io::Error::from_raw_os_error(-done.code)));
                    }
                    NetlinkPayload::Done(_) => return Ok(consistent.then_some(objects)),
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&mut self, bytes: &[u8], doing: &str) -> Result<(), Error> {
        retry(|| self.inner.send(bytes, 0)).map(drop).map_err(|source| failed(doing, None, source))
    }

    fn receive(&mut self, doing: &str) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, Error> {
        let (inner, buffer) = (&self.inner, &mut self.buffer);
        let length = retry(|| inner.recv(&mut &mut buffer[..], libc::MSG_TRUNC))
            .map_err(|source| failed(doing, None, source))?;
        let Some(datagram) = self.buffer.get(..length) else {
            return Err(Error::Decode {
                doing: doing.into(),
                detail: format!("{length} bytes in one datagram"),
            });
        };
        parse(datagram).map_err(|detail| Error::Decode { doing: doing.into(), detail })
    }
}

/// All messages of one datagram.
///
/// One object of a dump that cannot be decoded (a device type newer than this program) is left out; the
/// others must not be lost for it.
pub(super) fn parse(mut datagram: &[u8]) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, String> {
    let mut messages = Vec::new();
    while let Some((length, flags)) = length_and_flags(datagram) {
        let bytes =
            datagram.get(..length).ok_or_else(|| format!("a message of {length} bytes is cut off"))?;
        match NetlinkMessage::deserialize(bytes) {
            Ok(message) => messages.push(message),
            Err(err) if flags & NLM_F_MULTIPART != 0 => tracing::warn!(%err, "left out of a netlink dump"),
            Err(error) => return Err(error.to_string()),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}

/// From the header of the first message, if there is one.
fn length_and_flags(datagram: &[u8]) -> Option<(usize, u16)> {
    let header = datagram.get(..HEADER)?;
    let length = u32::from_ne_bytes(header.get(..4)?.try_into().ok()?) as usize;
    let flags = u16::from_ne_bytes(header.get(6..8)?.try_into().ok()?);
    (length >= HEADER).then_some((length, flags))
}

/// Calls again what a signal interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn connect() -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Short acknowledgements, with the kernel's words; filters of dumps are honoured, not ignored.
    socket.set_cap_ack(true)?;
    socket.set_ext_ack(true)?;
    socket.set_netlink_get_strict_chk(true)?;
    Ok(socket)
}

fn failed(doing: &str, reason: Option<String>, source: io::Error) -> Error {
    Error::Netlink { doing: doing.into(), reason, source }
}

/// The text in the attributes that follow the request's header in a refusal.
fn explanation(payload: &[u8]) -> Option<String> {
    let mut rest = payload.get(HEADER..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        if kind == NLMSGERR_ATTR_MSG {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}
