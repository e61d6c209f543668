//! The thread: carries out what the state wants, and tells it what happened.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::groups::Groups;
use super::packet::PacketSocket;
use super::state::State;
use super::udp::Udp;
use super::{Shared, clock};
use crate::config::Interface;
use crate::heartbeat;

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
    packets: PacketSocket,
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
            match PacketSocket::open(*ifindex) {
                Ok(packets) => {
                    let link = Link { interface: interface.clone(), packets, groups: Groups::new(*ifindex) };
                    self.links.insert(*ifindex, link);
                }
                Err(error) => {
                    let why = format!("opening a packet socket: {error}; it needs CAP_NET_RAW");
                    problems.insert(format!("interface {}", interface.name), why);
                }
            }
        }
        for link in self.links.values_mut() {
            let groups = state.responder().groups(&link.interface.name);
            if let Err(error) = link.groups.set(groups.into_iter()) {
                let why = format!("joining the groups of IPv6 addresses: {error}; is IPv6 disabled on it?");
                problems.insert(format!("interface {}", link.interface.name), why);
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
                match link.packets.receive(&mut buffer) {
                    Ok(None) => break,
                    Ok(Some(length)) => {
                        let frame = buffer.get(..length).unwrap_or_default();
                        // The time is looked at after the frame was read: it may have waited.
                        let answer = self.shared.state().see(clock::now(), *ifindex, frame);
                        answer.iter().for_each(|answer| link.send(answer));
                    }
                    // That it went down is told by others; the next frame may be there already.
                    Err(err) => tracing::debug!(iface = link.interface.name, %err, "reading frames"),
                }
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
            let links =
                self.links.values().filter(|link| link.packets.poll_readable(context).is_ready()).count();
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
    fn send(&self, frame: &[u8]) {
        if let Err(err) = self.packets.send(frame) {
            tracing::debug!(iface = self.interface.name, %err, "a frame was not sent");
        }
    }
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
