//! Prefixes of the cluster: which addresses are inside, and which node has them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_abi::{PrefixKey, Realm, Words, realm_flag};
use portolan_core::{V4, V6};
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, MapError};
use portolan_plan as plan;

use crate::audit::Difference;

/// One family's prefixes, as they are written.
#[derive(Debug)]
pub(crate) struct Realms<F: NodeFamily> {
    written: BTreeMap<PrefixKey<F::Addr>, Realm>,
}

impl<F: NodeFamily> Default for Realms<F> {
    fn default() -> Self {
        Self { written: BTreeMap::new() }
    }
}

impl<F: NodeFamily> Realms<F> {
    /// Takes over what the table has.
    pub(crate) fn adopt(&mut self, tables: &FamilyTables<F>) -> Result<(), MapError> {
        self.written = tables.realms.dump()?.into_iter().collect();
        Ok(())
    }

    /// Makes the table have these and no others. What is new comes before anything goes.
    pub(crate) fn set(&mut self, tables: &FamilyTables<F>, realms: &[plan::Realm]) -> Result<(), MapError> {
        let wanted = wanted::<F>(realms);
        for (key, realm) in &wanted {
            if self.written.get(key) != Some(realm) {
                tables.realms.insert(key, realm)?;
                self.written.insert(*key, *realm);
            }
        }
        let gone: Vec<_> = self.written.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            tables.realms.remove(&key)?;
            self.written.remove(&key);
        }
        Ok(())
    }
}

/// A family's prefixes as the table has them.
fn wanted<F: NodeFamily>(realms: &[plan::Realm]) -> BTreeMap<PrefixKey<F::Addr>, Realm> {
    let record = |realm: &plan::Realm| {
        let addr = F::of(realm.prefix.network())?;
        Some((PrefixKey { bits: u32::from(realm.prefix.prefix()), addr }, value(realm.node)))
    };
    realms.iter().filter_map(record).collect()
}

fn value(node: Option<IpAddr>) -> Realm {
    let inside = realm_flag::INSIDE;
    let Some(node) = node else { return Realm { node: Words::ZERO, flags: inside } };
    if let Some(Words([word])) = V4::of(node) {
        return Realm { node: Words([word, 0, 0, 0]), flags: inside | realm_flag::NODE_V4 };
    }
    match V6::of(node) {
        Some(node) => Realm { node, flags: inside | realm_flag::NODE_V6 },
        None => Realm { node: Words::ZERO, flags: inside },
    }
}

/// What is known of a prefix, for people.
fn text(realm: &Realm) -> String {
    if realm.flags & realm_flag::NODE_V4 != 0 {
        format!("by the overlay at {}", V4::ip(Words([realm.node.0[0]])))
    } else if realm.flags & realm_flag::NODE_V6 != 0 {
        format!("by the overlay at {}", V6::ip(realm.node))
    } else {
        "inside".to_owned()
    }
}

/// What of a family's prefixes is not as it should be, by the kernel's own dump.
pub(crate) fn differences<F: NodeFamily>(
    tables: &FamilyTables<F>,
    realms: &[plan::Realm],
) -> Result<Vec<Difference>, MapError> {
    let (wanted, there) =
        (wanted::<F>(realms), tables.realms.dump()?.into_iter().collect::<BTreeMap<_, _>>());
    let keys: BTreeSet<_> = wanted.keys().chain(there.keys()).collect();
    let different = keys.into_iter().filter(|key| wanted.get(key) != there.get(key));
    let difference = |key: &PrefixKey<F::Addr>| Difference {
        place: format!("prefix {}/{}", F::ip(key.addr), key.bits),
        desired: wanted.get(key).map(text),
        kernel: there.get(key).map(text),
    };
    Ok(different.map(difference).collect())
}
