//! Which endpoints get new flows of one port: the Cluster set and the Local set.
//!
//! Kubernetes calls this CategorizeEndpoints (KEP-1669 terminating endpoints, KEP-2086 internal policy,
//! KEP-2433 and KEP-3015 topology).

use portolan_model::{Endpoint, EndpointSlice, Family, Hints, Name, Protocol};

use crate::{BackendAddr, Why};

/// Where this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) node: Name,
    pub(crate) zone: Option<Name>,
}

/// What is selected for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) port: &'a str,
    pub(crate) protocol: Protocol,
    pub(crate) family: Family,
    /// Whether any policy asks for the Local set.
    pub(crate) local: bool,
    /// Whether the endpoints of neither set are asked for.
    pub(crate) rest: bool,
}

/// Both sets, sorted and unique, and why they are as they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) cluster: Vec<BackendAddr>,
    pub(crate) why: Why,
    pub(crate) local: Vec<BackendAddr>,
    pub(crate) local_why: Why,
    /// Endpoints of neither set, if asked for.
    pub(crate) rest: Option<Vec<BackendAddr>>,
}

/// Selects among a service's slices. Each slice has its own number behind the port's name.
pub(crate) fn select(slices: &[EndpointSlice], wanted: Wanted<'_>, place: &Place) -> Selection {
    let candidates = candidates(slices, wanted, place);
    let topology = Topology::of(&candidates, place);
    let ready = collect(&candidates, |c| c.endpoint.ready && topology.passes(c, place));
    let (cluster, why) =
        or_last_resort(ready, topology.why(), || collect(&candidates, |c| c.is_last_resort()));
    let (mut local, mut local_why) = (Vec::new(), Why::Ready);
    if wanted.local {
        let ready = collect(&candidates, |c| c.backend.local && c.endpoint.ready);
        let ending = || collect(&candidates, |c| c.backend.local && c.is_last_resort());
        (local, local_why) = or_last_resort(ready, Why::Ready, ending);
    }
    let rest = wanted.rest.then(|| {
        let has = |set: &[BackendAddr], backend: &BackendAddr| set.binary_search(backend).is_ok();
        collect(&candidates, |c| !has(&cluster, &c.backend) && !has(&local, &c.backend))
    });
    Selection { cluster, why, local, local_why, rest }
}

/// Who is ready; if nobody is, who is ending and still answers.
fn or_last_resort(
    ready: Vec<BackendAddr>,
    why: Why,
    ending: impl FnOnce() -> Vec<BackendAddr>,
) -> (Vec<BackendAddr>, Why) {
    if !ready.is_empty() {
        return (ready, why);
    }
    let ending = ending();
    let why = if ending.is_empty() { Why::Ready } else { Why::Terminating };
    (ending, why)
}

struct Candidate<'a> {
    backend: BackendAddr,
    endpoint: &'a Endpoint,
}

impl Candidate<'_> {
    /// On its way out but still answering: used only when nobody else is there.
    fn is_last_resort(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }

    fn hints(&self) -> Option<&Hints> {
        self.endpoint.hints.as_deref()
    }
}

/// Sorted by address and port, one for each. If slices disagree, the entry that does not terminate wins: a new
/// pod got the address. Then the ready one, then the local one.
fn candidates<'a>(slices: &'a [EndpointSlice], wanted: Wanted<'_>, place: &Place) -> Vec<Candidate<'a>> {
    let mut found = Vec::with_capacity(slices.first().map_or(0, |slice| slice.endpoints.len()));
    for slice in slices.iter().filter(|slice| slice.family == Some(wanted.family)) {
        let ports = slice.ports.iter().filter(|p| *p.name == *wanted.port && p.protocol == wanted.protocol);
        for port in ports {
            found.extend(slice.endpoints.iter().map(|endpoint| {
                let local = endpoint.node.as_deref() == Some(&*place.node);
                let backend = BackendAddr { addr: endpoint.addr, port: port.port, local };
                Candidate { backend, endpoint }
            }));
        }
    }
    found.sort_by_key(|c| {
        let Candidate { backend, endpoint } = c;
        (backend.addr, backend.port, endpoint.terminating, !endpoint.ready, !endpoint.serving, !backend.local)
    });
    found.dedup_by_key(|c| (c.backend.addr, c.backend.port));
    found
}

fn collect(candidates: &[Candidate<'_>], keep: impl Fn(&Candidate<'_>) -> bool) -> Vec<BackendAddr> {
    let count = candidates.iter().filter(|c| keep(c)).count();
    let mut kept = Vec::with_capacity(count);
    kept.extend(candidates.iter().filter(|c| keep(c)).map(|c| c.backend));
    kept
}

/// How the hints of the ready endpoints narrow the Cluster set. One endpoint without a hint switches its mode
/// off, and so does a place that nobody names: no hint may leave a node without endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Off,
    SameNode,
    SameZone,
}

impl Topology {
    fn of(candidates: &[Candidate<'_>], place: &Place) -> Self {
        let ready = || candidates.iter().filter(|c| c.endpoint.ready);
        // Hints are rare: the usual service is done after its first endpoint.
        if ready().any(|c| c.endpoint.hints.is_none()) {
            return Topology::Off;
        }
        let narrows = |mode: Topology, hinted: fn(&Hints) -> bool| {
            ready().all(|c| c.hints().is_some_and(hinted)) && ready().any(|c| mode.passes(c, place))
        };
        if narrows(Topology::SameNode, |hints| !hints.nodes.is_empty()) {
            Topology::SameNode
        } else if narrows(Topology::SameZone, |hints| !hints.zones.is_empty()) {
            Topology::SameZone
        } else {
            Topology::Off
        }
    }

    fn why(self) -> Why {
        match self {
            Topology::Off => Why::Ready,
            Topology::SameNode => Why::SameNode,
            Topology::SameZone => Why::SameZone,
        }
    }

    fn passes(self, candidate: &Candidate<'_>, place: &Place) -> bool {
        match self {
            Topology::Off => true,
            Topology::SameNode => candidate.hints().is_some_and(|hints| hints.nodes.contains(&place.node)),
            Topology::SameZone => {
                let zone = place.zone.as_ref();
                zone.is_some_and(|zone| candidate.hints().is_some_and(|hints| hints.zones.contains(zone)))
            }
        }
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
