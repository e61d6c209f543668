//! Election and responder together, and what they want sent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::config::{Interface, Mac, Member, Settings, Vip};
use crate::election::{Claim, Election, Output, Peer, Phase};
use crate::responder::{Outgoing, Reaction, Responder};
use crate::status::{Conflict, InterfaceStatus, MemberState, MemberStatus, NodeState, Status, VipStatus};

/// Everything but sockets.
#[derive(Debug)]
pub(super) struct State {
    settings: Settings,
    election: Election,
    responder: Responder,
    /// All interfaces, those that carry nothing included.
    interfaces: Vec<Interface>,
    /// This node's own addresses among the members'.
    own: Vec<IpAddr>,
    heartbeats: Vec<(IpAddr, Vec<u8>)>,
    /// Something changed that sockets depend on.
    changed: bool,
    stopped: bool,
    lapses: u64,
    refused: u64,
    /// What sockets cannot do, by what they are for.
    problems: BTreeMap<String, String>,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // A restart takes longer than a millisecond.
        let incarnation = u64::try_from(wall.as_millis()).unwrap_or(0);
        let seed = crate::rank::node_key(&settings.node_name) ^ incarnation;
        let election = Election::new(settings.clone(), incarnation, seed, super::clock::now());
        Self {
            settings,
            election,
            responder: Responder::default(),
            interfaces: Vec::new(),
            own: Vec::new(),
            heartbeats: Vec::new(),
            changed: true,
            stopped: false,
            lapses: 0,
            refused: 0,
            problems: BTreeMap::new(),
        }
    }

    pub(super) fn set_members(&mut self, now: Duration, members: Vec<Member>) {
        let own = members.iter().find(|member| member.name == self.settings.node_name);
        self.own = own.map(|member| member.addresses.clone()).unwrap_or_default();
        self.election.set_members(now, members);
        self.carry_out(now);
        self.changed = true;
    }

    pub(super) fn set_vips(&mut self, now: Duration, vips: Vec<Vip>) {
        self.responder.set_vips(now, &vips);
        self.election.set_vips(now, vips);
        self.carry_out(now);
        self.changed = true;
    }

    pub(super) fn set_interfaces(&mut self, now: Duration, mut interfaces: Vec<Interface>) {
        interfaces.sort_by_key(|interface| interface.ifindex);
        // Election before answers, here as everywhere: whoever was stopped must know it first.
        self.tick(now);
        self.responder.set_links(now, interfaces.clone());
        self.interfaces = interfaces;
        self.changed = true;
    }

    pub(super) fn set_obstacle(&mut self, now: Duration, obstacle: Option<&'static str>) {
        self.election.set_obstacle(now, obstacle);
        self.carry_out(now);
    }

    pub(super) fn set_problems(&mut self, problems: BTreeMap<String, String>) {
        let fresh = problems.iter().filter(|(what, why)| self.problems.get(*what) != Some(why));
        fresh.for_each(|(what, why)| tracing::warn!(what, why, "announcing addresses"));
        self.problems = problems;
    }

    pub(super) fn leave(&mut self, now: Duration) {
        self.election.leave(now);
        self.carry_out(now);
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether there is nothing more to do.
    pub(super) fn has_ended(&self) -> bool {
        self.stopped || self.election.has_left()
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, now: Duration) {
        self.election.handle_timeout(now);
        self.carry_out(now);
    }

    /// Takes a datagram.
    pub(super) fn hear(&mut self, now: Duration, from: IpAddr, datagram: &[u8]) {
        let outcome = self.election.receive(now, from, datagram);
        self.carry_out(now);
        if let Err(err) = outcome {
            self.refused += 1;
            tracing::debug!(%from, %err, "a heartbeat was not taken");
        }
    }

    /// Takes a frame; the answer, if there shall be one.
    pub(super) fn see(&mut self, now: Duration, ifindex: u32, frame: &[u8]) -> Option<Vec<u8>> {
        self.tick(now);
        let patience = self.settings.interval + self.settings.interval / 5;
        match self.responder.receive(now, ifindex, frame, patience) {
            Reaction::Answer(frame) => Some(frame),
            Reaction::Conflict(vip, mac) => {
                tracing::warn!(%vip, mac = text(mac), "somebody else claims an address that this node owns");
                None
            }
            Reaction::Ignored => None,
        }
    }

    /// Heartbeats to send.
    pub(super) fn take_heartbeats(&mut self) -> Vec<(IpAddr, Vec<u8>)> {
        std::mem::take(&mut self.heartbeats)
    }

    /// Announcements to send.
    pub(super) fn speak(&mut self, now: Duration) -> Vec<Outgoing> {
        self.responder.speak(now)
    }

    /// Whether something changed that sockets depend on, since the last time.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Whether something did.
    pub(super) fn is_changed(&self) -> bool {
        self.changed
    }

    pub(super) fn next_timeout(&self) -> Duration {
        let election = self.election.next_timeout();
        self.responder.next_timeout().map_or(election, |at| at.min(election))
    }

    pub(super) fn own_addresses(&self) -> &[IpAddr] {
        &self.own
    }

    pub(super) fn port(&self) -> u16 {
        self.settings.port
    }

    pub(super) fn responder(&self) -> &Responder {
        &self.responder
    }

    pub(super) fn has_others(&self) -> bool {
        self.election.has_others()
    }

    /// Does what the election wants.
    fn carry_out(&mut self, now: Duration) {
        while let Some(output) = self.election.poll_output() {
            match output {
                Output::Send { to, message } => {
                    self.heartbeats.extend(to.into_iter().map(|to| (to, message.clone())));
                }
                Output::Gained(vip) => {
                    tracing::info!(%vip, "this node answers for the address from now on");
                    self.responder.gain(now, vip);
                    self.changed = true;
                }
                Output::Lost(vip) => {
                    tracing::info!(%vip, "this node answers for the address no more");
                    self.responder.lose(vip);
                    self.changed = true;
                }
                Output::Renew(vip) => self.responder.announce(now, vip),
                Output::Lapsed(silent) => {
                    self.lapses += 1;
                    let silent = silent.as_millis();
                    tracing::warn!(
                        silent,
                        "others may have taken over while this node did nothing for so many ms"
                    );
                }
            }
        }
    }

    pub(super) fn status(&self, now: Duration, wall: SystemTime) -> Status {
        let seconds = |at: Duration| {
            let then = wall.checked_sub(now.saturating_sub(at)).unwrap_or(wall);
            then.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
        };
        let obstacle = self.election.obstacle().map(str::to_owned);
        let problems = self.problems.iter().map(|(what, why)| format!("{what}: {why}"));
        Status {
            node: self.settings.node_name.clone(),
            state: match self.election.phase() {
                Phase::Idle => NodeState::Idle,
                Phase::Listening { .. } => NodeState::Listening,
                Phase::Ready => NodeState::Ready,
                Phase::Leaving { .. } => NodeState::Leaving,
            },
            warnings: obstacle.into_iter().chain(problems).collect(),
            lapses: self.lapses,
            refused: self.refused,
            vips: self.election.claims().map(|(vip, claim)| self.vip(*vip, claim, seconds)).collect(),
            members: self
                .election
                .peers()
                .map(|(name, peer)| self.member(now, name, peer, seconds))
                .collect(),
            interfaces: self.interfaces.iter().map(interface).collect(),
        }
    }

    fn vip(&self, address: IpAddr, claim: &Claim, seconds: impl Fn(Duration) -> u64) -> VipStatus {
        let owned = self.responder.owned(address);
        let links = self.responder.links().values().map(|link| &link.name);
        let told = links.filter(|name| owned.is_some() && self.responder.is_told_on(address, name));
        let conflict = owned.and_then(|owned| owned.conflict.as_ref());
        VipStatus {
            address,
            owner: claim.owner.as_deref().map(str::to_owned),
            ours: claim.ours,
            since: seconds(claim.since),
            interfaces: told.cloned().collect(),
            answered: owned.map_or(0, |owned| owned.answered),
            announced: owned.map_or(0, |owned| owned.announced),
            conflict: conflict.map(|claimed| Conflict {
                mac: text(claimed.mac),
                interface: claimed.interface.clone(),
                at: seconds(claimed.at),
            }),
        }
    }

    fn member(
        &self,
        now: Duration,
        name: &str,
        peer: &Peer,
        seconds: impl Fn(Duration) -> u64,
    ) -> MemberStatus {
        let state = if peer.is_leaving() {
            MemberState::Leaving
        } else if !peer.is_fresh(now, self.settings.fresh) {
            MemberState::Silent
        } else if peer.is_counted() {
            MemberState::Ready
        } else {
            MemberState::Listening
        };
        MemberStatus {
            name: name.to_owned(),
            addresses: peer.addresses().to_vec(),
            state,
            last_heard: peer.last_heard().map(seconds),
            counts_us: peer.counts_us() && peer.is_fresh(now, self.settings.fresh),
        }
    }
}

fn interface(interface: &Interface) -> InterfaceStatus {
    let Interface { name, ifindex, operational, .. } = interface;
    InterfaceStatus { name: name.clone(), ifindex: *ifindex, operational: *operational }
}

fn text([a, b, c, d, e, f]: Mac) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
