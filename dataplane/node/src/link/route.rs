//! Routes of the node that are ours: other nodes' podCIDRs, the own podCIDR, service CIDRs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_EXCL};

use super::{Error, Links, message, read, socket::Socket};

/// A route in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub prefix: IpNetwork,
    /// Where packets go.
    pub target: Target,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// To a gateway on a connected network.
    Via(IpAddr),
    /// Straight out of an interface.
    Device {
        /// Its index.
        ifindex: u32,
        /// Source address of what the node itself sends there.
        source: Option<IpAddr>,
    },
    /// Refused with an ICMP error.
    Unreachable,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            Target::Via(gateway) => write!(f, "{} via {gateway}", self.prefix),
            Target::Device { ifindex, source: None } => write!(f, "{} on interface {ifindex}", self.prefix),
            Target::Device { ifindex, source: Some(source) } => {
                write!(f, "{} on interface {ifindex} from {source}", self.prefix)
            }
            Target::Unreachable => write!(f, "{} unreachable", self.prefix),
        }
    }
}

/// One change of the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Add, where no route for the prefix may be there: a foreign one is not overwritten.
    Add(Route),
    /// Add beside the route that a later [`Step::Remove`] takes away, so that the prefix is always reachable.
    AddBeside(Route),
    /// Remove.
    Remove(Route),
}

/// What changed, and what could not be.
#[derive(Debug, Default)]
pub struct RouteReport {
    /// Routes added.
    pub added: usize,
    /// Routes removed.
    pub removed: usize,
    /// Routes that the kernel refused; the others are in place.
    pub failed: Vec<(Route, Error)>,
}

/// The steps from the routes that are there to those that should be, in order.
///
/// Prefixes count without their host bits; the first of two entries for one prefix wins. From gateway to
/// gateway the new route is made first. Other changes remove first: the kernel would take the second for a
/// duplicate (IPv6) or could not tell them apart on deletion.
#[must_use]
pub fn steps(existing: &[Route], desired: &[Route]) -> Vec<Step> {
    let mut wanted = BTreeMap::new();
    for route in desired.iter().map(normal) {
        wanted.entry(route.prefix).or_insert(route.target);
    }
    let present: BTreeSet<Route> = existing.iter().map(normal).collect();
    let (kept, stale): (Vec<Route>, Vec<Route>) =
        present.into_iter().partition(|route| wanted.get(&route.prefix) == Some(&route.target));
    let missing: Vec<Route> = wanted
        .into_iter()
        .map(|(prefix, target)| Route { prefix, target })
        .filter(|route| kept.binary_search(route).is_err())
        .collect();

    let via = |route: &Route| matches!(route.target, Target::Via(_));
    let beside = |new: &Route| {
        let mut old = stale.iter().filter(|old| old.prefix == new.prefix).peekable();
        old.peek().is_some() && via(new) && old.all(via)
    };
    let (appended, fresh): (Vec<Route>, Vec<Route>) = missing.into_iter().partition(beside);
    let (late, early): (Vec<Route>, Vec<Route>) =
        stale.iter().partition(|old| appended.iter().any(|new| new.prefix == old.prefix));
    let early = early.into_iter().map(Step::Remove);
    let fresh = fresh.into_iter().map(Step::Add);
    let appended = appended.into_iter().map(Step::AddBeside);
    early.chain(fresh).chain(appended).chain(late.into_iter().map(Step::Remove)).collect()
}

impl Links {
    /// Makes the node's routes to other nodes' podCIDRs (`native`: prefix and node address) and the refusal
    /// of unused addresses of its own podCIDRs (`local`) exactly these. Without the latter, a packet to an
    /// address that no pod has would leave by the default route and come back.
    ///
    /// Ours are told by their protocol number ([`super::PROTOCOL`]); others' are never touched.
    ///
    /// # Errors
    /// If the table cannot be read. Single refusals are in the report.
    pub async fn ensure_routes(
        &self,
        native: &[(IpNetwork, IpAddr)],
        local: &[IpNetwork],
    ) -> Result<RouteReport, Error> {
        let native = native.iter().map(|&(prefix, via)| Route { prefix, target: Target::Via(via) });
        let local = local.iter().map(|&prefix| Route { prefix, target: Target::Unreachable });
        let desired: Vec<Route> = native.chain(local).collect();
        self.call(move |socket| {
            let ours = |target: &Target| matches!(target, Target::Via(_) | Target::Unreachable);
            ensure(socket, &desired, ours)
        })
        .await
    }

    /// The routes that carry our protocol number, pods' included.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub async fn routes(&self) -> Result<Vec<Route>, Error> {
        self.call(read::own_routes).await
    }
}

/// Makes those of our routes whose target is `ours` exactly `desired`.
pub(super) fn ensure(
    socket: &mut Socket,
    desired: &[Route],
    ours: impl Fn(&Target) -> bool,
) -> Result<RouteReport, Error> {
    let mut existing = read::own_routes(socket)?;
    existing.retain(|route| ours(&route.target));
    let mut report = RouteReport::default();
    for step in steps(&existing, desired) {
        apply(socket, step, &mut report);
    }
    Ok(report)
}

fn apply(socket: &mut Socket, step: Step, report: &mut RouteReport) {
    let (route, request) = match step {
        Step::Add(route) => (route, message::add_route(&route, NLM_F_EXCL)),
        Step::AddBeside(route) => (route, message::add_route(&route, NLM_F_APPEND)),
        // The replacement failed: what is there is better than nothing.
        Step::Remove(route) if report.failed.iter().any(|(failed, _)| failed.prefix == route.prefix) => {
            return;
        }
        Step::Remove(route) => (route, message::delete_route(&route)),
    };
    match (socket.run_one(request), step) {
        (Ok(_), Step::Remove(_)) => report.removed += 1,
        (Ok(_), Step::Add(_) | Step::AddBeside(_)) => report.added += 1,
        (Err(error), Step::Remove(_)) if read::is_missing(&error) => {}
        (Err(error), _) => report.failed.push((route, error)),
    }
}

/// The same route with the host bits of its prefix cleared.
fn normal(route: &Route) -> Route {
    let prefix = route.prefix;
    // The length comes from a valid prefix of the same family.
    Route { prefix: IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(prefix), ..*route }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn via(prefix: &str, gateway: &str) -> Route {
        Route { prefix: prefix.parse().unwrap(), target: Target::Via(gateway.parse().unwrap()) }
    }

    fn unreachable(prefix: &str) -> Route {
        Route { prefix: prefix.parse().unwrap(), target: Target::Unreachable }
    }

    /// The table after the steps; panics where the kernel would refuse one.
    fn applied(existing: &[Route], steps: &[Step]) -> BTreeSet<Route> {
        let mut table: BTreeSet<Route> = existing.iter().copied().collect();
        for step in steps {
            match step {
                Step::Add(new) => {
                    assert!(table.iter().all(|old| old.prefix != new.prefix), "{new} would be refused");
                    table.insert(*new);
                }
                Step::AddBeside(new) => assert!(table.insert(*new), "{new} twice"),
                Step::Remove(old) => assert!(table.remove(old), "{old} is not there"),
            }
        }
        table
    }

    #[test]
    fn a_table_that_is_right_needs_no_step() {
        let routes =
            [via("10.1.0.0/24", "192.0.2.1"), unreachable("10.2.0.0/24"), via("fd00::/64", "2001:db8::1")];
        assert_eq!(steps(&routes, &routes), []);
    }

    #[test]
    fn a_new_gateway_is_in_place_before_the_old_one_goes() {
        let (old, new) = (via("10.1.0.0/24", "192.0.2.1"), via("10.1.0.0/24", "192.0.2.2"));
        assert_eq!(steps(&[old], &[new]), [Step::AddBeside(new), Step::Remove(old)]);
    }

    #[test]
    fn a_refusal_gives_way_before_a_gateway_comes() {
        let (old, new) = (unreachable("10.1.0.0/24"), via("10.1.0.0/24", "192.0.2.2"));
        assert_eq!(steps(&[old], &[new]), [Step::Remove(old), Step::Add(new)]);
    }

    #[test]
    fn host_bits_of_a_prefix_do_not_matter() {
        assert_eq!(steps(&[via("10.1.0.0/24", "192.0.2.1")], &[via("10.1.0.7/24", "192.0.2.1")]), []);
    }

    #[test]
    fn what_an_interrupted_change_left_beside_the_right_route_is_removed() {
        let (old, new) = (via("10.1.0.0/24", "192.0.2.1"), via("10.1.0.0/24", "192.0.2.2"));
        assert_eq!(steps(&[old, new], &[new]), [Step::Remove(old)]);
    }

    fn route() -> impl Strategy<Value = Route> {
        (0..4u8, 0..4u8).prop_map(|(net, target)| Route {
            prefix: IpNetwork::new([10, net, 0, 0].into(), 16).unwrap(),
            target: match target {
                0 => Target::Unreachable,
                1 => Target::Device { ifindex: 7, source: Some([192, 0, 2, 1].into()) },
                n => Target::Via([192, 0, 2, n].into()),
            },
        })
    }

    proptest! {
        #[test]
        fn steps_lead_from_any_table_to_the_desired_one(
            existing in prop::collection::vec(route(), 0..12), desired in prop::collection::vec(route(), 0..12)
        ) {
            let mut wanted = BTreeMap::new();
            for route in &desired {
                wanted.entry(route.prefix).or_insert(*route);
            }
            let wanted: BTreeSet<Route> = wanted.into_values().collect();
            prop_assert_eq!(applied(&existing, &steps(&existing, &desired)), wanted);
        }

        #[test]
        fn a_prefix_that_keeps_a_gateway_is_never_without_a_route(
            old in 1..9u8, new in 1..9u8
        ) {
            let at = |n: u8| Route { prefix: "10.0.0.0/8".parse().unwrap(), target: Target::Via([192, 0, 2, n].into()) };
            let mut table = vec![at(old)];
            for step in steps(&[at(old)], &[at(new)]) {
                match step {
                    Step::Add(route) | Step::AddBeside(route) => table.push(route),
                    Step::Remove(route) => table.retain(|r| *r != route),
                }
                prop_assert!(!table.is_empty());
            }
        }
    }
}
