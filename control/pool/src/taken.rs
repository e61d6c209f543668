//! Which addresses services have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_model::{Family, Name, Service, ServiceKey};

use crate::number::{self, Each};
use crate::runs::Runs;
use crate::service::{Clash, SHARERS_MAX, fit};

/// Who has an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder<'a> {
    pub(crate) key: &'a ServiceKey,
    /// `None`: nobody can tell what it is like, and so who could share with it.
    pub(crate) service: Option<&'a Service>,
}

/// Every address that somebody has.
#[derive(Debug, Default)]
pub(crate) struct Taken<'a> {
    holders: BTreeMap<IpAddr, Vec<Holder<'a>>>,
    runs: Each<Runs>,
    /// Addresses of services with a sharing key.
    by_key: BTreeMap<&'a Name, BTreeSet<IpAddr>>,
}

impl<'a> Taken<'a> {
    pub(crate) fn add(&mut self, addr: IpAddr, holder: Holder<'a>) {
        let holders = self.holders.entry(addr).or_default();
        if holders.iter().any(|known| known.key == holder.key) {
            return;
        }
        holders.push(holder);
        let number = number::of(addr);
        self.runs.of_mut(Family::of(addr)).insert(number, number);
        if let Some(key) = sharing_key(&holder) {
            self.by_key.entry(key).or_default().insert(addr);
        }
    }

    pub(crate) fn remove(&mut self, addr: IpAddr, service: &ServiceKey) {
        let Some(holders) = self.holders.get_mut(&addr) else { return };
        let Some(at) = holders.iter().position(|holder| holder.key == service) else { return };
        let gone = holders.remove(at);
        if let Some(key) = sharing_key(&gone)
            && !holders.iter().any(|holder| sharing_key(holder) == Some(key))
            && let Some(addrs) = self.by_key.get_mut(key)
        {
            addrs.remove(&addr);
        }
        if holders.is_empty() {
            self.holders.remove(&addr);
            self.runs.of_mut(Family::of(addr)).remove(number::of(addr));
        }
    }

    pub(crate) fn holders(&self, addr: IpAddr) -> &[Holder<'a>] {
        self.holders.get(&addr).map_or(&[], Vec::as_slice)
    }

    /// Every address that somebody has.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.holders.keys().copied()
    }

    pub(crate) fn runs(&self, family: Family) -> &Runs {
        self.runs.of(family)
    }

    /// The first holder of an address that a service cannot share it with, and why.
    pub(crate) fn clash(&self, addr: IpAddr, service: &Service) -> Option<(&'a ServiceKey, Clash)> {
        let others = self.holders(addr).iter().filter(|holder| *holder.key != service.key);
        let mut clashes = others.filter_map(|holder| {
            let fits = holder.service.ok_or(Clash::Key).and_then(|other| fit(service, other));
            fits.err().map(|clash| (holder.key, clash))
        });
        let full = || self.holders(addr).get(SHARERS_MAX - 1).map(|last| (last.key, Clash::Many));
        clashes.next().or_else(full)
    }

    /// Addresses of a family that services with this sharing key have, in order.
    pub(crate) fn shared(&self, key: &Name, family: Family) -> impl Iterator<Item = IpAddr> {
        let addrs = self.by_key.get(key).into_iter().flatten().copied();
        addrs.filter(move |addr| Family::of(*addr) == family)
    }
}

fn sharing_key<'a>(holder: &Holder<'a>) -> Option<&'a Name> {
    holder.service?.load_balancer.as_ref()?.sharing_key.as_ref()
}
