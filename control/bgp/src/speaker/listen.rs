//! Taking peers' connections.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use super::option;
use super::peer::Shared;
use crate::config::{Invalid, Password, Peer};

/// Why there is no speaker.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity cannot work.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// An address is taken or not there.
    #[error("listening for BGP on {address}: {source}; is another BGP speaker running on this node?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Who may come in, by address.
#[derive(Debug, Default)]
pub(super) struct Door(Mutex<BTreeMap<IpAddr, Arc<Shared>>>);

impl Door {
    pub(super) fn set(&self, peers: BTreeMap<IpAddr, Arc<Shared>>) {
        *self.lock() = peers;
    }

    fn find(&self, address: IpAddr) -> Option<Arc<Shared>> {
        self.lock().get(&address).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Arc<Shared>>> {
        // Nothing in here is ever half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port that peers connect to. Dropping it closes the port.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Arc<TcpListener>,
    keys: Mutex<BTreeMap<IpAddr, Password>>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    pub(super) fn start(address: SocketAddr, door: Arc<Door>) -> Result<Self, StartError> {
        let socket = listen(address).map_err(|source| StartError::Listen { address, source })?;
        let socket = Arc::new(socket);
        let task = tokio::spawn(accept(Arc::clone(&socket), door));
        Ok(Self { socket, keys: Mutex::default(), task })
    }

    /// Sets the keys of peers of the socket's family, and removes those of others; what failed, by peer.
    pub(super) fn set_keys<'a>(&self, peers: impl Iterator<Item = &'a Peer>) -> Vec<(String, io::Error)> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let family = self.socket.local_addr().map(|address| address.is_ipv4());
        let mut failed = Vec::new();
        let mut wanted = BTreeMap::new();
        for peer in peers.filter(|peer| family.as_ref().is_ok_and(|v4| *v4 == peer.peer_address.is_ipv4())) {
            let Some(password) = &peer.password else { continue };
            let address = peer.peer_address;
            if keys.get(&address) != Some(password)
                && let Err(error) = option::set_key(self.socket.as_fd(), address, Some(password))
            {
                failed.push((peer.name.clone(), error));
            }
            wanted.insert(address, password.clone());
        }
        for address in keys.keys().filter(|address| !wanted.contains_key(address)) {
            // One that the kernel does not have need not be removed.
            let _ = option::set_key(self.socket.as_fd(), *address, None);
        }
        *keys = wanted;
        failed
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        option::set_only_v6(socket.as_fd())?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(socket: Arc<TcpListener>, door: Arc<Door>) {
    loop {
        match socket.accept().await {
            Ok((stream, from)) => match door.find(from.ip()) {
                // A full queue: the peer tries again.
                Some(shared) => drop(shared.incoming.try_send(stream)),
                None => tracing::debug!(%from, "a BGP connection of nobody's was closed"),
            },
            Err(err) => {
                tracing::warn!(%err, "taking a BGP connection failed");
                // As a rule there are too many open files: at once it would fail again.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Connections that may wait to be taken.
const BACKLOG: u32 = 64;

const PAUSE: Duration = Duration::from_millis(100);
