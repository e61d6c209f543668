//! Nodes, what is between them, and a clock that tests turn. After every event it looks who owns what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::config::{Member, Settings, Vip};
use crate::election::{Election, Output};

/// How long datagrams are on their way.
pub(super) const LATENCY: Duration = Duration::from_millis(2);

/// Datagrams that wait for a process that does not read; later ones are lost, as in the kernel.
const BUFFER: usize = 40;

/// One node.
pub(super) struct Node {
    pub(super) election: Election,
    /// None: it does not run at all.
    pub(super) state: Running,
    pub(super) owned: BTreeSet<IpAddr>,
    pub(super) outputs: Vec<Output>,
    /// How much its clock missed while it stood still.
    missed: Duration,
    incarnation: u64,
    inbox: VecDeque<(Duration, IpAddr, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Running {
    Yes,
    /// Stopped, with all that it knows, since then.
    Stopped(Duration),
    /// Gone, and what it was sent with it.
    No,
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) nodes: Vec<Node>,
    /// Who does not reach whom.
    pub(super) cuts: BTreeSet<(usize, usize)>,
    /// Every datagram with a number that this divides is lost.
    pub(super) loss: Option<u64>,
    sent: u64,
    pub(super) vips: Vec<Vip>,
    /// Since when an address has had two owners, or none.
    overlaps: BTreeMap<IpAddr, Duration>,
    gaps: BTreeMap<IpAddr, Duration>,
    pub(super) worst_overlap: Duration,
    pub(super) worst_gap: Duration,
}

pub(super) fn name(node: usize) -> String {
    format!("node{node}")
}

pub(super) fn address(node: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(node + 1).unwrap()).into()
}

pub(super) fn vip(number: usize) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, u8::try_from(number).unwrap()).into()
}

fn members(count: usize) -> Vec<Member> {
    (0..count).map(|node| Member::new(name(node), [address(node)])).collect()
}

impl World {
    /// Nodes that all begin now and know of each other, and addresses that all may own.
    pub(super) fn new(nodes: usize, vips: usize) -> Self {
        Self::with(nodes, (0..vips).map(|number| Vip::new(vip(number))).collect())
    }

    pub(super) fn with(nodes: usize, vips: Vec<Vip>) -> Self {
        let mut world = Self {
            now: Duration::from_secs(1000),
            nodes: Vec::new(),
            cuts: BTreeSet::new(),
            loss: None,
            sent: 0,
            vips,
            overlaps: BTreeMap::new(),
            gaps: BTreeMap::new(),
            worst_overlap: Duration::ZERO,
            worst_gap: Duration::ZERO,
        };
        for number in 0..nodes {
            let node = world.begin(number, nodes, 1);
            world.nodes.push(node);
        }
        world.collect();
        world
    }

    /// A world in which everything is settled.
    pub(super) fn settled(nodes: usize, vips: usize) -> Self {
        let mut world = Self::new(nodes, vips);
        world.run(Duration::from_secs(5));
        world.forget();
        world
    }

    fn begin(&self, number: usize, nodes: usize, incarnation: u64) -> Node {
        let mut election = Election::new(Settings::new(name(number)), incarnation, number as u64, self.now);
        election.set_obstacle(self.now, None);
        election.set_vips(self.now, self.vips.clone());
        election.set_members(self.now, members(nodes));
        Node {
            election,
            state: Running::Yes,
            owned: BTreeSet::new(),
            outputs: Vec::new(),
            missed: Duration::ZERO,
            incarnation,
            inbox: VecDeque::new(),
        }
    }

    pub(super) fn stop(&mut self, node: usize) {
        self.nodes[node].state = Running::Stopped(self.now);
        self.judge();
    }

    /// Lets a stopped node go on. `asleep`: its clock stood still as well.
    pub(super) fn resume(&mut self, node: usize, asleep: bool) {
        if let Running::Stopped(since) = self.nodes[node].state {
            self.nodes[node].missed += if asleep { self.now - since } else { Duration::ZERO };
            self.nodes[node].state = Running::Yes;
            self.wake(node);
            self.collect();
        }
    }

    /// Loses what is on its way to a node.
    pub(super) fn lose(&mut self, node: usize) {
        self.nodes[node].inbox.clear();
    }

    pub(super) fn kill(&mut self, node: usize) {
        self.nodes[node].state = Running::No;
        self.nodes[node].owned.clear();
        self.nodes[node].inbox.clear();
        self.judge();
    }

    /// Starts a node anew, with this much added to its incarnation.
    pub(super) fn restart(&mut self, node: usize, later: i64) {
        let incarnation = self.nodes[node].incarnation.wrapping_add_signed(later);
        self.nodes[node] = self.begin(node, self.nodes.len(), incarnation);
        self.collect();
    }

    pub(super) fn change(&mut self, node: usize, work: impl FnOnce(&mut Election, Duration)) {
        let now = self.now - self.nodes[node].missed;
        work(&mut self.nodes[node].election, now);
        self.collect();
    }

    /// Cuts nodes off from all others, or lets them back.
    pub(super) fn cut(&mut self, nodes: &[usize], cut: bool) {
        for left in 0..self.nodes.len() {
            for right in (0..self.nodes.len()).filter(|right| nodes.contains(&left) != nodes.contains(right))
            {
                if cut {
                    self.cuts.insert((left, right))
                } else {
                    self.cuts.remove(&(left, right))
                };
            }
        }
    }

    /// Who owns an address, of those that run.
    pub(super) fn owners(&self, vip: IpAddr) -> Vec<usize> {
        let runs = |node: &Node| node.state == Running::Yes && node.owned.contains(&vip);
        (0..self.nodes.len()).filter(|node| runs(&self.nodes[*node])).collect()
    }

    /// The one owner of each address.
    pub(super) fn ownership(&self) -> Vec<usize> {
        let owner = |vip: &Vip| match self.owners(vip.address)[..] {
            [owner] => owner,
            ref owners => panic!("{} has the owners {owners:?}", vip.address),
        };
        self.vips.iter().map(owner).collect()
    }

    /// Begins to measure anew.
    pub(super) fn forget(&mut self) {
        (self.worst_overlap, self.worst_gap) = (Duration::ZERO, Duration::ZERO);
        self.overlaps.clear();
        self.gaps.clear();
        self.nodes.iter_mut().for_each(|node| node.outputs.clear());
        self.judge();
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let running = self.nodes.iter().filter(|node| node.state == Running::Yes);
            let next = running.flat_map(|node| {
                let arrival = node.inbox.front().map(|(at, ..)| *at);
                [Some(node.election.next_timeout() + node.missed), arrival]
            });
            match next.flatten().min() {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
            for node in 0..self.nodes.len() {
                self.wake(node);
            }
            self.collect();
        }
        self.now = end;
        self.judge();
    }

    /// What a driver does.
    fn wake(&mut self, node: usize) {
        let Node { election, state: Running::Yes, inbox, missed, .. } = &mut self.nodes[node] else { return };
        let now = self.now - *missed;
        election.handle_timeout(now);
        while let Some((_, from, datagram)) = inbox.pop_front_if(|(at, ..)| *at <= self.now) {
            election.receive(now, from, &datagram).expect("all are heartbeats of members, in order");
        }
    }

    /// Does what the elections want.
    fn collect(&mut self) {
        for node in 0..self.nodes.len() {
            while let Some(output) = self.nodes[node].election.poll_output() {
                match &output {
                    Output::Gained(vip) => assert!(self.nodes[node].owned.insert(*vip), "it was its already"),
                    Output::Lost(vip) => assert!(self.nodes[node].owned.remove(vip), "it was not its"),
                    Output::Send { to, message } => self.send(node, to, message),
                    Output::Renew(_) | Output::Lapsed(_) => {}
                }
                self.nodes[node].outputs.push(output);
            }
            if self.nodes[node].election.has_left() {
                self.nodes[node].state = Running::No;
            }
        }
        self.judge();
    }

    fn send(&mut self, from: usize, to: &[IpAddr], message: &[u8]) {
        for to in to {
            self.sent += 1;
            let lost = self.loss.is_some_and(|loss| self.sent.is_multiple_of(loss));
            let to = (0..self.nodes.len()).find(|node| address(*node) == *to).expect("a member");
            let node = &mut self.nodes[to];
            let full = node.state == Running::No || node.inbox.len() >= BUFFER;
            if !lost && !full && !self.cuts.contains(&(from, to)) {
                node.inbox.push_back((self.now + LATENCY, address(from), message.to_vec()));
            }
        }
    }

    /// Looks who owns what.
    fn judge(&mut self) {
        for vip in self.vips.iter().map(|vip| vip.address).collect::<Vec<_>>() {
            let owners = self.owners(vip).len();
            note(&mut self.overlaps, &mut self.worst_overlap, vip, owners > 1, self.now);
            note(&mut self.gaps, &mut self.worst_gap, vip, owners == 0, self.now);
        }
    }
}

/// Measures how long something lasts.
fn note(
    since: &mut BTreeMap<IpAddr, Duration>,
    worst: &mut Duration,
    vip: IpAddr,
    holds: bool,
    now: Duration,
) {
    if let Some(since) = since.get(&vip) {
        *worst = (*worst).max(now - *since);
    }
    if holds {
        since.entry(vip).or_insert(now);
    } else {
        since.remove(&vip);
    }
}
