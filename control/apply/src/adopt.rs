//! Taking over what another agent wrote: the kernel's tables are the only memory.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use portolan_abi::backend_flag;
use portolan_core::Address;
use portolan_node::FamilyTables;
use portolan_node::maps::NodeFamily;

use crate::applier::{Applier, ApplyError};
use crate::family::{FamilyState, Use};

impl Applier {
    /// Reads the tables: frontends with the services they name, the rings of those, all backends.
    pub(crate) fn adopt(&mut self) -> Result<(), ApplyError> {
        let mut services: HashSet<u32, RandomState> = HashSet::default();
        frontends(&mut self.v4, &self.tables.v4, &mut services)?;
        frontends(&mut self.v6, &self.tables.v6, &mut services)?;
        services.retain(|index| *index < self.tables.services.len());
        self.v4.sources.adopt(&self.tables.v4)?;
        self.v6.sources.adopt(&self.tables.v6)?;
        self.v4.realms.adopt(&self.tables.v4)?;
        self.v6.realms.adopt(&self.tables.v6)?;
        backends(&mut self.v4, &self.tables.v4);
        backends(&mut self.v6, &self.tables.v6);
        for &index in &services {
            self.indexes.reserve(index);
            let service = self.tables.services.read(index);
            for ring in [service.cluster, service.local] {
                if !self.rings.adopt(ring, &self.tables.slab) {
                    // Its slots are another ring's as well. The service gets a ring of its own with the first
                    // apply; what it has now is not touched before.
                    tracing::error!(
                        service = index,
                        ?ring,
                        "ring overlaps another one: replaced at the next apply"
                    );
                }
            }
        }
        self.orphans = services;
        Ok(())
    }
}

fn frontends<F: NodeFamily>(
    state: &mut FamilyState<F>,
    tables: &FamilyTables<F>,
    services: &mut HashSet<u32, RandomState>,
) -> Result<(), ApplyError> {
    for (key, value) in tables.frontends.dump()? {
        let is_mark = key.port == 0 && key.proto == 0 && key.addr != F::Addr::UNSPECIFIED;
        if !is_mark {
            services.insert(value.service);
        }
        state.written.insert(key, value);
    }
    Ok(())
}

fn backends<F: NodeFamily>(state: &mut FamilyState<F>, tables: &FamilyTables<F>) {
    for index in 0..tables.backends.len() {
        let record = tables.backends.read(index);
        if record.flags & backend_flag::LIVE == 0 {
            continue;
        }
        state.indexes.reserve(index);
        let key = (record.addr, record.port);
        if let Some(twin) = state.backends.insert(key, Use { index, uses: 0 }) {
            // An agent that died between taking one index and giving the other back. One is enough, but rings may name
            // both until every service has got its own.
            state.twins.push(twin.index);
        }
    }
}
