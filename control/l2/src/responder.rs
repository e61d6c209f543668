//! What to answer, and when to speak up unasked. No input, output or clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::config::{Interface, Mac, Vip};
use crate::frame::{self, Heard, Question};

/// The addresses that this node owns, and where.
#[derive(Debug, Default)]
pub(crate) struct Responder {
    links: BTreeMap<u32, Interface>,
    /// Where addresses are announced, of all that there are.
    scopes: BTreeMap<IpAddr, Option<BTreeSet<String>>>,
    owned: BTreeMap<IpAddr, Owned>,
    /// Announcements, the first one first.
    due: BTreeSet<(Duration, IpAddr)>,
}

/// An address of this node.
#[derive(Debug, Default)]
pub(crate) struct Owned {
    /// Questions answered.
    pub(crate) answered: u64,
    /// Times it was announced.
    pub(crate) announced: u64,
    /// Who else claimed it.
    pub(crate) conflict: Option<Claimed>,
    /// The next announcement, and which of the series it is.
    next: Option<(Duration, usize)>,
    /// When it was last defended.
    defended: Option<Duration>,
}

/// A claim by somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    pub(crate) at: Duration,
    pub(crate) mac: Mac,
    pub(crate) interface: String,
}

/// A frame for an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    /// The interface's index.
    pub(crate) ifindex: u32,
    /// The frame, from its Ethernet header on.
    pub(crate) frame: Vec<u8>,
}

/// What a frame led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Nothing.
    Ignored,
    /// An answer, on the interface it came from.
    Answer(Vec<u8>),
    /// Somebody else claims an address of this node, for the first time in a while.
    Conflict(IpAddr, Mac),
}

impl Responder {
    /// Makes these the addresses that there are. One that may be told where it was not is announced again.
    pub(crate) fn set_vips(&mut self, now: Duration, vips: &[Vip]) {
        let scopes = vips.iter().map(|vip| (vip.address, vip.interfaces.clone())).collect();
        let before = std::mem::replace(&mut self.scopes, scopes);
        let changed = |address: &IpAddr| before.get(address) != self.scopes.get(address);
        let changed: Vec<IpAddr> = self.owned.keys().copied().filter(changed).collect();
        changed.into_iter().for_each(|address| self.announce(now, address));
    }

    /// Makes these the interfaces. Addresses are announced again on one that came up or changed its own address.
    pub(crate) fn set_links(&mut self, now: Duration, links: Vec<Interface>) {
        let links: BTreeMap<u32, Interface> =
            links.into_iter().filter(|link| link.operational).map(|link| (link.ifindex, link)).collect();
        let before = std::mem::replace(&mut self.links, links);
        let fresh = self.links.values().filter(|link| before.get(&link.ifindex) != Some(link));
        let fresh: Vec<&str> = fresh.map(|link| link.name.as_str()).collect();
        let concerned = |address: &IpAddr| fresh.iter().any(|name| self.is_told_on(*address, name));
        let concerned: Vec<IpAddr> = self.owned.keys().copied().filter(concerned).collect();
        concerned.into_iter().for_each(|address| self.announce(now, address));
    }

    /// The address is this node's from now on, and everybody shall know.
    pub(crate) fn gain(&mut self, now: Duration, address: IpAddr) {
        self.lose(address);
        self.owned.insert(address, Owned::default());
        self.announce(now, address);
    }

    /// The address is this node's no more.
    pub(crate) fn lose(&mut self, address: IpAddr) {
        if let Some(Owned { next: Some((at, _)), .. }) = self.owned.remove(&address) {
            self.due.remove(&(at, address));
        }
    }

    /// Begins to announce an address of this node, from the beginning.
    pub(crate) fn announce(&mut self, now: Duration, address: IpAddr) {
        self.schedule(address, Some((now, 0)));
    }

    /// Takes a frame that came in on an interface. `patience` is how long a claim by somebody else waits to be answered: if it is a
    /// node, who owns the address is settled by then.
    pub(crate) fn receive(
        &mut self,
        now: Duration,
        ifindex: u32,
        frame: &[u8],
        patience: Duration,
    ) -> Reaction {
        let Some(Interface { name, mac: own, .. }) = self.links.get(&ifindex).cloned() else {
            return Reaction::Ignored;
        };
        let (address, mac) = match frame::parse(frame) {
            None => return Reaction::Ignored,
            Some(Heard::Claim { address, mac }) => (address, mac),
            // Who asks in the name of an address claims it as well (RFC 5227 2.4).
            Some(Heard::Question(Question { asker, mac, .. })) if self.owned.contains_key(&asker) => {
                (asker, mac)
            }
            Some(Heard::Question(question)) => return self.answer(&question, &name, own),
        };
        if self.is_own(mac) {
            return Reaction::Ignored;
        }
        self.dispute(address, Claimed { at: now, mac, interface: name }, patience)
    }

    /// Announcements that are due, some at a time.
    pub(crate) fn speak(&mut self, now: Duration) -> Vec<Outgoing> {
        let mut frames = Vec::new();
        for _ in 0..ADDRESSES_AT_ONCE {
            let Some(&(at, address)) = self.due.first().filter(|(at, _)| *at <= now) else { break };
            let step = self.owned.get(&address).and_then(|owned| owned.next).map_or(0, |(_, step)| step);
            let pause = PAUSES.get(step).map(|pause| (at + *pause, step + 1));
            self.schedule(address, pause);
            if let Some(owned) = self.owned.get_mut(&address) {
                owned.announced += 1;
            }
            for link in self.links.values().filter(|link| self.is_told_on(address, &link.name)) {
                let of_link = frame::announcements(address, link.mac).into_iter();
                frames.extend(of_link.map(|frame| Outgoing { ifindex: link.ifindex, frame }));
            }
        }
        frames
    }

    /// When [`speak`](Self::speak) has something to say.
    pub(crate) fn next_timeout(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The multicast groups that questions for this node's addresses are sent to, on an interface.
    pub(crate) fn groups(&self, link: &str) -> BTreeSet<Ipv6Addr> {
        let here = self.owned.keys().filter(|address| self.is_told_on(**address, link));
        here.filter_map(|address| match address {
            IpAddr::V6(v6) => Some(frame::solicited_node(*v6)),
            IpAddr::V4(_) => None,
        })
        .collect()
    }

    /// The interfaces that carry packets.
    pub(crate) fn links(&self) -> &BTreeMap<u32, Interface> {
        &self.links
    }

    /// What is known of an address of this node.
    pub(crate) fn owned(&self, address: IpAddr) -> Option<&Owned> {
        self.owned.get(&address)
    }

    /// Whether an address is told on an interface.
    pub(crate) fn is_told_on(&self, address: IpAddr, link: &str) -> bool {
        match self.scopes.get(&address) {
            Some(Some(names)) => names.contains(link),
            Some(None) => true,
            None => false,
        }
    }

    fn answer(&mut self, question: &Question, link: &str, own: Mac) -> Reaction {
        let told = self.is_told_on(question.target, link);
        let Some(owned) = self.owned.get_mut(&question.target).filter(|_| told) else {
            return Reaction::Ignored;
        };
        owned.answered += 1;
        Reaction::Answer(frame::answer(question, own))
    }

    fn is_own(&self, mac: Mac) -> bool {
        self.links.values().any(|link| link.mac == mac)
    }

    /// Notes a claim by somebody else, and defends the address, but not more often than RFC 5227 2.4 (c) says: two that both do
    /// shall not fill the network.
    fn dispute(&mut self, address: IpAddr, claimed: Claimed, patience: Duration) -> Reaction {
        let told = self.is_told_on(address, &claimed.interface);
        let Some(owned) = self.owned.get_mut(&address).filter(|_| told) else { return Reaction::Ignored };
        let (now, mac) = (claimed.at, claimed.mac);
        owned.conflict = Some(claimed);
        if owned.defended.is_some_and(|at| now < at + DEFEND_INTERVAL) {
            return Reaction::Ignored;
        }
        owned.defended = Some(now);
        // A series that has begun goes on beyond the wait.
        if owned.next.is_none() {
            self.schedule(address, Some((now + patience, PAUSES.len())));
        }
        Reaction::Conflict(address, mac)
    }

    /// Makes this the next announcement of an address.
    fn schedule(&mut self, address: IpAddr, next: Option<(Duration, usize)>) {
        let Some(owned) = self.owned.get_mut(&address) else { return };
        if let Some((at, _)) = owned.next {
            self.due.remove(&(at, address));
        }
        owned.next = next;
        self.due.extend(next.map(|(at, _)| (at, address)));
    }
}

/// The times between announcements: frames get lost, and switches learn slowly.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(750), Duration::from_secs(1), Duration::from_secs(2)];
/// RFC 5227 1.1 `DEFEND_INTERVAL`.
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// Addresses that are announced before something else gets its turn.
const ADDRESSES_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests;
