//! Source ranges of load balancer addresses. A service's ranges are in the table before the first of its frontends
//! asks for them, and leave it after the last has stopped.

use std::collections::{BTreeSet, HashMap, HashSet};

use foldhash::fast::RandomState;
use ipnetwork::IpNetwork;
use portolan_abi::SourceKey;
use portolan_node::maps::{Hash, NodeFamily};
use portolan_node::{FamilyTables, MapError};

/// Ranges by service index.
type Ranges<A> = HashMap<u32, BTreeSet<SourceKey<A>>, RandomState>;

/// One family's source ranges: what the table has, what it shall have.
#[derive(Debug)]
pub(crate) struct Sources<F: NodeFamily> {
    written: Ranges<F::Addr>,
    wanted: Ranges<F::Addr>,
    /// Services whose ranges may differ.
    touched: HashSet<u32, RandomState>,
    capacity: usize,
}

impl<F: NodeFamily> Sources<F> {
    pub(crate) fn new(table: &Hash<SourceKey<F::Addr>, u32>) -> Self {
        let capacity = table.capacity() as usize;
        Self { written: Ranges::default(), wanted: Ranges::default(), touched: HashSet::default(), capacity }
    }

    /// Takes over what the table has, until [`touch_all`](Self::touch_all).
    pub(crate) fn adopt(&mut self, tables: &FamilyTables<F>) -> Result<(), MapError> {
        for (key, _) in tables.sources.dump()? {
            self.written.entry(key.service).or_default().insert(key);
        }
        Ok(())
    }

    /// Whether that many more ranges fit.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        more == 0 || self.written.values().map(BTreeSet::len).sum::<usize>() + more <= self.capacity
    }

    /// A service admits these, and nobody else.
    pub(crate) fn want(&mut self, service: u32, ranges: &[IpNetwork]) {
        let key = |range: &IpNetwork| {
            Some(SourceKey::new(u32::from(range.prefix()), service, F::of(range.network())?))
        };
        self.wanted.insert(service, ranges.iter().filter_map(key).collect());
        self.touched.insert(service);
    }

    /// A service admits everybody, or is no more.
    pub(crate) fn drop(&mut self, service: u32) {
        if self.wanted.remove(&service).is_some() {
            self.touched.insert(service);
        }
    }

    /// Has all that was adopted looked at by the next [`remove`](Self::remove).
    pub(crate) fn touch_all(&mut self) {
        self.touched.extend(self.written.keys());
    }

    /// Writes what is missing. Before frontends are written.
    pub(crate) fn add(&mut self, tables: &FamilyTables<F>) -> Result<(), MapError> {
        for service in &self.touched {
            let Some(wanted) = self.wanted.get(service) else { continue };
            let written = self.written.entry(*service).or_default();
            for key in wanted {
                if !written.contains(key) {
                    tables.sources.insert(key, &1)?;
                    written.insert(*key);
                }
            }
        }
        Ok(())
    }

    /// Removes what is not wanted. After frontends were written.
    pub(crate) fn remove(&mut self, tables: &FamilyTables<F>) -> Result<(), MapError> {
        for service in &self.touched {
            let wanted = self.wanted.get(service);
            let Some(written) = self.written.get_mut(service) else { continue };
            let gone: Vec<_> =
                written.iter().filter(|key| wanted.is_none_or(|it| !it.contains(key))).copied().collect();
            for key in gone {
                tables.sources.remove(&key)?;
                written.remove(&key);
            }
            if written.is_empty() {
                self.written.remove(service);
            }
        }
        self.touched.clear();
        Ok(())
    }
}
