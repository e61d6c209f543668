//! Desired routes → the fewest UPDATEs.

mod aggregate;
mod outbound;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;

pub use aggregate::{Aggregation, aggregate};
pub use outbound::{NextHops, Outbound};

use crate::config::Invalid;
use crate::wire::{Community, LargeCommunity};

/// A prefix that routers should send here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The prefix; bits behind its length are cleared.
    pub prefix: IpNetwork,
    /// Tags.
    pub communities: BTreeSet<Community>,
    /// Tags with three numbers.
    pub large_communities: BTreeSet<LargeCommunity>,
    /// How much routers of the same AS prefer it: the highest wins. Other ASes are not told.
    pub local_preference: Option<u32>,
    /// Names of peers to announce it to; none is all.
    pub peers: Option<BTreeSet<String>>,
}

impl Route {
    /// A route to all peers without tags.
    #[must_use]
    pub fn new(prefix: IpNetwork) -> Self {
        let (communities, large_communities) = Default::default();
        Self { prefix, communities, large_communities, local_preference: None, peers: None }
    }

    /// Checks that it fits a message.
    ///
    /// # Errors
    /// It does not.
    pub fn validate(&self) -> Result<(), Invalid> {
        let bytes = 4 * self.communities.len() + 12 * self.large_communities.len();
        if bytes <= MAX_COMMUNITIES {
            return Ok(());
        }
        let reason =
            format!("its communities take {bytes} bytes of {MAX_COMMUNITIES} that they may: remove some");
        Err(Invalid::Route { prefix: self.prefix, reason })
    }
}

/// What is said about a prefix to one peer, whatever the peer's kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tags {
    /// As in [`Route`].
    pub communities: BTreeSet<Community>,
    /// As in [`Route`].
    pub large_communities: BTreeSet<LargeCommunity>,
    /// As in [`Route`].
    pub local_preference: Option<u32>,
}

/// What one peer should have, by prefix.
pub type Desired = BTreeMap<IpNetwork, Arc<Tags>>;

/// What a peer should have of all routes. A prefix that is wanted several times has the tags of all and the highest
/// preference, whatever their order.
#[must_use]
pub fn desired(routes: &[Route], peer: &str) -> Desired {
    let mut merged: BTreeMap<IpNetwork, Tags> = BTreeMap::new();
    for route in routes {
        if route.peers.as_ref().is_some_and(|peers| !peers.contains(peer)) {
            continue;
        }
        let tags = merged.entry(canonical(route.prefix)).or_default();
        tags.communities.extend(&route.communities);
        tags.large_communities.extend(&route.large_communities);
        tags.local_preference = tags.local_preference.max(route.local_preference);
    }
    merged.into_iter().map(|(prefix, tags)| (prefix, Arc::new(tags))).collect()
}

/// Without bits behind the length.
fn canonical(prefix: IpNetwork) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(prefix)
}

/// Bytes of all communities of a route: with the other attributes, a prefix has to fit the same message.
const MAX_COMMUNITIES: usize = 3_600;

#[cfg(test)]
mod tests;
