//! The thread: carries out what the state wants, and tells it what happened.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::groups::Groups;
use super::packet::{PacketSocket, Protocol};
use super::state::State;
use super::udp::Udp;
use super::{Shared, clock};
use crate::config::Interface;
use crate::{frame, heartbeat};

/// Runs until the owner has it end.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut driver = Driver { shared, udp: Udp::default(), links: BTreeMap::new(), retry_at: None };
    while !driver.shared.state().has_ended() {
        driver.turn();
        // However much there is to do: sockets are looked at after each turn.
        tokio::task::yield_now().await;
        driver.wait().await;
    }
    // What was wanted last says that this node leaves.
    driver.send_heartbeats();
}

struct Driver {
    shared: Arc<Shared>,
    udp: Udp,
    links: BTreeMap<u32, Link>,
    /// When sockets that could not be opened are tried again.
    retry_at: Option<Duration>,
}

/// The sockets of one interface.
struct Link {
    interface: Interface,
    arp: PacketSocket,
    /// While the node owns an IPv6 address there.
    neighbours: Option<PacketSocket>,
    groups: Groups,
}

/// Problems, by what they are about.
type Problems = BTreeMap<String, String>;

impl Driver {
    /// Does everything that is to be done now; of each kind only so much that all get their turn.
    fn turn(&mut self) {
        self.shared.state().tick(clock::now());
        self.receive_heartbeats();
        let now = clock::now();
        if self.shared.state().take_changed() || self.retry_at.is_some_and(|at| now >= at) {
            self.open_sockets(now);
        }
        self.send_heartbeats();
        self.receive_frames();
        self.announce();
        self.send_heartbeats();
    }

    /// Brings sockets to what they should be.
    fn open_sockets(&mut self, now: Duration) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        let mut problems = Problems::new();
        if let Err((address, error)) = self.udp.set(state.own_addresses(), state.port()) {
            let why = format!("{error}; does something else use the port?");
            problems.insert(format!("heartbeats at {address}"), why);
        }
        self.open_links(&state, &mut problems);
        self.retry_at = (!problems.is_empty()).then_some(now + RETRY);
        for link in self.links.values() {
            problems.extend(rivals(&link.interface.name));
        }
        state.set_problems(problems);
        let obstacle = self.obstacle(&state);
        state.set_obstacle(now, obstacle);
    }

    /// What keeps this node from owning anything. Who cannot hear the others must not believe that they are gone, and who cannot
    /// answer must not keep them from answering.
    fn obstacle(&self, state: &State) -> Option<&'static str> {
        if self.links.is_empty() {
            return Some("no interface to announce on carries packets");
        }
        let deaf = self.udp.is_empty() && state.has_others();
        deaf.then_some("no address of this node can be used for heartbeats: it needs an InternalIP")
    }

    fn open_links(&mut self, state: &State, problems: &mut Problems) {
        let wanted = state.responder().links();
        self.links
            .retain(|ifindex, link| wanted.get(ifindex).is_some_and(|it| it.name == link.interface.name));
        for (ifindex, interface) in wanted {
            if let Some(link) = self.links.get_mut(ifindex) {
                link.interface = interface.clone();
                continue;
            }
            match Link::open(interface) {
                Ok(link) => drop(self.links.insert(*ifindex, link)),
                Err(error) => {
                    drop(problems.insert(format!("interface {}", interface.name), unopened(&error)))
                }
            }
        }
        for link in self.links.values_mut() {
            if let Err(why) = link.join(state.responder().groups(&link.interface.name)) {
                problems.insert(format!("interface {}, IPv6", link.interface.name), why);
            }
        }
    }

    fn send_heartbeats(&self) {
        let (heartbeats, port) = {
            let mut state = self.shared.state();
            (state.take_heartbeats(), state.port())
        };
        for (to, datagram) in heartbeats {
            self.udp.send(to, port, &datagram);
        }
    }

    fn receive_heartbeats(&self) {
        let mut buffer = [0; heartbeat::MAX_LEN];
        for _ in 0..DATAGRAMS_AT_ONCE {
            let Some((length, from)) = self.udp.receive(&mut buffer) else { break };
            self.shared.state().hear(clock::now(), from, buffer.get(..length).unwrap_or_default());
        }
    }

    fn receive_frames(&self) {
        let mut buffer = [0; FRAME];
        for (ifindex, link) in &self.links {
            for _ in 0..FRAMES_AT_ONCE {
                let Some(length) = link.receive(&mut buffer) else { break };
                let frame = buffer.get(..length).unwrap_or_default();
                // The time is looked at after the frame was read: it may have waited.
                let answer = self.shared.state().see(clock::now(), *ifindex, frame);
                answer.iter().for_each(|answer| link.send(answer));
            }
        }
    }

    fn announce(&self) {
        let frames = {
            let mut state = self.shared.state();
            let now = clock::now();
            state.tick(now);
            // Who shall be asked must be able to hear it first: sockets before announcements.
            if state.is_changed() { Vec::new() } else { state.speak(now) }
        };
        for outgoing in frames {
            if let Some(link) = self.links.get(&outgoing.ifindex) {
                link.send(&outgoing.frame);
            }
        }
    }

    /// Waits until there is something to do.
    async fn wait(&self) {
        let (next, now) = (self.shared.state().next_timeout(), clock::now());
        if self.shared.state().is_changed() {
            return;
        }
        let next = self.retry_at.map_or(next, |at| at.min(next));
        tokio::select! {
            () = self.shared.news.notified() => {}
            () = tokio::time::sleep(next.saturating_sub(now)) => {}
            () = self.readable() => {}
        }
    }

    /// Waits until there is something to read.
    async fn readable(&self) {
        std::future::poll_fn(|context| {
            // All of them, so that each wakes this task.
            let links = self.links.values().filter(|link| link.poll_readable(context).is_ready()).count();
            if self.udp.poll_readable(context).is_ready() || links > 0 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl Link {
    fn open(interface: &Interface) -> io::Result<Self> {
        let arp = PacketSocket::open(interface.ifindex, Protocol::Arp)?;
        let groups = Groups::new(interface.ifindex);
        Ok(Self { interface: interface.clone(), arp, neighbours: None, groups })
    }

    /// Hears what is sent to these groups, and to the addresses that they are of. The error is for operators.
    fn join(&mut self, groups: BTreeSet<Ipv6Addr>) -> Result<(), String> {
        if groups.is_empty() {
            self.neighbours = None;
        } else if self.neighbours.is_none() {
            let socket = PacketSocket::open(self.interface.ifindex, Protocol::Neighbours);
            self.neighbours = Some(socket.map_err(|error| unopened(&error))?);
        }
        let joined = self.groups.set(groups.into_iter());
        joined.map_err(|error| format!("joining the groups of addresses: {error}; is IPv6 disabled on it?"))
    }

    /// The next frame, if there is one.
    fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        self.sockets().find_map(|socket| match socket.receive(buffer) {
            Ok(length) => length,
            // That it went down is told by others.
            Err(err) => {
                tracing::debug!(iface = self.interface.name, %err, "reading frames");
                None
            }
        })
    }

    fn send(&self, frame: &[u8]) {
        // What a socket sends is of its own protocol, to those who look before it leaves.
        let arp = frame.get(12..14) == Some(&frame::ARP.to_be_bytes());
        let socket = if arp { Some(&self.arp) } else { self.neighbours.as_ref() };
        if let Some(Err(err)) = socket.map(|socket| socket.send(frame)) {
            tracing::debug!(iface = self.interface.name, %err, "a frame was not sent");
        }
    }

    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        // Both, so that each wakes the task.
        let ready = self.sockets().filter(|socket| socket.poll_readable(context).is_ready()).count();
        if ready > 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    fn sockets(&self) -> impl Iterator<Item = &PacketSocket> {
        [&self.arp].into_iter().chain(&self.neighbours)
    }
}

fn unopened(error: &io::Error) -> String {
    format!("opening a packet socket: {error}; it needs CAP_NET_RAW")
}

/// What else would answer on an interface, for addresses that are nobody's there: the kernel as a proxy.
fn rivals(interface: &str) -> Option<(String, String)> {
    let set = |name: &str| {
        let path = Path::new("/proc/sys/net/ipv4/conf").join(name).join("proxy_arp");
        std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
    };
    let name = ["all", interface].into_iter().find(|name| set(name))?;
    let why = format!(
        "net.ipv4.conf.{name}.proxy_arp is on: the kernel answers ARP for addresses that it has a route to by another interface, \
         whoever owns them; set it to 0"
    );
    Some((format!("interface {interface}, proxy ARP"), why))
}

/// When what could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What is read at once.
const DATAGRAMS_AT_ONCE: usize = 256;
const FRAMES_AT_ONCE: usize = 64;
/// Bytes of a frame that are read; none that matters is longer.
const FRAME: usize = 512;
