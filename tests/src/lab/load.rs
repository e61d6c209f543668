//! Clients: single requests, a stream of short connections, long-lived connections.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketType};

use super::Netns;

/// Longest wait of a client. A lost SYN is sent again after one second.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What clients got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers by server.
    pub by_server: BTreeMap<String, usize>,
    /// What went wrong, with the moment in milliseconds since the start.
    pub failures: Vec<String>,
}

impl Tally {
    /// Number of answers.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.by_server.values().sum()
    }
}

/// One HTTP request on a connection of its own, from a port that no other question had: server and client address as
/// the server saw it.
///
/// # Errors
/// No answer.
pub fn get(netns: &Netns, to: SocketAddr) -> Result<(String, String)> {
    // Without a port of its own choice: sockets that have one are not balanced when they connect.
    netns.enter(move || request_once(to))?
}

/// A socket with a port that no other of this process had before: what is asked from a port again may be of the flow
/// that it had then, and a flow keeps its backend.
fn bound(to: SocketAddr, kind: SocketType) -> Result<OwnedFd> {
    let (family, any): (_, IpAddr) = if to.is_ipv4() {
        (AddressFamily::INET, [0; 4].into())
    } else {
        (AddressFamily::INET6, [0; 16].into())
    };
    let socket = net::socket(family, kind, None)?;
    for _ in 0..PORTS {
        let port = FIRST_PORT + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % PORTS;
        match net::bind(&socket, &SocketAddr::new(any, port)) {
            Err(Errno::ADDRINUSE) => {}
            other => return other.map(|()| socket).context("binding a port"),
        }
    }
    bail!("every port is in use")
}

/// Ports of [`bound`]: of the kernel's own range, outside of those of nodes and masqueraded flows.
const FIRST_PORT: u16 = 33_000;
const PORTS: u16 = 27_000;
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// As [`get`], from a port that was chosen before connecting.
///
/// # Errors
/// No answer.
pub fn get_bound(netns: &Netns, to: SocketAddr) -> Result<(String, String)> {
    netns.enter(move || {
        let mut stream = TcpStream::from(bound(to, SocketType::STREAM)?);
        // Also for connecting.
        prepare(&stream)?;
        net::connect(&stream, &to).with_context(|| format!("connecting to {to}"))?;
        request(&mut stream)
    })?
}

/// As [`get`], with a source address but no port that was chosen before connecting.
///
/// # Errors
/// No answer.
pub fn get_from(netns: &Netns, from: IpAddr, to: SocketAddr) -> Result<(String, String)> {
    netns.enter(move || {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let mut stream = TcpStream::from(net::socket(family, SocketType::STREAM, None)?);
        prepare(&stream)?;
        net::bind(&stream, &SocketAddr::new(from, 0)).context("binding an address")?;
        net::connect(&stream, &to).with_context(|| format!("connecting to {to}"))?;
        request(&mut stream)
    })?
}

fn request_once(to: SocketAddr) -> Result<(String, String)> {
    let mut stream = connect(to)?;
    request(&mut stream)
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT).with_context(|| format!("connecting to {to}"))?;
    prepare(&stream)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)
}

/// One request on an open connection.
fn request(stream: &mut TcpStream) -> Result<(String, String)> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n").context("sending")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 512];
    loop {
        let len = stream.read(&mut chunk).context("receiving")?;
        if len == 0 {
            bail!("the connection was closed");
        }
        answer.extend_from_slice(&chunk[..len]);
        if answer.ends_with(b"\n")
            && answer.windows(4).any(|window| window == b"\r\n\r\n")
            && !answer.ends_with(b"\r\n\r\n")
        {
            break;
        }
    }
    let text = String::from_utf8(answer).context("the answer is not text")?;
    let body = text.rsplit("\r\n\r\n").next().unwrap_or_default();
    let mut words = body.split_whitespace().map(str::to_owned);
    Ok((words.next().context("an empty answer")?, words.next().context("half an answer")?))
}

/// One UDP question from a socket of its own, from a port that no other question had: server and client address as the server saw it.
///
/// # Errors
/// No answer in time; `ConnectionRefused` when the data plane says that nobody listens.
pub fn udp_ask(netns: &Netns, to: SocketAddr) -> Result<(String, String)> {
    netns.enter(move || {
        let socket = UdpSocket::from(bound(to, SocketType::DGRAM)?);
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send(b"ping")?;
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        let mut words = text.split_whitespace().map(str::to_owned);
        Ok((words.next().context("an empty answer")?, words.next().context("half an answer")?))
    })?
}

/// How asking fails, by opening a connection or by one question over UDP; `None`: it does not.
///
/// # Errors
/// The namespace cannot be entered.
pub fn failure(netns: &Netns, udp: bool, to: SocketAddr, patience: Duration) -> Result<Option<ErrorKind>> {
    let ask = move || -> std::io::Result<()> {
        if !udp {
            return TcpStream::connect_timeout(&to, patience).map(drop);
        }
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(b"ping")?;
        socket.recv(&mut [0; 512]).map(drop)
    };
    let kind = netns.enter(ask)?.err().map(|error| error.kind());
    // A socket's own timeout is called otherwise.
    Ok(if kind == Some(ErrorKind::WouldBlock) { Some(ErrorKind::TimedOut) } else { kind })
}

/// Clients that run until they are told to stop.
#[derive(Debug)]
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Tally>>,
}

impl Running {
    fn start(netns: &Netns, work: impl FnOnce(&AtomicBool) -> Tally + Send + 'static) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        Ok(Self { stop, thread: Some(netns.spawn(move || work(&flag))?) })
    }

    fn finish(&mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(tally)) => tally,
            _ => Tally { failures: vec!["the client panicked".to_owned()], ..Tally::default() },
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Short connections, one after the other, with a pause between them.
#[derive(Debug)]
pub struct Load(Running);

impl Load {
    /// Starts asking.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn start(netns: &Netns, to: SocketAddr, pause: Duration) -> Result<Self> {
        let begun = Instant::now();
        Ok(Self(Running::start(netns, move |stop| {
            let mut tally = Tally::default();
            while !stop.load(Ordering::Relaxed) {
                match request_once(to) {
                    Ok((server, _)) => *tally.by_server.entry(server).or_default() += 1,
                    Err(error) => {
                        tally.failures.push(format!("{} ms: {error:#}", begun.elapsed().as_millis()))
                    }
                }
                std::thread::sleep(pause);
            }
            tally
        })?))
    }

    /// Stops and tells.
    #[must_use]
    pub fn finish(mut self) -> Tally {
        self.0.finish()
    }
}

/// Connections that are kept open, each asked again and again; a failure is final for a connection, and so is
/// an answer from another server than its first.
#[derive(Debug)]
pub struct LongLived(Running);

impl LongLived {
    /// Opens `count` connections and starts asking; returns when all have had an answer.
    ///
    /// # Errors
    /// One gets no answer.
    pub fn start(netns: &Netns, to: SocketAddr, count: usize) -> Result<Self> {
        let begun = Instant::now();
        let open = move || -> Result<Vec<(TcpStream, String)>> {
            let one = |_| {
                let mut stream = connect(to)?;
                let (server, _) = request(&mut stream)?;
                Ok((stream, server))
            };
            (0..count).map(one).collect()
        };
        let mut connections = netns.enter(open)??;
        Ok(Self(Running::start(netns, move |stop| {
            let mut tally = Tally::default();
            while !stop.load(Ordering::Relaxed) {
                connections.retain_mut(|(stream, first)| match request(stream) {
                    Ok((server, _)) if server == *first => {
                        *tally.by_server.entry(server).or_default() += 1;
                        true
                    }
                    Ok((server, _)) => {
                        tally.failures.push(format!("{first} became {server}"));
                        false
                    }
                    Err(error) => {
                        tally
                            .failures
                            .push(format!("{} ms: {first}: {error:#}", begun.elapsed().as_millis()));
                        false
                    }
                });
                std::thread::sleep(Duration::from_millis(2));
            }
            tally
        })?))
    }

    /// Stops and tells.
    #[must_use]
    pub fn finish(mut self) -> Tally {
        self.0.finish()
    }
}

/// One UDP flow that counts its datagrams; every one has to be answered, always by the same server.
#[derive(Debug)]
pub struct Datagrams(Running);

impl Datagrams {
    /// Longest wait for an answer: datagrams are not sent again.
    const PATIENCE: Duration = Duration::from_secs(2);

    /// Starts sending; returns after the first answer.
    ///
    /// # Errors
    /// There is none.
    pub fn start(netns: &Netns, to: SocketAddr, pause: Duration) -> Result<Self> {
        let open = move || -> Result<(UdpSocket, String)> {
            let socket = connected(to, Self::PATIENCE)?;
            let first = ask_numbered(&socket, 0).with_context(|| format!("asking {to}"))?;
            Ok((socket, first))
        };
        let (socket, first) = netns.enter(open)??;
        Ok(Self(Running::start(netns, move |stop| {
            let mut tally = Tally::default();
            for number in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                match ask_numbered(&socket, number) {
                    Ok(server) if server == first => *tally.by_server.entry(server).or_default() += 1,
                    Ok(server) => tally.failures.push(format!("{first} became {server}")),
                    Err(error) => tally.failures.push(format!("datagram {number} to {to}: {error:#}")),
                }
                std::thread::sleep(pause);
            }
            tally
        })?))
    }

    /// Stops and tells.
    #[must_use]
    pub fn finish(mut self) -> Tally {
        self.0.finish()
    }
}

/// A client like a resolver: one connected UDP socket and numbered questions, each of which is asked again until it is
/// answered. A question that is not within [`TRIES`](Self::TRIES) is a failure.
#[derive(Debug)]
pub struct Resolver(Running);

impl Resolver {
    /// How long a question waits before it is asked again.
    const WAIT: Duration = Duration::from_millis(200);
    /// How often it is asked: for two seconds.
    pub const TRIES: u32 = 10;

    /// Starts asking; returns after the first answer.
    ///
    /// # Errors
    /// There is none.
    pub fn start(netns: &Netns, to: SocketAddr, pause: Duration) -> Result<Self> {
        let open = move || -> Result<UdpSocket> {
            let socket = connected(to, Self::WAIT)?;
            Self::resolve(&socket, to, 0).with_context(|| format!("{to} does not answer"))?;
            Ok(socket)
        };
        let socket = netns.enter(open)??;
        let begun = Instant::now();
        Ok(Self(Running::start(netns, move |stop| {
            let mut tally = Tally::default();
            for number in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                match Self::resolve(&socket, to, number) {
                    Some(server) => *tally.by_server.entry(server).or_default() += 1,
                    None => tally.failures.push(format!(
                        "{} ms: question {number} to {to} was asked {} times",
                        begun.elapsed().as_millis(),
                        Self::TRIES
                    )),
                }
                std::thread::sleep(pause);
            }
            tally
        })?))
    }

    /// Asks until there is an answer; who gave it.
    fn resolve(socket: &UdpSocket, to: SocketAddr, number: u32) -> Option<String> {
        (0..Self::TRIES).find_map(|_| {
            let asked = Instant::now();
            let error = match ask_numbered(socket, number) {
                Ok(server) => return Some(server),
                Err(error) => error,
            };
            match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                // It comes at once.
                Some(ErrorKind::ConnectionRefused) => {
                    std::thread::sleep(Self::WAIT.saturating_sub(asked.elapsed()));
                }
                Some(ErrorKind::WouldBlock) => {}
                // The socket is told that it is connected no more. One that cannot be connected fails once more.
                _ => drop(socket.connect(to)),
            }
            None
        })
    }

    /// Stops and tells.
    #[must_use]
    pub fn finish(mut self) -> Tally {
        self.0.finish()
    }
}

/// A connected UDP socket that waits this long for an answer.
fn connected(to: SocketAddr, patience: Duration) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// Sends one datagram with a number; who answered it.
fn ask_numbered(socket: &UdpSocket, number: u32) -> Result<String> {
    socket.send(number.to_string().as_bytes()).context("sending")?;
    let mut buffer = [0; 512];
    loop {
        let len = socket.recv(&mut buffer).context("receiving")?;
        let text = String::from_utf8_lossy(&buffer[..len]);
        let words: Vec<&str> = text.split(' ').collect();
        match *words.as_slice() {
            [server, _, echoed] if echoed.parse() == Ok(number) => return Ok(server.to_owned()),
            // An answer that came after all, to a datagram that was given up.
            [_, _, _] => {}
            _ => bail!("answered by {text:?}"),
        }
    }
}
