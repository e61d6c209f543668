//! Pools in the order of their use, and which of them an address is of.

use std::net::IpAddr;

use portolan_model::{Family, LoadBalancerPool, Name, Store};

use crate::number::{self, Each};
use crate::runs::{Runs, size};

/// A pool that takes part.
#[derive(Debug)]
pub(crate) struct Pool<'a> {
    pub(crate) object: &'a LoadBalancerPool,
    addrs: Each<Runs>,
}

impl Pool<'_> {
    pub(crate) fn name(&self) -> &Name {
        &self.object.name
    }

    /// Runs of its addresses of a family, as numbers.
    pub(crate) fn runs(&self, family: Family) -> impl Iterator<Item = (u128, u128)> {
        self.addrs.of(family).iter()
    }

    pub(crate) fn has(&self, family: Family) -> bool {
        self.runs(family).next().is_some()
    }

    /// How many addresses of a family it has, at most `u128::MAX`.
    pub(crate) fn size(&self, family: Family) -> u128 {
        self.runs(family).fold(0, |sum, (first, last)| sum.saturating_add(size(first, last)))
    }

    pub(crate) fn contains(&self, addr: IpAddr) -> bool {
        self.addrs.of(Family::of(addr)).contains(number::of(addr))
    }
}

/// A pool that does not take part, because an older one has some of its addresses.
#[derive(Debug)]
pub(crate) struct Overlap<'a> {
    pub(crate) pool: Pool<'a>,
    pub(crate) older: Name,
    /// The first address that both have.
    pub(crate) at: IpAddr,
}

/// All pools.
#[derive(Debug, Default)]
pub(crate) struct Pools<'a> {
    /// Those that take part, in the order of their use: the highest priority first, then by name.
    used: Vec<Pool<'a>>,
    overlapping: Vec<Overlap<'a>>,
    /// Runs of those that take part, by their first number: none overlaps another.
    index: Each<Vec<Indexed>>,
}

#[derive(Clone, Copy, Debug)]
struct Indexed {
    first: u128,
    last: u128,
    /// Into `used`.
    pool: usize,
}

impl<'a> Pools<'a> {
    /// Of pools that overlap, the older one takes part, then the first by name: the same whatever came first. The other
    /// is left out as a whole, because nobody can say which of its addresses its author meant.
    pub(crate) fn new(store: &'a Store) -> Self {
        let mut objects: Vec<&LoadBalancerPool> = store.pools().collect();
        let age = |pool: &LoadBalancerPool| pool.created.map_or(u64::MAX, |created| created.digits());
        objects.sort_by(|a, b| (age(a), &a.name).cmp(&(age(b), &b.name)));
        let mut pools = Self::default();
        let mut accepted: Each<Runs> = Each::default();
        for object in objects {
            let pool = Pool { object, addrs: addrs(object) };
            match first_common(&pool, &accepted) {
                None => {
                    for family in FAMILIES {
                        pool.runs(family)
                            .for_each(|(first, last)| accepted.of_mut(family).insert(first, last));
                    }
                    pools.used.push(pool);
                }
                Some(at) => {
                    // Somebody accepted it.
                    let older = pools.used.iter().find(|pool| pool.contains(at));
                    let older = older.map(|pool| pool.name().clone()).unwrap_or_else(|| object.name.clone());
                    pools.overlapping.push(Overlap { pool, older, at });
                }
            }
        }
        pools.used.sort_by(|a, b| {
            let key = |pool: &Pool<'a>| (std::cmp::Reverse(pool.object.priority), pool.name().clone());
            key(a).cmp(&key(b))
        });
        pools.index();
        pools
    }

    fn index(&mut self) {
        for family in FAMILIES {
            let pools = self.used.iter().enumerate();
            let runs = pools.flat_map(|(number, pool)| pool.runs(family).map(move |run| (number, run)));
            let mut index: Vec<Indexed> =
                runs.map(|(pool, (first, last))| Indexed { first, last, pool }).collect();
            index.sort_by_key(|run| run.first);
            *self.index.of_mut(family) = index;
        }
    }

    /// Those that take part, in the order of their use.
    pub(crate) fn used(&self) -> &[Pool<'a>] {
        &self.used
    }

    /// Those that do not.
    pub(crate) fn overlapping(&self) -> &[Overlap<'a>] {
        &self.overlapping
    }

    /// The pool that an address is of.
    pub(crate) fn of(&self, addr: IpAddr) -> Option<&Pool<'a>> {
        let (index, number) = (self.index.of(Family::of(addr)), number::of(addr));
        let at = index.partition_point(|run| run.first <= number).checked_sub(1)?;
        let run = index.get(at).filter(|run| run.last >= number)?;
        self.used.get(run.pool)
    }
}

/// Both, in the order in which they are looked at.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn addrs(object: &LoadBalancerPool) -> Each<Runs> {
    let mut addrs: Each<Runs> = Each::default();
    for range in &object.ranges {
        let runs = addrs.of_mut(Family::of(range.first()));
        runs.insert(number::of(range.first()), number::of(range.last()));
    }
    addrs
}

fn first_common(pool: &Pool<'_>, accepted: &Each<Runs>) -> Option<IpAddr> {
    let of_family = |family: Family| {
        let mut runs = pool.runs(family);
        runs.find_map(|(first, last)| accepted.of(family).within(first, last).next())
            .map(|(first, _)| number::addr(family, first))
    };
    FAMILIES.into_iter().find_map(of_family)
}
