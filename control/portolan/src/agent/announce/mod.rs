//! Announcing public addresses: the plan of it, and what tells the network.
//!
//! It has a lock of its own and never waits for the agent's: an agent that is stuck withdraws.

mod bgp;
mod options;
mod views;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portolan_apply::Applier;
use portolan_bgp::{Identity, Route, Speaker};
use portolan_l2::{Announcer, Eligible, Interface, Member, Settings, Vip};
use portolan_model::{ServiceKey, Store};
use portolan_plan::{Announcements, Announcing};

use crate::health::Health;
pub(super) use options::{ALL_UPLINKS, AnnounceOptions, OnStop};
pub(crate) use views::ANNOUNCED;
pub(super) use views::{lb, numbers, peers, routes, warnings};

/// How often it is looked whether the node still follows its objects, and what failed is tried again.
const LOOK: Duration = Duration::from_secs(1);

/// What routers show their operators of a node that goes.
const GOING: &str = "the agent was asked to end";

/// What this node announces.
#[derive(Debug)]
pub(super) struct Announce {
    node: String,
    options: AnnounceOptions,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    announcing: Announcing,
    /// Something was taken in that is not in the plan yet.
    changed: bool,
    planned: Announcements,
    /// The tables serve everything: the network may be told.
    begun: bool,
    /// The node follows its objects.
    healthy: bool,
    identity: Option<Identity>,
    speaker: Option<Speaker>,
    /// Peers that are left out, and why.
    problems: BTreeMap<String, String>,
    routes: Vec<Route>,
    announcer: Option<Announcer>,
    interfaces: Vec<Interface>,
    /// What failed, by what it is about.
    failures: BTreeMap<&'static str, String>,
}

impl Announce {
    /// Announces nothing until [`begin`](Self::begin).
    pub(super) fn new(node: &str, options: &AnnounceOptions) -> Self {
        let state = State {
            announcing: Announcing::new(node, &options.load_balancer_class),
            changed: true,
            planned: Announcements::default(),
            begun: false,
            healthy: true,
            identity: None,
            speaker: None,
            problems: BTreeMap::new(),
            routes: Vec::new(),
            announcer: None,
            interfaces: Vec::new(),
            failures: BTreeMap::new(),
        };
        Self { node: node.to_owned(), options: options.clone(), state: Mutex::new(state) }
    }

    /// Whether anything is announced on layer 2.
    pub(super) fn uses_l2(&self) -> bool {
        !self.options.l2_interfaces.is_empty()
    }

    /// These services may be served otherwise than before. `others`: so may be nodes, pools, peers or advertisements.
    pub(super) fn note<'a>(
        &self,
        store: &Store,
        applier: &Applier,
        services: impl IntoIterator<Item = &'a ServiceKey>,
        others: bool,
    ) {
        let state = &mut *self.state();
        for key in services {
            state.changed |= state.announcing.set(key, store.service(key), applier.plan(key));
        }
        state.changed |= others;
    }

    /// The tables serve everything that they should: the network is told from now on.
    pub(super) fn begin(&self) {
        self.state().begun = true;
    }

    /// Tells the network what changed. Needs a tokio runtime; reads files of passwords.
    pub(super) fn publish(&self, store: &Store) {
        let mut state = self.state();
        if !state.begun || !std::mem::take(&mut state.changed) {
            return;
        }
        let planned = state.announcing.plan(store);
        if planned != state.planned || state.identity.is_none() {
            state.planned = planned;
            self.tell(&mut state);
        }
    }

    /// The interfaces to announce on, as they are now.
    pub(super) fn set_interfaces(&self, interfaces: Vec<Interface>) {
        let mut state = self.state();
        state.interfaces = interfaces;
        if let Some(announcer) = &state.announcer {
            announcer.set_interfaces(state.interfaces.clone());
        }
    }

    /// Withdraws while the agent is stuck, and tries again what failed. Never ends.
    pub(super) async fn keep(self: Arc<Self>, health: Arc<Health>) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            let healthy = health.is_live(Instant::now());
            tokio::task::block_in_place(|| self.look(healthy));
        }
    }

    fn look(&self, healthy: bool) {
        let mut state = self.state();
        let turned = state.healthy != healthy;
        state.healthy = healthy;
        if turned && !healthy {
            tracing::error!("changes of objects wait for too long: public addresses are withdrawn");
        } else if turned {
            tracing::info!("the node follows its objects again: public addresses are announced");
        }
        let again = !state.problems.is_empty() || !state.failures.is_empty();
        if state.begun && (turned || again) {
            self.tell(&mut state);
        }
    }

    /// Withdraws everything, and returns when the network knows.
    pub(super) async fn withdraw(&self) {
        let (speaker, announcer) = {
            let mut state = self.state();
            state.begun = false;
            (state.speaker.take(), state.announcer.take())
        };
        if let Some(announcer) = announcer {
            announcer.withdraw().await;
        }
        if let Some(speaker) = speaker {
            speaker.withdraw(GOING).await;
        }
    }

    /// Brings speaker and announcer to the plan.
    fn tell(&self, state: &mut State) {
        let bgp = self.tell_peers(state);
        state.note("BGP", bgp.err());
        let l2 = if self.uses_l2() { self.tell_neighbours(state) } else { Ok(()) };
        state.note("layer 2", l2.err());
    }

    fn tell_peers(&self, state: &mut State) -> Result<(), String> {
        let addresses = state.planned.nodes.iter().find(|(name, _)| **name == *self.node);
        let Some((_, addresses)) = addresses else {
            // Whose Node object is gone for a moment keeps its sessions, and announces nothing.
            state.routes.clear();
            let silent = state.speaker.as_mut().map(|speaker| speaker.set_routes(Vec::new()));
            return silent.unwrap_or(Ok(())).map_err(|err| err.to_string());
        };
        let identity = bgp::identity(&self.options, &self.node, addresses);
        if state.speaker.is_none() || state.identity.as_ref() != Some(&identity) {
            // The old one first: its ports are the new one's.
            state.speaker = None;
            state.speaker = Some(Speaker::start(identity.clone()).map_err(|err| err.to_string())?);
            state.identity = Some(identity.clone());
        }
        let (peers, problems) = bgp::peers(&state.planned.peers, &identity);
        for (peer, problem) in &problems {
            if state.problems.get(peer) != Some(problem) {
                tracing::warn!(peer, "left out: {problem}");
            }
        }
        state.problems = problems;
        state.routes = bgp::routes(&state.planned.advertised, state.healthy);
        let Some(speaker) = &mut state.speaker else { return Ok(()) };
        speaker.set_peers(peers).map_err(|err| err.to_string())?;
        speaker.set_routes(state.routes.clone()).map_err(|err| err.to_string())
    }

    fn tell_neighbours(&self, state: &mut State) -> Result<(), String> {
        let first = state.announcer.is_none();
        if first {
            let settings = Settings { port: self.options.l2_port, ..Settings::new(&self.node) };
            state.announcer = Some(Announcer::start(settings).map_err(|err| err.to_string())?);
        }
        let Some(announcer) = &state.announcer else { return Ok(()) };
        let member = |(name, addresses): &(portolan_model::Name, Vec<std::net::IpAddr>)| {
            let usable: Vec<_> =
                addresses.iter().copied().filter(|address| portolan_l2::is_usable(*address)).collect();
            Member::new(&**name, usable)
        };
        let members = state.planned.nodes.iter().map(member).collect();
        announcer.set_members(members).map_err(|err| err.to_string())?;
        let usable = state.planned.l2.iter().filter(|it| portolan_l2::is_usable(it.address));
        let vips = usable.filter(|_| state.healthy).map(|it| Vip {
            eligible: it.eligible.as_ref().map_or(Eligible::All, |nodes| {
                Eligible::Only(nodes.iter().map(|name| name.to_string()).collect())
            }),
            ..Vip::new(it.address)
        });
        announcer.set_vips(vips.collect()).map_err(|err| err.to_string())?;
        if first {
            announcer.set_interfaces(state.interfaces.clone());
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic left half done is done again with the next change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes or clears a failure.
    fn note(&mut self, about: &'static str, failure: Option<String>) {
        match failure {
            Some(failure) => {
                if self.failures.get(about) != Some(&failure) {
                    tracing::warn!(about, "{failure}");
                }
                self.failures.insert(about, failure);
            }
            None => drop(self.failures.remove(about)),
        }
    }
}

#[cfg(test)]
mod tests;
