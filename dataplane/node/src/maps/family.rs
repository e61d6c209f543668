//! The tables that exist once for each address family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::MapData;
use portolan_abi::{
    Affinity, AffinityKey, Backend, Endpoint, FlowHash, Fragment, FragmentKey, Frontend, FrontendKey,
    PrefixKey, Realm, SourceKey, Words,
};
use portolan_core::{Family, V4, V6};

use super::{FlowTable, Hash, MapError, Mapped};

/// A family, as user space needs it.
pub trait NodeFamily: Family<Addr: Send + Sync + std::hash::Hash + Ord> {
    /// What its tables' names end with.
    const SUFFIX: &'static str;
    /// An address of this family; `None` if it is of the other.
    fn of(addr: IpAddr) -> Option<Self::Addr>;
    /// The address as the standard library has it.
    fn ip(addr: Self::Addr) -> IpAddr;
}

impl NodeFamily for V4 {
    const SUFFIX: &'static str = "V4";

    fn of(addr: IpAddr) -> Option<Words<1>> {
        match addr {
            IpAddr::V4(addr) => Some(Words::<1>::from_octets(addr.octets())),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(addr: Words<1>) -> IpAddr {
        Ipv4Addr::from(addr.octets()).into()
    }
}

impl NodeFamily for V6 {
    const SUFFIX: &'static str = "V6";

    fn of(addr: IpAddr) -> Option<Words<4>> {
        match addr {
            IpAddr::V6(addr) => Some(Words::<4>::from_octets(addr.octets())),
            IpAddr::V4(_) => None,
        }
    }

    fn ip(addr: Words<4>) -> IpAddr {
        Ipv6Addr::from(addr.octets()).into()
    }
}

/// One family's tables.
#[derive(Debug)]
pub struct FamilyTables<F: NodeFamily> {
    /// Frontends and address marks.
    pub frontends: Hash<FrontendKey<F::Addr>, Frontend>,
    /// Backends by index.
    pub backends: Mapped<Backend<F::Addr>>,
    /// Pods of this node by address.
    pub endpoints: Hash<F::Addr, Endpoint>,
    /// Prefixes of the cluster.
    pub realms: Hash<PrefixKey<F::Addr>, Realm>,
    /// Source ranges of services; the value means nothing.
    pub sources: Hash<SourceKey<F::Addr>, u32>,
    /// Backends that clients of services with session affinity had last.
    pub affinity: Hash<AffinityKey<F::Addr>, Affinity>,
    /// Packets that were cut.
    pub fragments: Hash<FragmentKey<F::Addr>, Fragment<F::Addr>>,
    /// Flows.
    pub flows: FlowTable<F::Addr>,
}

impl<F: NodeFamily> FamilyTables<F> {
    pub(super) fn from(
        get: &dyn Fn(&str) -> Result<MapData, MapError>,
        hash: FlowHash,
    ) -> Result<Self, MapError> {
        let name = |table: &str| format!("{table}_{}", F::SUFFIX);
        let [frontends, backends, endpoints, realms, sources, affinity, fragments, flows] =
            super::name::PER_FAMILY.map(|table| (name(table), get(&name(table))));
        Ok(Self {
            frontends: Hash::new(&frontends.0, frontends.1?)?,
            backends: Mapped::new(&backends.0, backends.1?)?,
            endpoints: Hash::new(&endpoints.0, endpoints.1?)?,
            realms: Hash::new(&realms.0, realms.1?)?,
            sources: Hash::new(&sources.0, sources.1?)?,
            affinity: Hash::new(&affinity.0, affinity.1?)?,
            fragments: Hash::new(&fragments.0, fragments.1?)?,
            flows: FlowTable::new(&flows.0, flows.1?, hash)?,
        })
    }
}
