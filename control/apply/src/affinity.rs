//! Session affinity: clients forget backends that left.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, MapError, Tables};

use crate::applier::Applier;

type Set = HashSet<u32, RandomState>;

impl Applier {
    /// Removes memories of backends that are no longer in their client's set, and all of services that have no
    /// affinity. A remembered backend would otherwise be used until its record is gone.
    pub(crate) fn forget(&mut self) -> Result<(), MapError> {
        if self.outdated.is_empty() {
            return Ok(());
        }
        forget(&self.tables.v4, &self.tables, &self.outdated)?;
        forget(&self.tables.v6, &self.tables, &self.outdated)?;
        self.outdated.clear();
        Ok(())
    }

    /// Has everything that is remembered looked at by the next [`forget`](Self::forget).
    pub(crate) fn outdate_all(&mut self) -> Result<(), MapError> {
        let (v4, v6) = (self.tables.v4.affinity.dump()?, self.tables.v6.affinity.dump()?);
        self.outdated.extend(v4.iter().map(|(key, _)| key.service()));
        self.outdated.extend(v6.iter().map(|(key, _)| key.service()));
        Ok(())
    }
}

fn forget<F: NodeFamily>(family: &FamilyTables<F>, tables: &Tables, outdated: &Set) -> Result<(), MapError> {
    let mut members: HashMap<u32, Set, RandomState> = HashMap::default();
    for (key, memory) in family.affinity.dump()? {
        if !outdated.contains(&key.service()) {
            continue;
        }
        let set = members.entry(key.set).or_insert_with(|| members_of(tables, key.set));
        // A flow opened since the dump may have renewed the memory with a member.
        let current =
            || family.affinity.get(&key).map(|now| now.is_some_and(|it| it.backend == memory.backend));
        if !set.contains(&memory.backend) && current()? {
            family.affinity.remove(&key)?;
        }
    }
    Ok(())
}

/// The backends of a set as [`portolan_abi::AffinityKey`] names it; none if the service has no affinity.
fn members_of(tables: &Tables, set: u32) -> Set {
    let index = set / 2;
    if index >= tables.services.len() {
        return Set::default();
    }
    let service = tables.services.read(index);
    let ring = if set % 2 == 1 { service.local } else { service.cluster };
    if service.affinity == 0 {
        return Set::default();
    }
    tables.slab.slice(ring.offset(), ring.len()).into_iter().collect()
}
