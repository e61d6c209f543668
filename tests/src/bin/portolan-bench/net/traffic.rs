//! One client and one server, both on one CPU.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use portolan_tests::lab::{Netns, poll};
use rustix::thread::{CpuSet, sched_setaffinity};

/// The first byte of a connection says what the server shall do.
const ECHO: u8 = b'e';
const SINK: u8 = b's';
const QUIT: u8 = b'q';
/// No answer in this time is a failure, not a slow measurement.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one write of a stream.
const CHUNK: usize = 64 << 10;

/// Keeps the calling thread on the CPU that all measurements use: unpinned, a round trip is now one wake-up on the
/// same CPU, now one across.
fn pin() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(None, &cpus).context("pinning a thread to CPU 0")
}

/// Makes a namespace fit for a client that opens tens of thousands of connections: closed ones leave nothing behind,
/// or the search for a free port becomes a part of what is measured.
pub(crate) fn ready(client: &Netns) -> Result<()> {
    client.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    client.sysctl("net/ipv4/tcp_max_tw_buckets", "0")
}

/// A server in a namespace. It ends when it is dropped.
pub(crate) struct Server {
    netns: String,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
    datagrams: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a port, over TCP and UDP.
    pub(crate) fn start(netns: &Netns, port: u16) -> Result<Self> {
        let listener = netns.enter(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        let thread = netns.spawn(move || {
            if let Err(error) = pin().and_then(|()| serve(&listener)) {
                eprintln!("server on port {port}: {error:#}");
            }
        })?;
        let socket = netns.enter(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        let datagrams = netns.spawn(move || {
            if let Err(error) = pin().and_then(|()| echo(&socket)) {
                eprintln!("UDP server on port {port}: {error:#}");
            }
        })?;
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Ok(Self { netns: netns.path(), address, thread: Some(thread), datagrams: Some(datagrams) })
    }

    fn stop(&mut self) -> Result<()> {
        let namespace = std::fs::File::open(&self.netns)?;
        let address = self.address;
        let asked = std::thread::spawn(move || -> Result<()> {
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), network)?;
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.send_to(&[QUIT], address)?;
            Ok(TcpStream::connect(address)?.write_all(&[QUIT])?)
        });
        asked.join().map_err(|_| anyhow!("the thread panicked"))??;
        for thread in [self.thread.take(), self.datagrams.take()].into_iter().flatten() {
            thread.join().map_err(|_| anyhow!("the server panicked"))?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("stopping a server: {error:#}");
        }
    }
}

/// Answers connections, one after the other.
fn serve(listener: &TcpListener) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut task = [0];
        // A client that only looks whether somebody is there says nothing.
        if stream.read_exact(&mut task).is_err() {
            continue;
        }
        match task[0] {
            QUIT => return Ok(()),
            SINK => {
                let mut taken = 0u64;
                loop {
                    match stream.read(&mut buffer)? {
                        0 => break,
                        len => taken += len as u64,
                    }
                }
                stream.write_all(&taken.to_be_bytes())?;
            }
            _ => {
                stream.write_all(&task)?;
                while stream.read(&mut task)? > 0 {
                    stream.write_all(&task)?;
                }
            }
        }
    }
}

/// Answers datagrams.
fn echo(socket: &UdpSocket) -> Result<()> {
    let mut byte = [0];
    loop {
        let (_, from) = socket.recv_from(&mut byte)?;
        if byte == [QUIT] {
            return Ok(());
        }
        // The client may be gone.
        let _ = socket.send_to(&byte, from);
    }
}

/// What a client measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Connect, one byte each way, close: seconds for each of so many.
    Connect(u32),
    /// One byte each way on one connection: seconds for each of so many.
    RoundTrip(u32),
    /// One datagram each way on one connected socket: seconds for each of so many.
    Datagrams(u32),
    /// As `Datagrams`, on a socket that names the address each time.
    Addressed(u32),
    /// Bytes a second for so long.
    Stream(Duration),
}

/// Measures from a namespace to an address.
pub(crate) fn measure(netns: &Netns, to: SocketAddr, task: Task) -> Result<f64> {
    netns.enter(move || {
        pin()?;
        match task {
            Task::Connect(count) => connects(to, count),
            Task::RoundTrip(count) => round_trips(to, count),
            Task::Datagrams(count) => datagrams(to, count, true),
            Task::Addressed(count) => datagrams(to, count, false),
            Task::Stream(time) => stream(to, time),
        }
    })?
}

fn open(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connects(to: SocketAddr, count: u32) -> Result<f64> {
    let begun = Instant::now();
    for _ in 0..count {
        let mut stream = open(to)?;
        exchange(&mut stream)?;
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(count))
}

fn round_trips(to: SocketAddr, count: u32) -> Result<f64> {
    let mut stream = open(to)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let begun = Instant::now();
    for _ in 0..count {
        exchange(&mut stream)?;
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(count))
}

fn datagrams(to: SocketAddr, count: u32, connected: bool) -> Result<f64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    if connected {
        socket.connect(to)?;
    }
    let mut answer = [0];
    let begun = Instant::now();
    for _ in 0..count {
        if connected {
            socket.send(&[ECHO])?;
            socket.recv(&mut answer).context("waiting for the answer")?;
        } else {
            socket.send_to(&[ECHO], to)?;
            let (_, from) = socket.recv_from(&mut answer).context("waiting for the answer")?;
            anyhow::ensure!(from == to, "answered by {from} instead of {to}");
        }
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(count))
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[ECHO])?;
    let mut answer = [0];
    stream.read_exact(&mut answer).context("waiting for the answer")
}

fn stream(to: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = open(to)?;
    stream.write_all(&[SINK])?;
    let buffer = vec![0x2a; CHUNK];
    let (begun, mut sent) = (Instant::now(), 0u64);
    while begun.elapsed() < time {
        stream.write_all(&buffer)?;
        sent += buffer.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut taken = [0; 8];
    stream.read_exact(&mut taken).context("waiting for the server's count")?;
    let elapsed = begun.elapsed().as_secs_f64();
    anyhow::ensure!(u64::from_be_bytes(taken) == sent, "the server took another number of bytes");
    Ok(sent as f64 / elapsed)
}

/// Waits until somebody listens at an address.
pub(crate) fn wait(netns: &Netns, to: SocketAddr, deadline: Duration) -> Result<()> {
    netns.enter(move || {
        poll(deadline, &format!("{to} answers"), || {
            match TcpStream::connect_timeout(&to, Duration::from_millis(200)) {
                Ok(_) => Some(Ok(())),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => Some(Err(error)),
                Err(_) => None,
            }
        })
    })???;
    Ok(())
}
