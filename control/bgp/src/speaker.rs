//! Sessions over TCP: one task for each peer.

mod connection;
mod listen;
mod option;
mod peer;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

pub use listen::StartError;
use listen::{Door, Listener};
use peer::Shared;

use crate::config::{Identity, Invalid, Peer};
use crate::routes::{Route, desired};
use crate::session::{PeerStatus, Session};
use crate::wire::Cease;

/// A node that announces routes to its peers.
///
/// Dropping it is what a restart looks like: connections end without a word, and peers with graceful restart keep the
/// routes until a speaker is there again or their patience ends. [`withdraw`](Self::withdraw) makes them forget.
#[derive(Debug)]
pub struct Speaker {
    identity: Arc<Identity>,
    peers: BTreeMap<String, Running>,
    /// None: not known yet, and no peer is told that it has everything.
    routes: Option<Vec<Route>>,
    door: Arc<Door>,
    listeners: Vec<Listener>,
}

/// A peer's task.
#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Speaker {
    /// A speaker without peers and routes. Needs a tokio runtime.
    ///
    /// # Errors
    /// The identity cannot work, or an address to listen on is taken.
    pub fn start(identity: Identity) -> Result<Self, StartError> {
        identity.validate()?;
        let door = Arc::new(Door::default());
        let listen = |address: &_| Listener::start(*address, Arc::clone(&door));
        let listeners = identity.listen.iter().map(listen).collect::<Result<Vec<_>, _>>()?;
        let identity = Arc::new(identity);
        Ok(Self { identity, peers: BTreeMap::new(), routes: None, door, listeners })
    }

    /// Makes these the peers: sessions of those that did not change are not touched, those that are not among them are
    /// told so.
    ///
    /// # Errors
    /// One of them cannot work; then nothing is changed.
    pub fn set_peers(&mut self, peers: Vec<Peer>) -> Result<(), Invalid> {
        self.check(&peers)?;
        let names: BTreeSet<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
        let gone: Vec<String> =
            self.peers.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        for name in gone {
            self.end(&name, Cease::PeerDeconfigured);
        }
        let changed =
            |peer: &Peer| self.peers.get(&peer.name).is_none_or(|running| running.shared.peer() != peer);
        let changed: Vec<Peer> = peers.into_iter().filter(changed).collect();
        for peer in &changed {
            let before = self.end(&peer.name, Cease::OtherConfigurationChange);
            self.peers.insert(peer.name.clone(), self.run(peer.clone(), before));
        }
        self.open_doors();
        Ok(())
    }

    /// Makes these the routes that peers are told. Until the first call no peer is told that it has everything, so that
    /// it keeps what it had before a restart.
    ///
    /// # Errors
    /// One of them cannot be told; then nothing is changed.
    pub fn set_routes(&mut self, routes: Vec<Route>) -> Result<(), Invalid> {
        routes.iter().try_for_each(Route::validate)?;
        for (name, running) in &self.peers {
            running.shared.session().set_routes(desired(&routes, name));
            running.shared.news.notify_one();
        }
        self.routes = Some(routes);
        Ok(())
    }

    /// All peers as they are now, by name.
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        self.peers.values().map(|running| running.shared.session().status(now, wall)).collect()
    }

    /// Ends all sessions so that peers forget the routes, and tells their operators why. Returns when they know, or
    /// after a few seconds.
    pub async fn withdraw(mut self, message: &str) {
        self.listeners.clear();
        let mut ending = JoinSet::new();
        for running in self.peers.values_mut() {
            running.shared.stop(Cease::AdministrativeShutdown, message);
            ending.extend(running.task.take());
        }
        ending.join_all().await;
    }

    fn check(&self, peers: &[Peer]) -> Result<(), Invalid> {
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeMap::new());
        for peer in peers {
            peer.validate(&self.identity)?;
            let invalid = |field, reason| Err(Invalid::Peer { peer: peer.name.clone(), field, reason });
            if !names.insert(&peer.name) {
                return invalid("name", "another peer has it: rename one of them".to_owned());
            }
            if let Some(other) = addresses.insert((peer.peer_address, peer.peer_port), &peer.name) {
                return invalid("peerAddress", format!("peer {other} has it, too: remove one of them"));
            }
        }
        Ok(())
    }

    /// Ends a peer's session; its task, which goes on until the peer knows.
    fn end(&mut self, name: &str, why: Cease) -> Option<JoinHandle<()>> {
        let mut running = self.peers.remove(name)?;
        running.shared.stop(why, "");
        running.task.take()
    }

    /// Starts a peer's task, after another one.
    fn run(&self, peer: Peer, before: Option<JoinHandle<()>>) -> Running {
        let seed = RandomState::new().hash_one(&peer.name);
        let name = peer.name.clone();
        let mut session = Session::new(Arc::clone(&self.identity), peer.clone(), seed, Instant::now());
        if let Some(routes) = &self.routes {
            session.set_routes(desired(routes, &name));
        }
        // Here and not in the task: who stops it before that begins must find it started.
        session.start(Instant::now());
        let (incoming, connections) = mpsc::channel(INCOMING_WAITING);
        let shared = Arc::new(Shared::new(peer, Arc::clone(&self.identity), session, incoming));
        let task = Some(tokio::spawn(peer::run(Arc::clone(&shared), connections, before)));
        Running { shared, task }
    }

    /// Lets in whom the peers are, with their keys.
    fn open_doors(&self) {
        let peers = || self.peers.values().map(|running| &running.shared);
        self.door.set(peers().map(|shared| (shared.peer().peer_address, Arc::clone(shared))).collect());
        for listener in &self.listeners {
            for (peer, err) in listener.set_keys(peers().map(|shared| shared.peer())) {
                tracing::warn!(peer, %err, "the peer cannot connect: setting its TCP MD5 key failed");
            }
        }
    }
}

/// Connections of one peer that may wait for its task.
const INCOMING_WAITING: usize = 4;
