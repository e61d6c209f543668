//! Two sessions and what is between them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::config::{Identity, Peer};
use crate::session::{Initiator, LinkId, Output, PeerStatus, Session, SessionError, State};

pub(super) const LEFT: usize = 0;
pub(super) const RIGHT: usize = 1;

/// How long bytes are on their way.
const LATENCY: Duration = Duration::from_millis(2);

/// One of the two.
pub(super) struct Side {
    pub(super) session: Session,
    pub(super) downs: Vec<Option<SessionError>>,
    pub(super) connects: usize,
}

/// What is on its way to a side.
enum Parcel {
    Bytes(Vec<u8>),
    End,
    /// The outcome of connecting.
    Connected(bool),
}

struct Connection {
    by: usize,
    ends: [Option<LinkId>; 2],
    to: [VecDeque<(Instant, Parcel)>; 2],
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) sides: [Side; 2],
    connections: Vec<Connection>,
    /// Bytes and ends are lost; new connections are not.
    pub(super) lossy: bool,
    /// Nobody answers on a connection that is being opened.
    pub(super) listens: [bool; 2],
}

fn address(side: usize) -> std::net::IpAddr {
    [10, 0, 0, 1 + u8::try_from(side).unwrap()].into()
}

impl World {
    pub(super) fn new(change: impl Fn(&mut Peer)) -> Self {
        Self::seeded(1, change)
    }

    pub(super) fn seeded(seed: u64, change: impl Fn(&mut Peer)) -> Self {
        let now = Instant::now();
        let sides = [LEFT, RIGHT].map(|side| {
            let other = 1 - side;
            let asn = 64_513 - u32::try_from(other).unwrap();
            let mut peer =
                Peer::new(["left", "right"][other], address(other), 64_512 + u32::try_from(other).unwrap());
            change(&mut peer);
            Side {
                session: session(side, asn, peer, seed + side as u64, now),
                downs: Vec::new(),
                connects: 0,
            }
        });
        Self { now, sides, connections: Vec::new(), lossy: false, listens: [true, true] }
    }

    /// Another session in the place of a side's, as after a restart: its connections end.
    pub(super) fn replace(&mut self, side: usize, peer: Peer) {
        self.sides[side].session = session(side, 64_512 + u32::try_from(side).unwrap(), peer, 9, self.now);
        for connection in &mut self.connections {
            connection.ends[side] = None;
        }
    }

    pub(super) fn start(&mut self) {
        for side in &mut self.sides {
            side.session.start(self.now);
        }
    }

    pub(super) fn status(&self, side: usize) -> PeerStatus {
        self.sides[side].session.status(self.now, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000))
    }

    /// How often each side was up.
    pub(super) fn established(&self) -> [u64; 2] {
        [LEFT, RIGHT].map(|side| self.status(side).established)
    }

    /// Connections that both sides have.
    pub(super) fn open_connections(&self) -> usize {
        self.connections.iter().filter(|connection| connection.ends.iter().all(Option::is_some)).count()
    }

    /// Who opened the connection of the established session.
    pub(super) fn initiator(&self) -> Option<usize> {
        let up = self.sides.iter().all(|side| side.session.state() == State::Established);
        let open = self.connections.iter().find(|connection| connection.ends.iter().all(Option::is_some));
        open.filter(|_| up).map(|connection| connection.by)
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let timers = self.sides.iter().filter_map(|side| side.session.next_timeout());
            let parcels = self.connections.iter().flat_map(|connection| &connection.to);
            let arrivals = parcels.filter_map(|queue| queue.front().map(|(at, _)| *at));
            match timers.chain(arrivals).min() {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
            for side in &mut self.sides {
                side.session.handle_timeout(self.now);
            }
            self.deliver();
        }
        self.now = end;
    }

    /// Does what the sessions want.
    fn settle(&mut self) {
        for side in [LEFT, RIGHT] {
            self.sides[side].session.send_routes(self.now);
            while let Some(output) = self.sides[side].session.poll_output() {
                self.output(side, output);
            }
        }
    }

    fn output(&mut self, side: usize, output: Output) {
        let arrives = self.now + LATENCY;
        match output {
            Output::Connect => {
                self.sides[side].connects += 1;
                let mut connection = Connection { by: side, ends: [None; 2], to: Default::default() };
                connection.to[side].push_back((arrives, Parcel::Connected(self.listens[1 - side])));
                self.connections.push(connection);
            }
            Output::Send { link, bytes } => {
                let lossy = self.lossy;
                let connection = self.connection(side, link);
                if !lossy {
                    connection.to[1 - side].push_back((arrives, Parcel::Bytes(bytes)));
                }
            }
            Output::Close { link } => {
                let lossy = self.lossy;
                let connection = self.connection(side, link);
                connection.ends[side] = None;
                if !lossy {
                    connection.to[1 - side].push_back((arrives, Parcel::End));
                }
            }
            Output::Up(_) => {}
            Output::Down(error) => self.sides[side].downs.push(error),
        }
    }

    fn connection(&mut self, side: usize, link: LinkId) -> &mut Connection {
        let mut all = self.connections.iter_mut();
        all.find(|connection| connection.ends[side] == Some(link)).expect("the session has this connection")
    }

    fn deliver(&mut self) {
        for at in 0..self.connections.len() {
            for side in [LEFT, RIGHT] {
                while let Some(parcel) = self.take(at, side) {
                    self.arrive(at, side, parcel);
                }
            }
        }
    }

    fn take(&mut self, at: usize, side: usize) -> Option<Parcel> {
        let queue = &mut self.connections[at].to[side];
        queue.pop_front_if(|(when, _)| *when <= self.now).map(|(_, parcel)| parcel)
    }

    fn arrive(&mut self, at: usize, side: usize, parcel: Parcel) {
        let now = self.now;
        match (parcel, self.connections[at].ends[side]) {
            (Parcel::Connected(false), _) => {
                self.sides[side].session.connect_failed(now, "connection refused".to_owned());
            }
            (Parcel::Connected(true), _) => {
                for (end, initiator) in [(side, Initiator::Local), (1 - side, Initiator::Remote)] {
                    let link = self.sides[end].session.connected(now, initiator, address(end));
                    self.connections[at].ends[end] = link;
                    if link.is_none() {
                        self.connections[at].to[1 - end].push_back((now + LATENCY, Parcel::End));
                    }
                }
            }
            (Parcel::Bytes(bytes), Some(link)) => self.sides[side].session.received(now, link, &bytes),
            // Its own `Close` follows.
            (Parcel::End, Some(link)) => self.sides[side].session.disconnected(now, link, None),
            (Parcel::Bytes(_) | Parcel::End, None) => {}
        }
    }
}

fn session(side: usize, asn: u32, peer: Peer, seed: u64, now: Instant) -> Session {
    let std::net::IpAddr::V4(router_id) = address(side) else { unreachable!("addresses are IPv4") };
    Session::new(Arc::new(Identity::new(router_id, asn)), peer, seed, now)
}
