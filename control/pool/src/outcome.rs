//! What an allocation says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portolan_model::{Name, ServiceKey};

use crate::Record;

/// Who has what, and what is to be said about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Every service that is ours, and those that nobody knows to be gone.
    pub services: BTreeMap<ServiceKey, Assignment>,
    /// Every pool.
    pub pools: BTreeMap<Name, PoolReport>,
}

impl Outcome {
    /// What has to be remembered.
    #[must_use]
    pub fn record(&self) -> Record {
        let given = |assignment: &Assignment| -> Vec<IpAddr> {
            assignment.addresses.iter().filter(|it| it.given).map(|it| it.ip).collect()
        };
        let services = self.services.iter().map(|(key, assignment)| (key.clone(), given(assignment)));
        services.filter(|(_, given)| !given.is_empty()).collect()
    }
}

/// What a service has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Its addresses, IPv4 before IPv6, in order.
    pub addresses: Vec<Assigned>,
    /// What is so of it; each kind once, in the order of [`condition`].
    pub conditions: Vec<Condition>,
}

/// An address that a service has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The address.
    pub ip: IpAddr,
    /// The pool that it is of now.
    pub pool: Option<Name>,
    /// The service asks for it.
    pub requested: bool,
    /// Other services have it as well.
    pub shared: bool,
    /// It was given, by this allocation or an earlier one.
    pub given: bool,
    /// It stands in the service's own document.
    pub own: bool,
}

/// Something that is so or is not so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// One of [`condition`].
    pub kind: &'static str,
    /// Whether it is so.
    pub status: bool,
    /// One of [`reason`].
    pub reason: &'static str,
    /// For people: what it is, and what to do.
    pub message: String,
}

/// What conditions are about.
pub mod condition {
    /// Of a service: whether it has an address of every family that it should have.
    pub const GIVEN: &str = "portolan.dev/AddressesGiven";
    /// Of a service: it keeps an address that it would not be given today.
    pub const KEPT: &str = "portolan.dev/AddressesKept";
    /// Of a service: it shares an address with another one, and they do not fit together.
    pub const SHARING: &str = "portolan.dev/SharingConflict";
    /// Of a pool: whether services get addresses of it.
    pub const READY: &str = "Ready";
    /// Of a pool: all addresses of a family are in use.
    pub const EXHAUSTED: &str = "Exhausted";
    /// Of a pool: some of its addresses are never given.
    pub const LEFT_OUT: &str = "AddressesLeftOut";
}

/// Why something is so, in one word.
pub mod reason {
    /// All is as it should be.
    pub const GIVEN: &str = "Given";
    /// One family is missing, which the service allows.
    pub const SINGLE_STACK: &str = "SingleStack";
    /// No pool is for this service.
    pub const NO_POOL: &str = "NoPool";
    /// Pools for this service have no address left.
    pub const POOLS_EXHAUSTED: &str = "PoolsExhausted";
    /// An address or pool that is asked for cannot be had.
    pub const REQUEST_REFUSED: &str = "RequestRefused";
    /// A request means nothing.
    pub const REQUEST_UNREADABLE: &str = "RequestUnreadable";
    /// Nobody says which families the service has.
    pub const NO_FAMILY: &str = "NoFamily";
    /// The service is being deleted.
    pub const TERMINATING: &str = "Terminating";
    /// The service's document cannot be read.
    pub const DOCUMENT_UNREADABLE: &str = "DocumentUnreadable";
    /// The address is of no pool.
    pub const NOT_IN_A_POOL: &str = "NotInAPool";
    /// The address's pool is not for this service.
    pub const NOT_SELECTED: &str = "NotSelected";
    /// The address is somebody else's: a node's, a pod's, a service's inside of the cluster.
    pub const RESERVED: &str = "Reserved";
    /// Services on one address do not fit together.
    pub const SHARING_CONFLICT: &str = "SharingConflict";
    /// The pool is in use.
    pub const READY: &str = "Ready";
    /// Another pool has addresses of it.
    pub const OVERLAP: &str = "Overlap";
    /// No address is left.
    pub const ALL_IN_USE: &str = "AllInUse";
}

/// What is to be said about a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolReport {
    /// Its IPv4 addresses, if it has any.
    pub ipv4: Option<Count>,
    /// Its IPv6 addresses, if it has any.
    pub ipv6: Option<Count>,
    /// What is so of it; each kind once, in the order of [`condition`].
    pub conditions: Vec<Condition>,
}

/// Addresses of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All that may be given: without those that are somebody else's. At most `u128::MAX`.
    pub total: u128,
    /// Those that services have.
    pub used: u128,
    /// Those that are left.
    pub free: u128,
}
