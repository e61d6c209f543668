//! Which addresses are this node's, from what it hears of the others. No input, output or clock.
//!
//! Times are since the machine started, its sleep included (`CLOCK_BOOTTIME`). Whoever calls anything passes the time first of
//! all, so that a node that was stopped knows it before it does anything else.

mod peer;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Eligible, Member, Settings, Vip};
use crate::heartbeat::{DecodeError, Heartbeat};
use crate::rank;
pub(crate) use peer::Peer;

/// The addresses and the nodes that want them.
#[derive(Debug)]
pub(crate) struct Election {
    settings: Settings,
    key: u64,
    incarnation: u64,
    sequence: u64,
    /// State of the generator of jitter.
    chance: u64,
    phase: Phase,
    /// This node is a member itself.
    present: bool,
    /// Why this node can own nothing, whoever else is there.
    obstacle: Option<&'static str>,
    /// The other members; none: not known yet.
    peers: Option<BTreeMap<Arc<str>, Peer>>,
    claims: BTreeMap<IpAddr, Claim>,
    /// When others were last told that this node is there.
    last_round: Duration,
    /// What is read before may have waited since before this node was stopped.
    doubtful_until: Duration,
    next_round: Duration,
    /// Candidates or addresses changed since owners were computed.
    outdated: bool,
    outputs: VecDeque<Output>,
}

/// What becomes of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It can own nothing: it is no member, members are not known, or there is another obstacle.
    Idle,
    /// It owns nothing until it knows who else is there: until all others were heard, or could have been.
    Listening {
        /// When that is.
        until: Duration,
        /// Since when.
        since: Duration,
    },
    /// It owns what it is first for.
    Ready,
    /// It owns nothing any more, and says so a few times.
    Leaving {
        /// How often it still will.
        rounds: u8,
    },
}

/// An address, as this node sees it.
#[derive(Debug)]
pub(crate) struct Claim {
    key: u64,
    vip: Vip,
    /// Who has it; as far as this node knows.
    pub(crate) owner: Option<Arc<str>>,
    /// This node has it.
    pub(crate) ours: bool,
    /// Since when the owner is that.
    pub(crate) since: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send a heartbeat to each of a node's addresses.
    Send {
        /// One of each family.
        to: Vec<IpAddr>,
        /// The datagram.
        message: Vec<u8>,
    },
    /// This node owns the address from now on.
    Gained(IpAddr),
    /// It does no longer.
    Lost(IpAddr),
    /// It still does, but clients may have been told otherwise.
    Renew(IpAddr),
    /// This node did nothing for so long that others may have given it up, and owns nothing now.
    Lapsed(Duration),
}

/// Why a datagram was not taken for a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It is none.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// No member has this name.
    #[error("no other member is called {0}")]
    Stranger(String),
    /// It came from elsewhere.
    #[error("it says that it is of {0}, which has no such address")]
    Address(String),
    /// There was a newer one before.
    #[error("it is older than another one of {0}")]
    Old(String),
}

/// Another node that takes addresses, while they are given out.
struct Candidate<'a> {
    key: u64,
    name: &'a Arc<str>,
    /// None: this node.
    peer: Option<&'a Peer>,
}

impl Election {
    /// Nothing is known yet. `incarnation` is greater than before the last start; equal seeds lead to equal jitter.
    pub(crate) fn new(settings: Settings, incarnation: u64, seed: u64, now: Duration) -> Self {
        Self {
            key: rank::node_key(&settings.node_name),
            settings,
            incarnation,
            sequence: 0,
            chance: seed,
            phase: Phase::Idle,
            present: false,
            obstacle: Some("no interface to announce on carries packets"),
            peers: None,
            claims: BTreeMap::new(),
            last_round: now,
            doubtful_until: now,
            next_round: now,
            outdated: false,
            outputs: VecDeque::new(),
        }
    }

    /// Makes these the members. Of those that stay nothing is forgotten.
    pub(crate) fn set_members(&mut self, now: Duration, members: Vec<Member>) {
        self.pass(now);
        let mut before = self.peers.take().unwrap_or_default();
        self.present = members.iter().any(|member| member.name == self.settings.node_name);
        let others = members.into_iter().filter(|member| member.name != self.settings.node_name);
        let peers = others.map(|member| {
            let name: Arc<str> = member.name.into();
            let peer = before.remove(&name).unwrap_or_else(|| Peer::new(rank::node_key(&name)));
            (name, peer.at(member.addresses))
        });
        self.peers = Some(peers.collect());
        self.outdated = true;
        self.settle(now);
    }

    /// Makes these the addresses.
    pub(crate) fn set_vips(&mut self, now: Duration, vips: Vec<Vip>) {
        self.pass(now);
        let mut before = std::mem::take(&mut self.claims);
        for vip in vips {
            let address = vip.address;
            let claim = match before.remove(&address) {
                Some(claim) => Claim { vip, ..claim },
                None => Claim { key: rank::vip_key(address), vip, owner: None, ours: false, since: now },
            };
            self.claims.insert(address, claim);
        }
        let lost = before.into_iter().filter(|(_, claim)| claim.ours);
        self.outputs.extend(lost.map(|(address, _)| Output::Lost(address)));
        self.outdated = true;
        self.settle(now);
    }

    /// Says whether something keeps this node from owning anything, such as having no interface. Afterwards it does not know what
    /// others took meanwhile.
    pub(crate) fn set_obstacle(&mut self, now: Duration, obstacle: Option<&'static str>) {
        self.pass(now);
        self.obstacle = obstacle;
        self.settle(now);
    }

    /// Takes a datagram.
    ///
    /// # Errors
    /// It is no heartbeat of a member, and nothing changed.
    pub(crate) fn receive(&mut self, now: Duration, from: IpAddr, datagram: &[u8]) -> Result<(), Refused> {
        self.pass(now);
        let outcome = self.hear(now, from, datagram);
        self.settle(now);
        outcome
    }

    /// Lets time pass.
    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        self.pass(now);
        self.settle(now);
    }

    /// Gives everything up and says so.
    pub(crate) fn leave(&mut self, now: Duration) {
        self.pass(now);
        self.phase = Phase::Leaving { rounds: LEAVING_ROUNDS };
        self.next_round = now;
        self.outdated = true;
        self.settle(now);
    }

    /// Whether the others were told that this node leaves.
    pub(crate) fn has_left(&self) -> bool {
        self.phase == Phase::Leaving { rounds: 0 }
    }

    /// What is to be done next.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called, at the latest.
    pub(crate) fn next_timeout(&self) -> Duration {
        let listening = match self.phase {
            Phase::Listening { until, .. } => Some(until),
            _ => None,
        };
        let peers = self.peers.iter().flat_map(BTreeMap::values);
        let peers = peers.filter_map(|peer| peer.next_timeout(self.settings.fresh));
        peers.chain(listening).chain([self.next_round]).min().unwrap_or(self.next_round)
    }

    /// What becomes of this node.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Why it owns nothing, if it cannot.
    pub(crate) fn obstacle(&self) -> Option<&'static str> {
        if self.peers.is_none() {
            return Some("the cluster's nodes are not known yet");
        }
        if !self.present {
            return Some("this node is not among those that announce");
        }
        self.obstacle
    }

    /// The other members.
    pub(crate) fn peers(&self) -> impl Iterator<Item = (&Arc<str>, &Peer)> {
        self.peers.iter().flatten()
    }

    /// The addresses.
    pub(crate) fn claims(&self) -> impl Iterator<Item = (&IpAddr, &Claim)> {
        self.claims.iter()
    }

    /// Whether there are other members.
    pub(crate) fn has_others(&self) -> bool {
        self.peers.as_ref().is_some_and(|peers| !peers.is_empty())
    }

    /// Looks whether too much time passed unseen, before anything else happens.
    fn pass(&mut self, now: Duration) {
        let silent = now.saturating_sub(self.last_round);
        // Others count with a node until its last heartbeat is too old, which is later than this.
        if silent + self.settings.interval / 5 < self.settings.fresh || !self.has_others() {
            return;
        }
        self.doubtful_until = now + self.settings.fresh;
        self.outputs.push_back(Output::Lapsed(silent));
        if matches!(self.phase, Phase::Listening { .. } | Phase::Ready) {
            self.listen(now);
            self.elect(now);
        }
        // Said here, so that this happens once.
        self.last_round = now;
        self.next_round = now;
    }

    fn listen(&mut self, now: Duration) {
        self.be(Phase::Listening { until: now + self.settings.fresh, since: now }, now);
    }

    fn hear(&mut self, now: Duration, from: IpAddr, datagram: &[u8]) -> Result<(), Refused> {
        let heartbeat = Heartbeat::decode(datagram)?;
        let peer = self.peers.as_mut().and_then(|peers| peers.get_mut(heartbeat.name.as_str()));
        let Some(peer) = peer else { return Err(Refused::Stranger(heartbeat.name)) };
        if !peer.has(from) {
            return Err(Refused::Address(heartbeat.name));
        }
        let fresh = self.settings.fresh;
        if !peer.is_newer(now, fresh, &heartbeat) {
            return Err(Refused::Old(heartbeat.name));
        }
        // One that comes back without having listened was cut off, and may have told clients that it owns what is ours.
        let was_cut_off = heartbeat.ready && !peer.is_fresh(now, fresh);
        self.outdated |= peer.counts_us() != heartbeat.counts_you;
        peer.hear(now, &heartbeat);
        if was_cut_off {
            let ours = self.claims.iter().filter(|(_, claim)| claim.ours && claim.is_for(&heartbeat.name));
            self.outputs.extend(ours.map(|(address, _)| Output::Renew(*address)));
        }
        Ok(())
    }

    /// Draws the conclusions of a change, and says what others must know.
    fn settle(&mut self, now: Duration) {
        self.enter_phase(now);
        let (fresh, gap) = (self.settings.fresh, self.settings.interval / 10);
        for peer in self.peers.iter_mut().flat_map(BTreeMap::values_mut) {
            self.outdated |= peer.count(now, fresh, gap);
        }
        if self.outdated {
            self.elect(now);
        }
        self.speak(now);
    }

    /// Changes the phase as far as something happened that does.
    fn enter_phase(&mut self, now: Duration) {
        let able = self.obstacle().is_none();
        match self.phase {
            Phase::Leaving { .. } => {}
            Phase::Idle if able && self.has_others() => self.listen(now),
            Phase::Idle if able => self.be(Phase::Ready, now),
            Phase::Listening { .. } | Phase::Ready if !able => self.be(Phase::Idle, now),
            Phase::Listening { until, since } => {
                let heard = || self.peers.iter().flat_map(BTreeMap::values).all(|peer| peer.was_heard(since));
                let enough = since >= self.doubtful_until && heard();
                if now >= until || enough || !self.has_others() {
                    self.be(Phase::Ready, now);
                }
            }
            Phase::Idle | Phase::Ready => {}
        }
    }

    /// Enters a phase, which others shall know at once.
    fn be(&mut self, phase: Phase, now: Duration) {
        self.phase = phase;
        self.outdated = true;
        self.next_round = now;
    }

    /// Computes all owners.
    fn elect(&mut self, now: Duration) {
        self.outdated = false;
        let me: Arc<str> = self.settings.node_name.as_str().into();
        let mut candidates: Vec<Candidate> = Vec::new();
        if self.phase == Phase::Ready {
            candidates.push(Candidate { key: self.key, name: &me, peer: None });
        }
        let counted = self.peers.iter().flatten().filter(|(_, peer)| peer.is_counted());
        candidates.extend(counted.map(|(name, peer)| Candidate { key: peer.key(), name, peer: Some(peer) }));
        for (address, claim) in &mut self.claims {
            let (owner, ours) = claim.owner_among(&candidates);
            if claim.ours != ours {
                let output = if ours { Output::Gained } else { Output::Lost };
                self.outputs.push_back(output(*address));
            }
            if claim.owner.as_ref() != owner {
                (claim.owner, claim.since) = (owner.cloned(), now);
            }
            claim.ours = ours;
        }
    }

    /// Sends the heartbeats that are due.
    fn speak(&mut self, now: Duration) {
        let round = now >= self.next_round;
        if round {
            self.begin_round(now);
        }
        let Some(mut peers) = self.peers.take() else { return };
        for peer in peers.values_mut().filter(|peer| round || peer.is_due(now)) {
            self.sequence += 1;
            let heartbeat = Heartbeat {
                name: self.settings.node_name.clone(),
                incarnation: self.incarnation,
                sequence: self.sequence,
                ready: self.phase == Phase::Ready,
                leaving: matches!(self.phase, Phase::Leaving { .. }),
                counts_you: peer.is_counted(),
            };
            let to = peer.tell(now);
            self.outputs.push_back(Output::Send { to, message: heartbeat.encode() });
        }
        self.peers = Some(peers);
    }

    fn begin_round(&mut self, now: Duration) {
        self.last_round = now;
        self.next_round = now + self.jittered(self.settings.interval);
        if let Phase::Leaving { rounds } = &mut self.phase {
            *rounds = rounds.saturating_sub(1);
            self.next_round = now + LEAVING_GAP;
        }
    }

    /// From nine tenths of a time to all of it.
    fn jittered(&mut self, time: Duration) -> Duration {
        // The step of SplitMix64: every seed will do.
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = u32::try_from((mixed ^ (mixed >> 31)) >> 40).unwrap_or(0);
        time - time.mul_f64(f64::from(part) / f64::from(1_u32 << 24) / 10.0)
    }
}

impl Claim {
    /// Whether a node may own it.
    fn is_for(&self, name: &str) -> bool {
        match &self.vip.eligible {
            Eligible::All => true,
            Eligible::Only(names) => names.contains(name),
        }
    }

    /// Who owns it, and whether that is this node.
    fn owner_among<'a>(&self, candidates: &[Candidate<'a>]) -> (Option<&'a Arc<str>>, bool) {
        let weight = |candidate: &&Candidate<'a>| (rank::weight(self.key, candidate.key), candidate.name);
        let eligible = || candidates.iter().filter(|candidate| self.is_for(candidate.name));
        match eligible().max_by_key(weight) {
            None => (None, false),
            Some(first) if first.peer.is_some() => (Some(first.name), false),
            Some(first) => {
                let others = eligible().filter(|candidate| candidate.peer.is_some());
                match others.max_by_key(weight) {
                    // Without this node it would be that one's, which does not know yet that this node is there, or no longer does.
                    Some(next) if next.peer.is_some_and(|peer| !peer.counts_us()) => (Some(next.name), false),
                    _ => (Some(first.name), true),
                }
            }
        }
    }
}

/// How often a node says that it leaves, because heartbeats get lost.
const LEAVING_ROUNDS: u8 = 3;
/// The time between.
const LEAVING_GAP: Duration = Duration::from_millis(30);

#[cfg(test)]
mod tests;
