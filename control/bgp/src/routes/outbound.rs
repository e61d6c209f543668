//! What a peer was told and what it should be told: the difference, as UPDATEs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{Desired, Tags};
use crate::wire::{
    Dialect, Family, MAX_MESSAGE, Message, Origin, PathAttributes, Reach, Segment, Unreach, Update,
    encoded_len,
};

/// Where the peer sends packets, by family; a family without is not announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHops {
    /// For IPv4 prefixes.
    pub ipv4: Option<Ipv4Addr>,
    /// For IPv6 prefixes.
    pub ipv6: Option<Ipv6Addr>,
}

impl NextHops {
    /// That of a family.
    #[must_use]
    pub fn of(self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.ipv4.map(IpAddr::V4),
            Family::Ipv6 => self.ipv6.map(IpAddr::V6),
        }
    }
}

/// What a peer was told on one connection, and how it is told.
#[derive(Clone, Debug)]
pub struct Outbound {
    dialect: Dialect,
    local_asn: u32,
    families: BTreeSet<Family>,
    next_hops: NextHops,
    told: BTreeMap<IpNetwork, Arc<Tags>>,
    /// To be told all again.
    again: BTreeSet<Family>,
}

impl Outbound {
    /// Of a connection that was just established: nothing was told.
    #[must_use]
    pub fn new(dialect: Dialect, local_asn: u32, families: BTreeSet<Family>, next_hops: NextHops) -> Self {
        let (told, again) = Default::default();
        Self { dialect, local_asn, families, next_hops, told, again }
    }

    /// How many prefixes of a family the peer was told.
    #[must_use]
    pub fn told(&self, family: Family) -> usize {
        self.told.keys().filter(|prefix| Family::of_prefix(prefix) == family).count()
    }

    /// The peer wants to be told all of a family again (RFC 2918 §4).
    pub fn tell_again(&mut self, family: Family) {
        self.again.insert(family);
    }

    /// The messages that lead from what the peer was told to `desired`; they count as told. New routes come before
    /// old ones are withdrawn: an aggregate may take the place of its parts.
    pub fn update(&mut self, desired: &Desired) -> Vec<Update> {
        let again = std::mem::take(&mut self.again);
        let mut groups: BTreeMap<(Family, Arc<Tags>), Vec<IpNetwork>> = BTreeMap::new();
        for (prefix, tags) in desired.iter().filter(|(prefix, _)| self.carries(prefix)) {
            let family = Family::of_prefix(prefix);
            if again.contains(&family) || self.told.get(prefix) != Some(tags) {
                groups.entry((family, Arc::clone(tags))).or_default().push(*prefix);
            }
        }
        let mut updates = Vec::new();
        for ((family, tags), prefixes) in groups {
            updates.extend(self.announce(family, &tags, &prefixes));
            self.told.extend(prefixes.into_iter().map(|prefix| (prefix, Arc::clone(&tags))));
        }
        for family in Family::ALL {
            let of_family = |prefix: &&IpNetwork| Family::of_prefix(prefix) == family;
            let gone = self.told.keys().filter(|prefix| !desired.contains_key(prefix));
            let gone: Vec<IpNetwork> = gone.filter(of_family).copied().collect();
            updates
                .extend(chunks(&gone, self.room(&withdraw(family, &[]))).map(|part| withdraw(family, part)));
        }
        self.told.retain(|prefix, _| desired.contains_key(prefix));
        updates
    }

    fn carries(&self, prefix: &IpNetwork) -> bool {
        let family = Family::of_prefix(prefix);
        self.families.contains(&family) && self.next_hops.of(family).is_some()
    }

    fn announce(&self, family: Family, tags: &Tags, prefixes: &[IpNetwork]) -> Vec<Update> {
        let empty = self.announcement(family, tags, &[]);
        chunks(prefixes, self.room(&empty)).map(|part| self.announcement(family, tags, part)).collect()
    }

    fn announcement(&self, family: Family, tags: &Tags, prefixes: &[IpNetwork]) -> Update {
        let mut attributes = self.attributes(tags);
        let prefixes = prefixes.to_vec();
        match family {
            Family::Ipv4 => {
                attributes.next_hop = self.next_hops.ipv4;
                Update { attributes, announced: prefixes, ..Update::default() }
            }
            Family::Ipv6 => {
                let next_hop = self.next_hops.of(family);
                let reach = Some(Reach { family: family.into(), next_hop, prefixes });
                Update { attributes, reach, ..Update::default() }
            }
        }
    }

    /// RFC 4271 §5.1: LOCAL_PREF within the AS, and the AS itself in front of the path for others.
    fn attributes(&self, tags: &Tags) -> PathAttributes {
        let internal = self.dialect.internal;
        let path = if internal { Vec::new() } else { vec![Segment::sequence(vec![self.local_asn])] };
        PathAttributes {
            origin: Some(Origin::Igp),
            as_path: Some(path),
            local_preference: internal.then(|| tags.local_preference.unwrap_or(DEFAULT_PREFERENCE)),
            communities: tags.communities.clone(),
            large_communities: tags.large_communities.clone(),
            ..PathAttributes::default()
        }
    }

    /// Bytes for prefixes in a message that is otherwise as `empty`.
    fn room(&self, empty: &Update) -> usize {
        let taken =
            Message::Update(empty.clone()).encode(self.dialect).map_or(MAX_MESSAGE, |bytes| bytes.len());
        // An attribute of more than 255 bytes has a length of two.
        (MAX_MESSAGE - taken).saturating_sub(1)
    }
}

fn withdraw(family: Family, prefixes: &[IpNetwork]) -> Update {
    let prefixes = prefixes.to_vec();
    match family {
        Family::Ipv4 => Update { withdrawn: prefixes, ..Update::default() },
        Family::Ipv6 => {
            Update { unreach: Some(Unreach { family: family.into(), prefixes }), ..Update::default() }
        }
    }
}

/// As many prefixes as fit `room` bytes, then as many again; one at least.
fn chunks(prefixes: &[IpNetwork], room: usize) -> impl Iterator<Item = &[IpNetwork]> {
    let mut rest = prefixes;
    std::iter::from_fn(move || {
        let fits = rest.iter().scan(0, |used, prefix| {
            *used += encoded_len(prefix);
            (*used <= room).then_some(())
        });
        let (part, left) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = left;
        (!part.is_empty()).then_some(part)
    })
}

/// What routers take where nothing is said (RFC 4271 leaves it open; all take this).
const DEFAULT_PREFERENCE: u32 = 100;
