//! The kernel's tables, typed. One file for each kind of table, one place for each name.

mod family;
mod flows;
mod hash;
mod mapped;

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, PerCpuArray};
use portolan_abi::{Config, Ring, Service, counter};
use portolan_core::{V4, V6};

pub use family::{FamilyTables, NodeFamily};
pub use flows::{Entry, FlowTable, Visit};
pub use hash::Hash;
pub use mapped::{Mapped, Set};

/// Names of the tables that exist once, as the object and the pins have them.
pub mod name {
    /// The node: one [`portolan_abi::Config`].
    pub const CONFIG: &str = "CONFIG";
    /// How flows are spread over their tables: one [`portolan_abi::FlowHash`].
    pub const FLOW_HASH: &str = "FLOW_HASH";
    /// Packets by outcome.
    pub const COUNTERS: &str = "COUNTERS";
    /// Services by index.
    pub const SERVICES: &str = "SERVICES_ALL";
    /// Rings of backend indexes.
    pub const SLAB: &str = "SLAB";
    /// Which packets are watched: one [`portolan_abi::Trace`].
    pub const TRACE: &str = "TRACE";
    /// The watched packets.
    pub const EVENTS: &str = "EVENTS";
    /// What a connected socket remembers: one [`portolan_abi::Peer`].
    pub const SOCKET_PEER: &str = "SOCKET_PEER";
    /// What an unconnected UDP socket remembers.
    pub const SOCKET_PEERS: &str = "SOCKET_PEERS";
    /// Pieces of packets that wait for the first one.
    pub const EARLY: &str = "EARLY";
    /// Of every family, with `_V4` or `_V6` behind it.
    pub const PER_FAMILY: [&str; 8] =
        ["FRONTENDS", "BACKENDS", "ENDPOINTS", "REALMS", "SOURCES", "AFFINITY", "FRAGMENTS", "FLOWS"];

    /// All names.
    pub fn all() -> impl Iterator<Item = String> {
        let single =
            [CONFIG, FLOW_HASH, COUNTERS, SERVICES, SLAB, TRACE, EVENTS, SOCKET_PEER, SOCKET_PEERS, EARLY];
        let single = single.into_iter().map(str::to_owned);
        let family = PER_FAMILY.into_iter().flat_map(|name| ["V4", "V6"].map(|v| format!("{name}_{v}")));
        single.chain(family)
    }
}

/// A table could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Nothing is pinned at the path.
    #[error("no table at {}: is the agent installed on this node? `portolan agent` creates it", path.display())]
    Missing {
        /// Where it was expected.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("{doing} table {table}: {source}")]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// Name of the table.
        table: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A pin of another shape than this version's.
    #[error("table {table} has {found} where {expected} was expected: remove {} and start again", path.display())]
    Shape {
        /// Name of the table.
        table: String,
        /// What was found.
        found: String,
        /// What this version has.
        expected: String,
        /// The pin.
        path: PathBuf,
    },
    /// The table is full.
    #[error("table {table} is full: raise its size and start the agent again")]
    Full {
        /// Name of the table.
        table: String,
    },
    /// aya's own error.
    #[error("opening table {table}")]
    Aya {
        /// Name of the table.
        table: String,
        /// aya's error.
        #[source]
        source: Box<aya::maps::MapError>,
    },
}

impl MapError {
    pub(crate) fn kernel(doing: &'static str, table: &str, source: io::Error) -> Self {
        if source.raw_os_error() == Some(libc::E2BIG) {
            return Self::Full { table: table.to_owned() };
        }
        Self::Kernel { doing, table: table.to_owned(), source }
    }

    /// Completes the path of a pin, of which only the name was known.
    pub(crate) fn below(mut self, pins: &Path) -> Self {
        if let Self::Shape { path, .. } = &mut self {
            *path = pins.join(&*path);
        }
        self
    }
}

/// Every table of the node.
pub struct Tables {
    /// What the node is: element 0.
    pub config: Mapped<Config>,
    /// Services by index.
    pub services: Mapped<Service>,
    /// All rings as one flat array of backend indexes.
    pub slab: Mapped<u32>,
    /// IPv4.
    pub v4: FamilyTables<V4>,
    /// IPv6.
    pub v6: FamilyTables<V6>,
    counters: PerCpuArray<MapData, u64>,
}

impl Tables {
    /// Opens the tables pinned in a directory.
    ///
    /// # Errors
    /// A table is missing, of another shape, or cannot be mapped.
    pub fn open(pins: &Path) -> Result<Self, MapError> {
        Self::from(&|name| pinned(pins, name)).map_err(|error| error.below(pins))
    }

    /// Takes the tables from wherever `get` finds them by name.
    pub(crate) fn from(get: &dyn Fn(&str) -> Result<MapData, MapError>) -> Result<Self, MapError> {
        let counters = aya::maps::Map::PerCpuArray(get(name::COUNTERS)?);
        let counters = PerCpuArray::try_from(counters)
            .map_err(|error| MapError::Aya { table: name::COUNTERS.to_owned(), source: Box::new(error) })?;
        let hash = Mapped::new(name::FLOW_HASH, get(name::FLOW_HASH)?)?.read(0);
        Ok(Self {
            config: Mapped::new(name::CONFIG, get(name::CONFIG)?)?,
            services: Mapped::new(name::SERVICES, get(name::SERVICES)?)?,
            slab: Mapped::flat(name::SLAB, get(name::SLAB)?)?,
            v4: FamilyTables::from(get, hash)?,
            v6: FamilyTables::from(get, hash)?,
            counters,
        })
    }

    /// Whether a backend is in one of a service's rings, by their indexes.
    #[must_use]
    pub fn draws(&self, service: u32, backend: u32) -> bool {
        if service >= self.services.len() {
            return false;
        }
        let service = self.services.read(service);
        let has = |ring: Ring| (0..ring.len()).any(|place| self.slab.read(ring.offset() + place) == backend);
        has(service.cluster) || has(service.local)
    }

    /// Packets by outcome, summed over all CPUs, in the order of [`counter::ALL`].
    ///
    /// # Errors
    /// The kernel refuses to read.
    pub fn counters(&self) -> Result<Vec<u64>, MapError> {
        let read = |outcome: &counter::Outcome| match self.counters.get(&outcome.index, 0) {
            Ok(values) => Ok(values.iter().sum()),
            Err(error) => Err(MapError::Aya { table: name::COUNTERS.to_owned(), source: Box::new(error) }),
        };
        counter::ALL.iter().map(read).collect()
    }
}

pub(crate) fn pinned(pins: &Path, name: &str) -> Result<MapData, MapError> {
    let path = pins.join(name);
    MapData::from_pin(&path).map_err(|error| {
        if path.exists() {
            MapError::Aya { table: name.to_owned(), source: Box::new(error) }
        } else {
            MapError::Missing { path }
        }
    })
}
