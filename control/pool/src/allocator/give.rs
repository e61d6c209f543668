//! Giving services what they lack.

use std::net::IpAddr;

use portolan_model::{Family, LoadBalancer};

use super::{Lack, Run};
use crate::number;
use crate::outcome::reason;
use crate::pools::Pool;
use crate::service::Ours;
use crate::taken::Holder;

/// What a service gets of a family.
struct Gets {
    family: Family,
    addr: IpAddr,
    /// It takes the place of what the service was given before.
    replaces: bool,
}

impl Run<'_> {
    /// Gives every service what it lacks and can have. Whether that changed something.
    pub(super) fn give_all(&mut self) -> bool {
        let mut changed = false;
        for at in 0..self.services.len() {
            changed |= self.give(at);
        }
        changed
    }

    fn give(&mut self, at: usize) -> bool {
        let (gets, lacks) = self.decide(at);
        let changed = !gets.is_empty();
        for Gets { family, addr, replaces } in gets {
            if replaces {
                self.release(at, family);
            }
            let having = &mut self.services[at];
            let holder = Holder { key: having.ours.key, service: Some(having.ours.service) };
            self.taken.add(addr, holder);
            having.given.push(addr);
            having.given.sort_unstable();
        }
        self.services[at].lacks = lacks;
        changed
    }

    /// Gives up what a service was given of a family.
    fn release(&mut self, at: usize, family: Family) {
        let having = &mut self.services[at];
        let gone: Vec<IpAddr> = having.given.extract_if(.., |addr| Family::of(*addr) == family).collect();
        // What stands in its document as well stays its own.
        for addr in gone.iter().filter(|addr| !having.own.contains(addr)) {
            self.taken.remove(*addr, having.ours.key);
        }
    }

    /// What a service gets, and what it should have and does not get.
    fn decide(&self, at: usize) -> (Vec<Gets>, Vec<Lack>) {
        let having = &self.services[at];
        let wish = having.ours.wish;
        if let Some(lack) = obstacle(&having.ours) {
            let complete = wish.families.iter().all(|family| having.has(*family));
            // A service on its way out needs nothing.
            let matters = lack.reason != reason::TERMINATING || !complete;
            return (Vec::new(), if matters { vec![lack] } else { Vec::new() });
        }
        let (mut gets, mut lacks) = (Vec::new(), Vec::new());
        for family in wish.families.iter().copied() {
            match self.decide_family(at, family) {
                Ok(got) => gets.extend(got),
                Err(lack) => lacks.push(lack),
            }
        }
        if wish.require_dual_stack && !lacks.is_empty() {
            gets.retain(|gets| gets.replaces);
        }
        (gets, lacks)
    }

    /// `None`: it has what it should.
    fn decide_family(&self, at: usize, family: Family) -> Result<Option<Gets>, Lack> {
        let having = &self.services[at];
        let has = having.has(family);
        let mut requested = having.ours.wish.requested.iter().copied();
        match requested.find(|addr| Family::of(*addr) == family) {
            Some(addr) if having.addresses(family).any(|known| known == addr) => Ok(None),
            Some(addr) => match self.may_have(&having.ours, addr) {
                Ok(()) => Ok(Some(Gets { family, addr, replaces: has })),
                Err(why) => {
                    let kept = having.addresses(family).next();
                    let kept = kept.map(|addr| format!("; it keeps {addr}")).unwrap_or_default();
                    Err(Lack::refused(format!("{addr} is asked for and refused: {why}{kept}")))
                }
            },
            None if has => Ok(None),
            None => self.find(&having.ours, family).map(|addr| Some(Gets { family, addr, replaces: false })),
        }
    }

    /// Whether a service may have the address that it asks for. An annotation is no authority: pools decide.
    fn may_have(&self, ours: &Ours<'_>, addr: IpAddr) -> Result<(), String> {
        let Some(pool) = self.pools.of(addr) else {
            let mut overlapping = self.pools.overlapping().iter();
            return Err(match overlapping.find(|overlap| overlap.pool.contains(addr)) {
                Some(overlap) => {
                    let (name, older) = (overlap.pool.name(), &overlap.older);
                    format!("its pool {name} is not used because it overlaps pool {older}")
                }
                None => "it is in no pool: add it to one, or ask for another".to_owned(),
            });
        };
        if let Some(named) = ours.wish.pool.as_ref().filter(|named| *named != pool.name()) {
            return Err(format!("it is of pool {}, and the service asks for pool {named}", pool.name()));
        }
        if !ours.is_selected_by(pool.object) {
            return Err(not_selected(pool));
        }
        if let Some(whose) = self.blocked.whose(addr) {
            return Err(format!("it {whose}"));
        }
        match self.taken.clash(addr, ours.service) {
            None => Ok(()),
            Some((other, clash)) => Err(format!("service {other} has it, and {}", clash.text())),
        }
    }

    /// An address for a service that asks for none.
    fn find(&self, ours: &Ours<'_>, family: Family) -> Result<IpAddr, Lack> {
        let named = ours.wish.pool.as_ref();
        if let Some(name) = named {
            self.check_named(ours, name, family)?;
        }
        let wanted = |pool: &&Pool<'_>| match named {
            Some(name) => pool.name() == name,
            None => pool.object.auto_assign,
        };
        let usable = |pool: &&Pool<'_>| pool.has(family) && ours.is_selected_by(pool.object);
        let pools: Vec<&Pool<'_>> = self.pools.used().iter().filter(wanted).filter(usable).collect();
        if pools.is_empty() {
            let message = format!(
                "no pool with {family} addresses is for this service: add one, or see selectors and autoAssign"
            );
            return Err(Lack::new(reason::NO_POOL, message));
        }
        let found = self
            .shareable(ours, family, &pools)
            .or_else(|| pools.iter().find_map(|pool| self.free_in(pool, family)));
        found.ok_or_else(|| {
            let names: Vec<&str> = pools.iter().map(|pool| &**pool.name()).collect();
            let message = format!(
                "no {family} address is left in {}: add addresses, or delete a service that has one",
                names.join(", ")
            );
            Lack::new(reason::POOLS_EXHAUSTED, message)
        })
    }

    fn check_named(&self, ours: &Ours<'_>, name: &str, family: Family) -> Result<(), Lack> {
        let Some(pool) = self.pools.used().iter().find(|pool| **pool.name() == *name) else {
            let mut overlapping = self.pools.overlapping().iter();
            return Err(Lack::refused(match overlapping.find(|overlap| **overlap.pool.name() == *name) {
                Some(overlap) => {
                    format!("pool {name} is not used because it overlaps pool {}", overlap.older)
                }
                None => format!("pool {name} is asked for, and there is none of that name"),
            }));
        };
        if !ours.is_selected_by(pool.object) {
            return Err(Lack::refused(not_selected(pool)));
        }
        if !pool.has(family) {
            return Err(Lack::refused(format!("pool {name} is asked for, and has no {family} addresses")));
        }
        Ok(())
    }

    /// The lowest address of these pools that services with the same sharing key have and the service fits to, among the
    /// first of theirs.
    fn shareable(&self, ours: &Ours<'_>, family: Family, pools: &[&Pool<'_>]) -> Option<IpAddr> {
        let key = ours.wish.sharing_key.as_ref()?;
        let fits = |addr: &IpAddr| {
            let allowed = pools.iter().any(|pool| pool.contains(*addr)) && !self.blocked.contains(*addr);
            allowed && self.taken.clash(*addr, ours.service).is_none()
        };
        self.taken.shared(key, family).take(SHARED_LOOKED_AT).find(fits)
    }

    /// The lowest address of a pool that nobody has.
    fn free_in(&self, pool: &Pool<'_>, family: Family) -> Option<IpAddr> {
        let (taken, blocked) = (self.taken.runs(family), self.blocked.runs(family));
        let free = |(first, last): (u128, u128)| {
            let mut at = first;
            loop {
                let untaken = taken.next_absent(at).filter(|number| *number <= last)?;
                at = blocked.next_absent(untaken).filter(|number| *number <= last)?;
                if at == untaken {
                    return Some(number::addr(family, at));
                }
            }
        };
        pool.runs(family).find_map(free)
    }
}

/// Addresses with one sharing key that are looked at for a service. A key is meant for a handful of services; if
/// thousands had one and the same ports, each would look at the addresses of all.
const SHARED_LOOKED_AT: usize = 32;

/// Why a service gets nothing new at all.
fn obstacle(ours: &Ours<'_>) -> Option<Lack> {
    let wish = ours.wish;
    if wish.deleting {
        return Some(Lack::new(reason::TERMINATING, "the service is being deleted and gets nothing new"));
    }
    if let Some(invalid) = &wish.unreadable {
        return Some(Lack::new(reason::REQUEST_UNREADABLE, invalid.to_string()));
    }
    let few = match (wish.require_dual_stack, wish.families.len()) {
        (_, 0) => "the service has neither spec.ipFamilies nor a cluster address: write one of them",
        (true, 1) => {
            "ipFamilyPolicy is RequireDualStack, but the service has one family: add the other to spec.ipFamilies"
        }
        _ => return stranger(wish),
    };
    Some(Lack::new(reason::NO_FAMILY, few))
}

/// A request for a family that the service does not have: another address than that is not what was meant.
fn stranger(wish: &LoadBalancer) -> Option<Lack> {
    let addr = wish.requested.iter().find(|addr| !wish.families.contains(&Family::of(**addr)))?;
    let family = Family::of(*addr);
    Some(Lack::refused(format!(
        "{addr} is asked for, but the service has no {family}: add {family} to spec.ipFamilies, or ask for another address"
    )))
}

fn not_selected(pool: &Pool<'_>) -> String {
    format!(
        "pool {} is not for this service: its serviceSelector or namespaceSelector names others",
        pool.name()
    )
}
