//! The eBPF object: creating or reusing the pinned tables, loading the programs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use aya::programs::{Program, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

use crate::maps::{MapError, Tables, name};

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
    /// Entries of flows of each family; two for each flow.
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
    /// The object has no such program: object and loader are of different builds.
    #[error("the eBPF object has no classifier named {program}: build again")]
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
        for program in PROGRAMS {
            object
                .classifier(program)?
                .load()
                .map_err(|source| LoadError::Program { program, source: Box::new(source) })?;
        }
        Ok(object)
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

    fn table(&self, name: &str) -> Result<MapData, MapError> {
        let info =
            self.ebpf.map(name).map(map_data).ok_or_else(|| MapError::Missing { path: name.into() })?;
        let aya = |error| MapError::Aya { table: name.to_owned(), source: Box::new(error) };
        let id = info.info().map_err(aya)?.id();
        MapData::from_id(id).map_err(aya)
    }
}

fn map_data(map: &aya::maps::Map) -> &MapData {
    use aya::maps::Map;
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data) => data,
        // The object defines no other kind; `Tables` would refuse it by its shape.
        _ => unreachable!("the object has arrays, hash tables and prefix tables only"),
    }
}

/// Names of the tables whose size can be chosen, with the wanted one.
fn wanted_sizes(sizes: &Sizes) -> BTreeMap<&'static str, u32> {
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
        ("FLOWS_V4", sizes.flows),
        ("FLOWS_V6", sizes.flows),
    ])
}

/// The size of a pinned table. A program can only be loaded with the size its table has.
fn existing_size(pins: Option<&Path>, name: &str) -> Option<u32> {
    let map = MapData::from_pin(pins?.join(name)).ok()?;
    map.info().ok().map(|info| info.max_entries())
}
