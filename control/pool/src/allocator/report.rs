//! What is to be said about services and pools.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portolan_model::{Family, Name, ServiceKey};

use super::{Having, Run};
use crate::number;
use crate::outcome::{Assigned, Assignment, Condition, Count, Outcome, PoolReport, condition, reason};
use crate::pools::{FAMILIES, Overlap, Pool};
use crate::service::{Ours, fit};

impl Run<'_> {
    pub(super) fn report(self) -> Outcome {
        let ranks: BTreeMap<&ServiceKey, &Ours<'_>> =
            self.services.iter().map(|having| (having.ours.key, &having.ours)).collect();
        let ours = self.services.iter().map(|having| {
            let conditions = [self.given(having), self.kept(having), self.sharing(having, &ranks)];
            let conditions = conditions.into_iter().flatten().collect();
            (having.ours.key.clone(), Assignment { addresses: self.addresses(having), conditions })
        });
        let unknown = self.unknown.iter().map(|(key, given)| ((*key).clone(), self.unreadable(given)));
        let services = ours.chain(unknown).collect();
        let used = self.used();
        let pools = self.pools.used().iter().map(|pool| (pool.name().clone(), self.pool(pool, &used)));
        let overlapping = self.pools.overlapping().iter().map(overlapping);
        Outcome { services, pools: pools.chain(overlapping).collect() }
    }

    fn addresses(&self, having: &Having<'_>) -> Vec<Assigned> {
        let mut ips: Vec<IpAddr> = having.given.iter().chain(having.own).copied().collect();
        ips.sort_unstable();
        ips.dedup();
        let assigned = |ip: IpAddr| Assigned {
            ip,
            pool: self.pools.of(ip).map(|pool| pool.name().clone()),
            requested: having.ours.wish.requested.contains(&ip),
            shared: self.taken.holders(ip).len() > 1,
            given: having.given.contains(&ip),
            own: having.own.contains(&ip),
        };
        ips.into_iter().map(assigned).collect()
    }

    /// Whether it has what it should have.
    fn given(&self, having: &Having<'_>) -> Option<Condition> {
        let lacks = &having.lacks;
        let is_allowed = |reason| matches!(reason, reason::NO_POOL | reason::POOLS_EXHAUSTED);
        let has_one = FAMILIES.into_iter().any(|family| having.has(family));
        let is_enough = has_one
            && !having.ours.wish.require_dual_stack
            && lacks.iter().all(|lack| is_allowed(lack.reason));
        let (status, reason) = match lacks.first() {
            None => (true, reason::GIVEN),
            Some(_) if is_enough => (true, reason::SINGLE_STACK),
            Some(lack) => (false, lack.reason),
        };
        let message = match lacks.is_empty() {
            true => {
                join(having.given.iter().chain(having.own.iter().filter(|it| !having.given.contains(it))))
            }
            false => join(lacks.iter().map(|lack| &lack.message)),
        };
        Some(Condition { kind: condition::GIVEN, status, reason, message })
    }

    /// What it has and would not be given today.
    fn kept(&self, having: &Having<'_>) -> Option<Condition> {
        let why = |addr: &IpAddr| -> Option<(&'static str, String)> {
            if let Some(whose) = self.blocked.whose(*addr) {
                return Some((reason::RESERVED, format!("{addr} {whose}; give the service another address")));
            }
            let stays = "it stays until the service goes or asks for another";
            match self.pools.of(*addr) {
                None => Some((reason::NOT_IN_A_POOL, format!("{addr} is in no pool that is used; {stays}"))),
                Some(pool) if !having.ours.is_selected_by(pool.object) => {
                    let message = format!("{addr} is of pool {}, which is for others; {stays}", pool.name());
                    Some((reason::NOT_SELECTED, message))
                }
                Some(_) => None,
            }
        };
        let said: Vec<_> = having.given.iter().filter_map(why).collect();
        let (reason, _) = said.first()?;
        let message = join(said.iter().map(|(_, message)| message));
        Some(Condition { kind: condition::KEPT, status: true, reason, message })
    }

    /// Of services on one address that do not fit together, the younger ones are told: ports are the older one's.
    fn sharing(&self, having: &Having<'_>, ranks: &BTreeMap<&ServiceKey, &Ours<'_>>) -> Option<Condition> {
        let ours = &having.ours;
        let clash = |addr: &IpAddr| {
            let others = self.taken.holders(*addr).iter().filter(|holder| holder.key != ours.key);
            let older =
                others.filter_map(|holder| ranks.get(holder.key)).filter(|it| it.rank() < ours.rank());
            let mut clashes = older.filter_map(|older| {
                let clash = fit(ours.service, older.service).err()?;
                Some(format!("{addr} is also service {}'s, which {}", older.key, clash.text()))
            });
            clashes.next()
        };
        let said: Vec<String> = having.given.iter().chain(having.own).filter_map(clash).collect();
        let is_said = !said.is_empty();
        is_said.then(|| Condition {
            kind: condition::SHARING,
            status: true,
            reason: reason::SHARING_CONFLICT,
            message: join(said),
        })
    }

    /// A service that may still be there.
    fn unreadable(&self, given: &[IpAddr]) -> Assignment {
        let assigned = |ip: &IpAddr| Assigned {
            ip: *ip,
            pool: self.pools.of(*ip).map(|pool| pool.name().clone()),
            requested: false,
            shared: self.taken.holders(*ip).len() > 1,
            given: true,
            own: false,
        };
        let message =
            "no document of the service can be read, and one that cannot may be its: it keeps what it has";
        let conditions = vec![Condition {
            kind: condition::GIVEN,
            status: true,
            reason: reason::DOCUMENT_UNREADABLE,
            message: message.to_owned(),
        }];
        Assignment { addresses: given.iter().map(assigned).collect(), conditions }
    }

    /// How many addresses of each pool and family services have, and how many of those nobody should.
    fn used(&self) -> BTreeMap<(&Name, Family), (u128, u128)> {
        let mut used: BTreeMap<(&Name, Family), (u128, u128)> = BTreeMap::new();
        for addr in self.taken.addresses() {
            let Some(pool) = self.pools.of(addr) else { continue };
            let (all, reserved) = used.entry((pool.name(), Family::of(addr))).or_default();
            *all += 1;
            *reserved += u128::from(self.blocked.contains(addr));
        }
        used
    }

    fn pool(&self, pool: &Pool<'_>, used: &BTreeMap<(&Name, Family), (u128, u128)>) -> PoolReport {
        let count = |family: Family| {
            let blocked = pool.runs(family).fold(0_u128, |sum, (first, last)| {
                sum.saturating_add(self.blocked.runs(family).count_within(first, last))
            });
            let total = pool.size(family).saturating_sub(blocked);
            let (used, reserved) = used.get(&(pool.name(), family)).copied().unwrap_or_default();
            pool.has(family).then(|| Count { total, used, free: total.saturating_sub(used - reserved) })
        };
        let counts = FAMILIES.map(count);
        let conditions = [Some(ready()), exhausted(counts), self.left_out(pool)];
        let [ipv4, ipv6] = counts;
        PoolReport { ipv4, ipv6, conditions: conditions.into_iter().flatten().collect() }
    }

    fn left_out(&self, pool: &Pool<'_>) -> Option<Condition> {
        let firsts = FAMILIES.into_iter().flat_map(|family| {
            let common = pool.runs(family).flat_map(move |(first, last)| {
                self.blocked.runs(family).within(first, last).map(|(first, _)| first)
            });
            common.map(move |number| number::addr(family, number))
        });
        let said: Vec<String> = firsts
            .filter_map(|addr| Some(format!("{addr} {}", self.blocked.whose(addr)?)))
            .take(LEFT_OUT_NAMED)
            .collect();
        let message = format!("some addresses are never given: {}", said.join("; "));
        (!said.is_empty()).then_some(Condition {
            kind: condition::LEFT_OUT,
            status: true,
            reason: reason::RESERVED,
            message,
        })
    }
}

/// Addresses of a pool that are named as left out; of each run the first.
const LEFT_OUT_NAMED: usize = 3;

fn ready() -> Condition {
    let message = "services are given addresses of it".to_owned();
    Condition { kind: condition::READY, status: true, reason: reason::READY, message }
}

fn exhausted(counts: [Option<Count>; 2]) -> Option<Condition> {
    let empty = FAMILIES.into_iter().zip(counts).filter(|(_, count)| count.is_some_and(|it| it.free == 0));
    let families: Vec<&str> = empty.map(|(family, _)| family.as_str()).collect();
    (!families.is_empty()).then(|| Condition {
        kind: condition::EXHAUSTED,
        status: true,
        reason: reason::ALL_IN_USE,
        message: format!("no {} address is left: add some", families.join(" and no ")),
    })
}

fn overlapping(overlap: &Overlap<'_>) -> (Name, PoolReport) {
    let message = format!(
        "nothing new is given of it: {} is of the older pool {} as well; take it out of one of them",
        overlap.at, overlap.older
    );
    let not_ready = Condition { kind: condition::READY, status: false, reason: reason::OVERLAP, message };
    (overlap.pool.name().clone(), PoolReport { conditions: vec![not_ready], ..PoolReport::default() })
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join("; ")
}
