//! From objects and the record to who has what.

mod give;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use portolan_model::{Family, Name, ServiceKey, ServiceType, Store};

use crate::blocked::Blocked;
use crate::outcome::{Outcome, reason};
use crate::pools::Pools;
use crate::service::Ours;
use crate::taken::{Holder, Taken};

/// What was given: addresses by service. All that has to outlive the process.
pub type Record = BTreeMap<ServiceKey, Vec<IpAddr>>;

/// Which services are ours, and which addresses nobody may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The `loadBalancerClass` that is ours.
    pub class: Name,
    /// Services without a class are ours as well.
    pub is_default: bool,
    /// Ranges of cluster addresses.
    pub service_cidrs: Vec<IpNetwork>,
    /// Addresses in a service's own status were written by its author, and are the service's as long as they stand
    /// there. Not so where we write them: at an API server.
    pub document_addresses: bool,
}

/// Decides who has which address.
#[derive(Clone, Debug)]
pub struct Allocator {
    settings: Settings,
}

impl Allocator {
    /// An allocator with these settings; it remembers nothing.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Who has which address, from the objects of `store` and what was given before.
    ///
    /// Services in `unreadable` may exist though they are not among the objects: their documents cannot be read. They
    /// keep what they have.
    ///
    /// The same arguments give the same outcome, and its record with the same objects gives it again. New addresses
    /// are given to the older service first, then by `namespace/name`, and always the lowest that is free.
    #[must_use]
    pub fn allocate(&self, store: &Store, record: &Record, unreadable: &BTreeSet<ServiceKey>) -> Outcome {
        let pools = Pools::new(store);
        let blocked = Blocked::new(&self.settings.service_cidrs, store, &pools);
        let mut run =
            Run { pools, blocked, taken: Taken::default(), services: Vec::new(), unknown: Vec::new() };
        run.keep(store, record, unreadable, &self.settings);
        // What somebody gave up for an address that it asked for may be what an older service waits for; and who still lacks
        // something is told why as it is in the end.
        while run.give_all() {}
        run.report()
    }
}

/// One allocation, as far as it has come.
struct Run<'a> {
    pools: Pools<'a>,
    blocked: Blocked,
    taken: Taken<'a>,
    /// Ours, the oldest first.
    services: Vec<Having<'a>>,
    /// Services that cannot be read, and what they have.
    unknown: Vec<(&'a ServiceKey, &'a [IpAddr])>,
}

/// A service and what it has.
struct Having<'a> {
    ours: Ours<'a>,
    /// What it was given, in order.
    given: Vec<IpAddr>,
    /// What its own document says that it has.
    own: &'a [IpAddr],
    /// What it should have and does not.
    lacks: Vec<Lack>,
}

impl Having<'_> {
    fn addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let all = self.given.iter().chain(self.own).copied();
        all.filter(move |addr| Family::of(*addr) == family)
    }

    /// Whether it has an address of a family.
    fn has(&self, family: Family) -> bool {
        self.addresses(family).next().is_some()
    }
}

/// What a service does not get, and why.
struct Lack {
    /// One of [`reason`].
    reason: &'static str,
    message: String,
}

impl Lack {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn refused(message: impl Into<String>) -> Self {
        Self::new(reason::REQUEST_REFUSED, message)
    }
}

impl<'a> Run<'a> {
    /// Takes over what services have, before anybody gets something new.
    fn keep(
        &mut self,
        store: &'a Store,
        record: &'a Record,
        unreadable: &BTreeSet<ServiceKey>,
        settings: &Settings,
    ) {
        for (key, entry) in store.services() {
            let own = if settings.document_addresses { entry.own_ingress_ips() } else { &[] };
            match Ours::new(key, entry, settings, record) {
                Some(ours) => self.keep_ours(ours, record.get(key).map_or(&[], Vec::as_slice), own),
                None => {
                    let is_load_balancer = entry
                        .service
                        .as_ref()
                        .is_some_and(|service| service.kind == ServiceType::LoadBalancer);
                    // Somebody else gave it these.
                    let theirs = if is_load_balancer { entry.own_ingress_ips() } else { &[] };
                    theirs.iter().for_each(|addr| self.taken.add(*addr, Holder { key, service: None }));
                }
            }
        }
        for (key, given) in record {
            let is_there = store.service(key).is_some_and(|entry| entry.service.is_some());
            if !is_there && unreadable.contains(key) {
                given.iter().for_each(|addr| self.taken.add(*addr, Holder { key, service: None }));
                self.unknown.push((key, given));
            }
        }
        self.services.sort_by(|a, b| a.ours.rank().cmp(&b.ours.rank()));
    }

    /// A family that the service gave up takes its address along, as its cluster address. Where nobody says which
    /// families there are, all stay.
    fn keep_ours(&mut self, ours: Ours<'a>, given: &[IpAddr], own: &'a [IpAddr]) {
        let families = &ours.wish.families;
        let stays = |addr: &&IpAddr| families.is_empty() || families.contains(&Family::of(**addr));
        let given: BTreeSet<IpAddr> = given.iter().filter(stays).copied().collect();
        let holder = Holder { key: ours.key, service: Some(ours.service) };
        given.iter().chain(own).for_each(|addr| self.taken.add(*addr, holder));
        let given = given.into_iter().collect();
        self.services.push(Having { ours, given, own, lacks: Vec::new() });
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
