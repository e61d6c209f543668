//! Which service owns an address and port.
//!
//! Two services may name one IP, port and protocol (load balancer and external addresses, or a mistake). The
//! owner is the older one, then the first by `namespace/name`: the same on every node, whatever came first.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use portolan_model::{Protocol, ServiceKey, Timestamp};

/// What is claimed. An unspecified address stands for NodePort, in each family on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Claim {
    pub(crate) addr: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

/// Who claims it. The smallest is the owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    age: Age,
    service: ServiceKey,
}

/// When a service was created; without a time it counts as the youngest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age(u64);

impl Default for Age {
    fn default() -> Self {
        Self::of(None)
    }
}

impl Age {
    pub(crate) fn of(created: Option<Timestamp>) -> Self {
        Self(created.map_or(u64::MAX, Timestamp::digits))
    }
}

/// Nearly every claim has one claimant, which costs no allocation.
#[derive(Debug)]
struct Claimants {
    owner: Claimant,
    #[expect(clippy::box_collection, reason = "a third of the size: there is one for every frontend")]
    others: Option<Box<Vec<Claimant>>>,
}

/// All claims of all services.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_claim: HashMap<Claim, Claimants, RandomState>,
    /// How many claims have more than one claimant.
    contested: usize,
}

impl Claims {
    /// Makes room for `more` claims.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.by_claim.reserve(more);
    }

    /// Adds a claim. If that changes the owner, everybody who claims it goes to `affected`.
    pub(crate) fn add(
        &mut self,
        claim: Claim,
        service: &ServiceKey,
        age: Age,
        affected: &mut BTreeSet<ServiceKey>,
    ) {
        let mut newcomer = Claimant { age, service: service.clone() };
        let claimants = match self.by_claim.entry(claim) {
            Entry::Vacant(entry) => {
                entry.insert(Claimants { owner: newcomer, others: None });
                return;
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        let wins = newcomer < claimants.owner;
        if wins {
            std::mem::swap(&mut claimants.owner, &mut newcomer);
        }
        self.contested += usize::from(claimants.others.is_none());
        claimants.others.get_or_insert_default().push(newcomer);
        if wins {
            affected.extend(claimants.all().cloned());
        }
    }

    /// Removes a claim. If that changes the owner, everybody who still claims it goes to `affected`.
    pub(crate) fn remove(
        &mut self,
        claim: &Claim,
        service: &ServiceKey,
        affected: &mut BTreeSet<ServiceKey>,
    ) {
        let Some(claimants) = self.by_claim.get_mut(claim) else { return };
        let owned = claimants.owner.service == *service;
        let Some(others) = &mut claimants.others else {
            if owned {
                self.by_claim.remove(claim);
            }
            return;
        };
        if owned {
            let heir = others.iter().enumerate().min_by_key(|(_, other)| *other).map(|(at, _)| at);
            // The list is dropped below when it becomes empty, so there is an heir.
            let Some(at) = heir else { return };
            claimants.owner = others.swap_remove(at);
        } else {
            others.retain(|other| other.service != *service);
        }
        if others.is_empty() {
            claimants.others = None;
            self.contested -= 1;
        }
        if owned {
            affected.extend(claimants.all().cloned());
        }
    }

    /// The service that owns a claim of `service`, if it is another.
    pub(crate) fn owner_before(&self, claim: &Claim, service: &ServiceKey) -> Option<&ServiceKey> {
        // The usual cluster has no conflict at all: no look-up then.
        if self.contested == 0 {
            return None;
        }
        let owner = &self.by_claim.get(claim)?.owner.service;
        (owner != service).then_some(owner)
    }

    /// The service that owns a claim.
    pub(crate) fn owner(&self, claim: &Claim) -> Option<&ServiceKey> {
        self.by_claim.get(claim).map(|claimants| &claimants.owner.service)
    }

    /// Everybody who claims a port of certain addresses. Walks all claims: only for rare changes.
    pub(crate) fn claimants_of(&self, wanted: impl Fn(IpAddr) -> bool, affected: &mut BTreeSet<ServiceKey>) {
        for (_, claimants) in self.by_claim.iter().filter(|(claim, _)| wanted(claim.addr)) {
            affected.extend(claimants.all().cloned());
        }
    }
}

impl Claimants {
    fn all(&self) -> impl Iterator<Item = &ServiceKey> {
        let others = self.others.iter().flat_map(|others| others.iter());
        std::iter::once(&self.owner).chain(others).map(|claimant| &claimant.service)
    }
}
