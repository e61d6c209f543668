//! Servers, as threads inside a namespace. They say who they are and whom they see.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Netns;

/// How long a server waits before it looks whether it shall stop.
const TICK: Duration = Duration::from_millis(20);
/// How long a client may take no byte of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// An HTTP/1.1 server that answers every request with its name and the client's address: `NAME ADDRESS\n`. A request
/// for `/N` gets N bytes more.
#[derive(Debug)]
pub struct WebServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WebServer {
    /// Listens on a port of all addresses of both families.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(netns: &Netns, port: u16, name: &str) -> Result<Self> {
        let listener = netns.enter(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
        Self::serve(listener.with_context(|| format!("listening on port {port}"))?, name)
    }

    /// As [`start`](Self::start), in the namespace of this process.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start_here(port: u16, name: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
        Self::serve(listener.with_context(|| format!("listening on port {port}"))?, name)
    }

    fn serve(listener: TcpListener, name: &str) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, name) = (Arc::clone(&stop), name.to_owned());
        // Accepted sockets stay in the listener's namespace, whatever thread accepts them.
        let thread = std::thread::spawn(move || accept(&listener, &name, &flag));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops; open connections are closed.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A server that panicked has printed why.
            let _ = thread.join();
        }
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let (name, stop) = (name.to_owned(), Arc::clone(stop));
                threads.retain(|thread| !thread.is_finished());
                threads.push(std::thread::spawn(move || {
                    // A client that goes away is its own business.
                    let _ = answer(&stream, &name, &stop);
                }));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1))
            }
            Err(error) => return eprintln!("server {name}: {error}"),
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn answer(stream: &TcpStream, name: &str, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    // One whose packets get lost would keep the server from its end.
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = stream.peer_addr()?.ip().to_canonical();
    let mut more = 0;
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        match reader.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) if line == "\r\n" => {
                let body = format!("{name} {peer}\n") + &"x".repeat(more);
                write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
                line.clear();
            }
            Ok(_) => {
                if let Some(path) = line.strip_prefix("GET /") {
                    more = path.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
                }
                line.clear();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A UDP server that answers every datagram with its name, the client's address and the datagram.
#[derive(Debug)]
pub struct UdpEcho {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Listens on a port of all addresses of both families.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(netns: &Netns, port: u16, name: &str) -> Result<Self> {
        let socket = netns.enter(move || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))?;
        let socket = socket.with_context(|| format!("binding port {port}"))?;
        socket.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, name) = (Arc::clone(&stop), name.to_owned());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !flag.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                let mut reply = format!("{name} {} ", from.ip().to_canonical()).into_bytes();
                reply.extend_from_slice(&buffer[..len]);
                // The client may be gone.
                let _ = socket.send_to(&reply, from);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
