//! Pods of the node: where packets to their addresses go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_abi::Endpoint;
use portolan_core::{V4, V6};
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, MapError, Tables};

use super::Difference;

/// Compares the records of pods in the kernel with those that should be there: every address that differs.
///
/// # Errors
/// A table cannot be read.
pub fn audit_pods(
    tables: &Tables,
    wanted: &BTreeMap<IpAddr, Endpoint>,
) -> Result<BTreeMap<IpAddr, Difference>, MapError> {
    let mut kernel = BTreeMap::new();
    read::<V4>(&tables.v4, &mut kernel)?;
    read::<V6>(&tables.v6, &mut kernel)?;
    let addresses: BTreeSet<&IpAddr> = wanted.keys().chain(kernel.keys()).collect();
    let differences = addresses.into_iter().filter_map(|addr| {
        let (desired, kernel) = (wanted.get(addr), kernel.get(addr));
        let difference = || Difference {
            place: format!("pod {addr}"),
            desired: desired.map(text),
            kernel: kernel.map(text),
        };
        (desired != kernel).then(|| (*addr, difference()))
    });
    Ok(differences.collect())
}

fn read<F: NodeFamily>(
    family: &FamilyTables<F>,
    kernel: &mut BTreeMap<IpAddr, Endpoint>,
) -> Result<(), MapError> {
    kernel.extend(family.endpoints.dump()?.into_iter().map(|(addr, pod)| (F::ip(addr), pod)));
    Ok(())
}

fn text(pod: &Endpoint) -> String {
    let mac: Vec<String> =
        pod.mac.iter().flat_map(|word| word.to_ne_bytes()).map(|byte| format!("{byte:02x}")).collect();
    format!("interface {}, MAC {}, flags {:#x}", pod.ifindex, mac.join(":"), pod.flags)
}
