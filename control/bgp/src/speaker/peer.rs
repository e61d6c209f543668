//! The task of one peer: carries out what its session wants, and tells it what happened.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::connection::{Connection, Event};
use super::socket;
use crate::config::{Identity, Peer};
use crate::session::{Initiator, LinkId, Output, Session, State};
use crate::wire::{Cease, Family};

/// What a peer's task shares with the speaker.
#[derive(Debug)]
pub(super) struct Shared {
    peer: Peer,
    identity: Arc<Identity>,
    session: Mutex<Session>,
    /// The session was changed from outside.
    pub(super) news: Notify,
    /// The peer's connections.
    pub(super) incoming: mpsc::Sender<TcpStream>,
}

impl Shared {
    pub(super) fn new(
        peer: Peer,
        identity: Arc<Identity>,
        session: Session,
        incoming: mpsc::Sender<TcpStream>,
    ) -> Self {
        Self { peer, identity, session: Mutex::new(session), news: Notify::new(), incoming }
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Never held across a wait.
    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        // A session that panicked half-way would be wrong, not unsafe; its peer ends it soon.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self, why: Cease, message: &str) {
        self.session().stop(Instant::now(), why, message);
        self.news.notify_one();
    }
}

/// Keeps a session until it is stopped and the peer knows; `before` is the task of the peer's former settings.
pub(super) async fn run(
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<TcpStream>,
    before: Option<JoinHandle<()>>,
) {
    if let Some(before) = before {
        // One that panicked is over as well.
        let _ = before.await;
    }
    let (connections, closing) = (BTreeMap::new(), JoinSet::new());
    let mut task = Task { shared, incoming, connections, connecting: None, closing };
    loop {
        task.carry_out();
        if task.shared.session().state() == State::Idle {
            break;
        }
        task.wait().await;
    }
    while task.closing.join_next().await.is_some() {}
}

type Connecting = Pin<Box<dyn Future<Output = Result<TcpStream, String>> + Send>>;

struct Task {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<TcpStream>,
    connections: BTreeMap<LinkId, Connection>,
    connecting: Option<Connecting>,
    /// Connections that the session has forgotten.
    closing: JoinSet<()>,
}

impl Task {
    /// Does all that the session wants now.
    fn carry_out(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut session = shared.session();
        loop {
            while let Some(output) = session.poll_output() {
                self.output(output);
            }
            // Routes wait while the peer has not taken what was sent before.
            if self.connections.values().all(Connection::is_idle) {
                session.send_routes(Instant::now());
            }
            match session.poll_output() {
                Some(output) => self.output(output),
                None => break,
            }
        }
        if session.state() == State::Idle {
            self.connecting = None;
        }
    }

    fn output(&mut self, output: Output) {
        let peer = &self.shared.peer;
        match output {
            Output::Connect => {
                let identity = Arc::clone(&self.shared.identity);
                self.connecting = Some(Box::pin(socket::connect(identity, peer.clone())));
            }
            Output::Send { link, bytes } => {
                if let Some(connection) = self.connections.get_mut(&link) {
                    connection.send(&bytes);
                }
            }
            Output::Close { link } => {
                if let Some(connection) = self.connections.remove(&link) {
                    self.closing.spawn(connection.finish());
                }
            }
            Output::Up(negotiated) => {
                let families: Vec<&str> = negotiated.families.iter().copied().map(Family::name).collect();
                tracing::info!(
                    peer = %peer.name,
                    address = %peer.peer_address,
                    families = families.join(" "),
                    hold_time = negotiated.hold.unwrap_or_default().as_secs(),
                    "BGP session established"
                );
            }
            Output::Down(None) => tracing::info!(peer = %peer.name, "BGP session ended"),
            Output::Down(Some(err)) => tracing::warn!(peer = %peer.name, %err, "BGP session lost"),
        }
    }

    /// Waits until something happens, and tells the session.
    async fn wait(&mut self) {
        let stalled = self.first_stall();
        let timeout = self.shared.session().next_timeout();
        let next = [timeout, stalled.map(|(at, _)| at)].into_iter().flatten().min();
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            () = shared.news.notified() => {}
            () = until(next) => self.timeout(stalled),
            Some(stream) = self.incoming.recv() => self.adopt(stream, Initiator::Remote),
            result = outcome(&mut self.connecting) => self.connected(result),
            (link, event) = happening(&mut self.connections) => self.happened(link, event),
            Some(_) = self.closing.join_next() => {}
        }
    }

    /// When the connection that is stuck for longest is given up.
    fn first_stall(&self) -> Option<(Instant, LinkId)> {
        let stuck = self.connections.iter();
        stuck.filter_map(|(id, connection)| Some((connection.stuck_since()? + SEND_HOLD, *id))).min()
    }

    fn timeout(&self, stalled: Option<(Instant, LinkId)>) {
        let now = Instant::now();
        let mut session = self.shared.session();
        session.handle_timeout(now);
        if let Some((_, link)) = stalled.filter(|(at, _)| *at <= now) {
            session.stalled(now, link, SEND_HOLD);
        }
    }

    fn connected(&mut self, result: Result<TcpStream, String>) {
        self.connecting = None;
        match result {
            Ok(stream) => self.adopt(stream, Initiator::Local),
            Err(err) => {
                tracing::debug!(peer = %self.shared.peer.name, err, "connecting failed");
                self.shared.session().connect_failed(Instant::now(), err);
            }
        }
    }

    fn adopt(&mut self, stream: TcpStream, initiator: Initiator) {
        let (identity, peer) = (&self.shared.identity, &self.shared.peer);
        // Without a delay for small messages; a connection on which that cannot be set is dead already.
        let prepared = stream.set_nodelay(true).and_then(|()| match initiator {
            Initiator::Local => Ok(()),
            Initiator::Remote => socket::prepare(stream.as_fd(), identity, peer),
        });
        let local = prepared.and_then(|()| stream.local_addr());
        let now = Instant::now();
        match local {
            Ok(local) => {
                let link = self.shared.session().connected(now, initiator, local.ip().to_canonical());
                if let Some(link) = link {
                    self.connections.insert(link, Connection::new(stream));
                }
            }
            Err(error) if initiator == Initiator::Local => {
                self.shared.session().connect_failed(now, error.to_string());
            }
            Err(_) => {}
        }
    }

    fn happened(&mut self, link: LinkId, event: Event) {
        let now = Instant::now();
        match event {
            Event::Received(bytes) => self.shared.session().received(now, link, &bytes),
            Event::Sent => {}
            Event::Lost(reason) => self.shared.session().disconnected(now, link, reason),
        }
    }
}

/// Waits for a moment; for ever if there is none.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The end of connecting; never, if nothing is being connected.
async fn outcome(connecting: &mut Option<Connecting>) -> Result<TcpStream, String> {
    match connecting {
        Some(connecting) => connecting.await,
        None => std::future::pending().await,
    }
}

/// What happens first on any connection.
async fn happening(connections: &mut BTreeMap<LinkId, Connection>) -> (LinkId, Event) {
    std::future::poll_fn(|context| {
        for (link, connection) in connections.iter_mut() {
            if let Poll::Ready(event) = connection.poll(context) {
                return Poll::Ready((*link, event));
            }
        }
        Poll::Pending
    })
    .await
}

/// How long a peer may take no bytes (RFC 9687 §4).
const SEND_HOLD: Duration = Duration::from_secs(480);
