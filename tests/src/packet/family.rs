//! What tests need of an address family beyond what the node does.

use portolan_core::{V4, V6};
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, Tables};

/// A family under test.
pub trait Tested: NodeFamily {
    /// The bytes of a header, in packet order.
    fn header_bytes(header: Self::Header) -> Vec<u8>;
    /// Its half of the kernel's tables.
    fn tables(tables: &Tables) -> &FamilyTables<Self>;
    /// Its half of the kernel's tables.
    fn tables_mut(tables: &mut Tables) -> &mut FamilyTables<Self>;
}

impl Tested for V4 {
    fn header_bytes(header: [u32; 5]) -> Vec<u8> {
        header.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    fn tables(tables: &Tables) -> &FamilyTables<Self> {
        &tables.v4
    }

    fn tables_mut(tables: &mut Tables) -> &mut FamilyTables<Self> {
        &mut tables.v4
    }
}

impl Tested for V6 {
    fn header_bytes(header: [u32; 10]) -> Vec<u8> {
        header.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    fn tables(tables: &Tables) -> &FamilyTables<Self> {
        &tables.v6
    }

    fn tables_mut(tables: &mut Tables) -> &mut FamilyTables<Self> {
        &mut tables.v6
    }
}
