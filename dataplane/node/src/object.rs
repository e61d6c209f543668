//! The eBPF object: creating or reusing the pinned tables, loading the programs.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::Array;
use aya::maps::MapData;
use aya::programs::{CgroupSockAddr, Program, SchedClassifier};
use aya::{Btf, Ebpf, EbpfLoader};
use portolan_abi::{FLOW_WAYS, FlowHash};

use crate::maps::{MapError, Mapped, Tables, name};
use crate::sockets::{HeldSockets, Transport};
use crate::sys;

/// The object, built with this crate.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PORTOLAN_OBJECT"));

/// The path of the object that this build contains; for tools that inspect it.
pub const OBJECT_PATH: &str = env!("PORTOLAN_OBJECT");

/// Sizes of the tables, in elements. They count at creation; a pinned table keeps its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Services: one for each port and family.
    pub services: u32,
    /// Slots of all rings together; rounded up to whole lines of 16.
    pub slots: u32,
    /// Backends of each family.
    pub backends: u32,
    /// Frontends and address marks of each family.
    pub frontends: u32,
    /// Source ranges of each family.
    pub sources: u32,
    /// Clients of each family that services with session affinity remember.
    pub clients: u32,
    /// Entries of flows of each family; two for each flow. There is room for twice as many, so that hardly one has to make
    /// room for another before there are so many.
    pub flows: u32,
}

impl Default for Sizes {
    /// For a large cluster: 131,072 service ports, a million slots. About 130 MB, all of it touched lazily but
    /// for the hash tables.
    fn default() -> Self {
        Self {
            services: 1 << 17,
            slots: 1 << 20,
            backends: 1 << 19,
            frontends: 1 << 18,
            sources: 1 << 14,
            clients: 1 << 16,
            flows: 1 << 18,
        }
    }
}

impl Sizes {
    /// For tests and small machines.
    #[must_use]
    pub const fn small() -> Self {
        Self {
            services: 1024,
            slots: 16_384,
            backends: 4096,
            frontends: 4096,
            sources: 1024,
            clients: 4096,
            flows: 4096,
        }
    }
}

/// The object could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// aya or the kernel refused the object as a whole.
    #[error("loading the eBPF object: {}", .0)]
    Object(#[source] Box<aya::EbpfError>),
    /// A program is missing or was refused by the verifier.
    #[error("loading program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// aya's error, with the end of the verifier's log.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A program that was loaded cannot be run.
    #[error("preparing program {program} to run: {source}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not tell which network namespace this is.
    #[error("asking for the cookie of the node's network namespace: {source}")]
    Cookie {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's type information could not be read.
    #[error("reading the kernel's BTF: it needs CONFIG_DEBUG_INFO_BTF=y")]
    Types {
        /// Why.
        #[source]
        source: aya::BtfError,
    },
    /// The object has no such program: object and loader are of different builds.
    #[error("the eBPF object has no program named {program}: build again")]
    NoProgram {
        /// Its name.
        program: &'static str,
    },
    /// A table could not be opened.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The directory of pins could not be made.
    #[error("making the directory of pins {}: is a bpf file system mounted there? (`mount -t bpf bpf /sys/fs/bpf`)", path.display())]
    Pins {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Every classifier of the object.
pub const PROGRAMS: [&str; 6] =
    ["from_pod", "to_pod", "from_uplink", "to_uplink", "to_service", "to_loopback"];

/// The programs of the overlay device, which not every node has.
pub const OVERLAY_PROGRAMS: [&str; 2] = ["from_overlay", "to_overlay"];

/// Every socket program of the object: those that send to backends first, then those that translate answers.
pub const SOCKET_PROGRAMS: [&str; 8] =
    ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];

/// The program that lists connected sockets, and the kernel's iterator that runs it.
const fn lister(transport: Transport) -> (&'static str, &'static str) {
    match transport {
        Transport::Udp => ("held_sockets", "udp"),
        Transport::Tcp => ("held_connections", "tcp"),
    }
}

/// Table of one element: the cookie of the node's network namespace. Of this object alone, so it is not pinned.
const HOST_NETNS: &str = "HOST_NETNS";

/// The loaded object.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads all programs. With a directory of pins, tables found there are used as they are and others are
    /// created and pinned; without, all tables are new and die with the object.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(pins: Option<&Path>, sizes: Sizes) -> Result<Self, LoadError> {
        let mut loader = EbpfLoader::new();
        let names: Vec<String> = name::all().collect();
        if let Some(pins) = pins {
            std::fs::create_dir_all(pins)
                .map_err(|source| LoadError::Pins { path: pins.to_owned(), source })?;
            for name in &names {
                loader.map_pin_path(name, pins.join(name));
            }
        }
        let wanted = wanted_sizes(&sizes);
        for (name, size) in &wanted {
            let existing = existing_size(pins, name);
            if let Some(existing) = existing.filter(|existing| existing != size) {
                tracing::warn!(
                    table = name,
                    size = existing,
                    wanted = size,
                    "a table keeps its size while it is pinned: to change it, run `portolan uninstall --keep-state` first"
                );
            }
            loader.map_max_entries(name, existing.unwrap_or(*size));
        }
        let ebpf = loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?;
        let mut object = Self { ebpf };
        // A pinned table of another shape is named here; the verifier would only quote instructions.
        object.tables().map_err(|error| error.below(pins.unwrap_or(Path::new(""))))?;
        object.spread_flows()?;
        for program in PROGRAMS {
            object
                .classifier(program)?
                .load()
                .map_err(|source| LoadError::Program { program, source: Box::new(source) })?;
        }
        Ok(object)
    }

    /// Loads the programs of the overlay device too.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load_overlay(&mut self) -> Result<(), LoadError> {
        for program in OVERLAY_PROGRAMS {
            self.classifier(program)?
                .load()
                .map_err(|source| LoadError::Program { program, source: Box::new(source) })?;
        }
        Ok(())
    }

    /// Loads the socket programs too, for a node in the calling thread's network namespace.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load_sockets(&mut self) -> Result<(), LoadError> {
        let cookie = sys::netns_cookie().map_err(|source| LoadError::Cookie { source })?;
        let table = |source| MapError::Aya { table: HOST_NETNS.to_owned(), source: Box::new(source) };
        let missing = || MapError::Missing { path: HOST_NETNS.into() };
        let map = self.ebpf.map_mut(HOST_NETNS).ok_or_else(missing)?;
        let mut host = Array::<_, u64>::try_from(map).map_err(table)?;
        host.set(0, cookie, 0).map_err(table)?;
        for program in SOCKET_PROGRAMS {
            self.socket_program(program)?
                .load()
                .map_err(|source| LoadError::Program { program, source: Box::new(source) })?;
        }
        Ok(())
    }

    /// Loads the program that lists connected sockets, which kernels may refuse that take the others; once.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn held_sockets(&mut self, transport: Transport) -> Result<HeldSockets, LoadError> {
        let (program, iterator) = lister(transport);
        self.held_by(transport, program, iterator)
    }

    /// By the kernel's iterator of this name.
    fn held_by(
        &mut self,
        transport: Transport,
        name: &'static str,
        iterator: &str,
    ) -> Result<HeldSockets, LoadError> {
        let types = Btf::from_sys_fs().map_err(|source| LoadError::Types { source })?;
        let Some(Program::Iter(program)) = self.ebpf.program_mut(name) else {
            return Err(LoadError::NoProgram { program: name });
        };
        let refused = |source| LoadError::Program { program: name, source: Box::new(source) };
        program.load(iterator, &types).map_err(refused)?;
        let program = program.fd().map_err(refused)?;
        HeldSockets::new(transport, program.as_fd())
            .map_err(|source| LoadError::Attach { program: name, source })
    }

    /// A socket program by name.
    pub(crate) fn socket_program(&mut self, program: &'static str) -> Result<&mut CgroupSockAddr, LoadError> {
        match self.ebpf.program_mut(program) {
            Some(Program::CgroupSockAddr(found)) => Ok(found),
            _ => Err(LoadError::NoProgram { program }),
        }
    }

    /// A program by name.
    ///
    /// # Errors
    /// [`LoadError::NoProgram`].
    pub fn classifier(&mut self, program: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        match self.ebpf.program_mut(program) {
            Some(Program::SchedClassifier(classifier)) => Ok(classifier),
            _ => Err(LoadError::NoProgram { program }),
        }
    }

    /// The object's tables, opened a second time: they live as long as either.
    ///
    /// # Errors
    /// A table cannot be opened or mapped.
    pub fn tables(&self) -> Result<Tables, MapError> {
        Tables::from(&|name| self.table(name))
    }

    /// Says how flows are spread over their tables, if nobody has yet.
    fn spread_flows(&self) -> Result<(), MapError> {
        let size = |name: &str| -> Result<u32, MapError> {
            let aya = |error| MapError::Aya { table: name.to_owned(), source: Box::new(error) };
            Ok(self.table(name)?.info().map_err(aya)?.max_entries())
        };
        // As many as both tables have, should one of them have been lost and made anew.
        let buckets = size("FLOWS_V4")?.min(size("FLOWS_V6")?);
        let mut record = Mapped::<FlowHash>::new(name::FLOW_HASH, self.table(name::FLOW_HASH)?)?;
        if record.read(0).buckets == buckets {
            return Ok(());
        }
        let secret = sys::random()
            .map_err(|error| MapError::kernel("choosing a secret for", name::FLOW_HASH, error))?;
        record.write(0, FlowHash { secret, buckets });
        Ok(())
    }

    /// Tables whose pin is gone or leads to another one: the next agent would begin with an empty one.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn lost_pins(&self, pins: &Path) -> Result<Vec<String>, MapError> {
        let mut lost = Vec::new();
        for name in name::all() {
            let own = self.table_id(&name)?;
            let pinned = MapData::from_pin(pins.join(&name)).and_then(|map| Ok(map.info()?.id()));
            if !pinned.is_ok_and(|pinned| pinned == own) {
                lost.push(name);
            }
        }
        Ok(lost)
    }

    /// Pins a table anew.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn pin_again(&self, pins: &Path, table: &str) -> Result<(), MapError> {
        let fail = |source| MapError::kernel("pinning", table, source);
        let path = pins.join(table);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        std::fs::create_dir_all(pins).map_err(fail)?;
        let map = self.table(table)?;
        sys::pin(map.fd().as_fd(), &path).map_err(fail)
    }

    fn table(&self, name: &str) -> Result<MapData, MapError> {
        let aya = |error| MapError::Aya { table: name.to_owned(), source: Box::new(error) };
        MapData::from_id(self.table_id(name)?).map_err(aya)
    }

    fn table_id(&self, name: &str) -> Result<u32, MapError> {
        let map = self.ebpf.map(name).map(map_data).ok_or_else(|| MapError::Missing { path: name.into() })?;
        let aya = |error| MapError::Aya { table: name.to_owned(), source: Box::new(error) };
        Ok(map.info().map_err(aya)?.id())
    }
}

fn map_data(map: &aya::maps::Map) -> &MapData {
    use aya::maps::Map;
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => data,
        // The object defines no other kind; `Tables` would refuse it by its shape.
        _ => unreachable!(
            "the object has arrays, hash and prefix tables, a ring buffer and socket storage only"
        ),
    }
}

/// Names of the tables whose size can be chosen, with the wanted one.
fn wanted_sizes(sizes: &Sizes) -> BTreeMap<&'static str, u32> {
    let buckets = sizes.flows.div_ceil(FLOW_WAYS as u32 / 2).max(1);
    BTreeMap::from([
        (name::SERVICES, sizes.services),
        (name::SLAB, sizes.slots.div_ceil(portolan_abi::SLAB_LINE as u32)),
        ("BACKENDS_V4", sizes.backends),
        ("BACKENDS_V6", sizes.backends),
        ("FRONTENDS_V4", sizes.frontends),
        ("FRONTENDS_V6", sizes.frontends),
        ("SOURCES_V4", sizes.sources),
        ("SOURCES_V6", sizes.sources),
        ("AFFINITY_V4", sizes.clients),
        ("AFFINITY_V6", sizes.clients),
        ("FLOWS_V4", buckets),
        ("FLOWS_V6", buckets),
    ])
}

/// The size of a pinned table. A program can only be loaded with the size its table has.
fn existing_size(pins: Option<&Path>, name: &str) -> Option<u32> {
    let map = MapData::from_pin(pins?.join(name)).ok()?;
    map.info().ok().map(|info| info.max_entries())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_balanced_where_the_kernel_refuses_to_list_them() {
        let mut object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
        object.load_sockets().unwrap();
        let (program, _) = lister(Transport::Udp);
        let refused = object.held_by(Transport::Udp, program, "no_such_list").unwrap_err().to_string();
        assert!(refused.contains(program), "{refused}");
        for program in SOCKET_PROGRAMS {
            object.socket_program(program).unwrap().fd().expect("it is loaded");
        }
        for transport in [Transport::Udp, Transport::Tcp] {
            object.held_sockets(transport).expect("a later try works").read().unwrap();
        }
    }
}
