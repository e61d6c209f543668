//! A case as data: a world, packets in order, and all that is expected of each.

use std::fmt::{self, Debug};

use portolan_core::Hook;

use super::build::Packet;
use super::world::World;

/// Where a packet is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The hook.
    pub hook: Hook,
    /// The interface that its program is attached to.
    pub ifindex: u32,
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// On to the host's stack, or on the way it was.
    Passed,
    /// Not at all.
    Dropped,
    /// Redirected: one of [`portolan_abi::exit`], and the interface.
    Redirected(u8, u32),
}

/// A judgement on the packet that came out.
pub type Judge = Box<dyn Fn(&[u8]) -> Result<(), String>>;

/// What shall come out.
pub enum Frame {
    /// Exactly these bytes.
    Is(Vec<u8>),
    /// What this accepts.
    Accepted(Judge),
}

/// All that is expected of a packet.
pub struct Expect {
    /// The one outcome that counts it, see [`portolan_abi::counter`].
    pub outcome: u32,
    /// How it leaves.
    pub leaves: Leaves,
    /// What leaves.
    pub frame: Frame,
    /// Whether a flow is opened.
    pub opens: bool,
    /// Whether the short way shall be enough, if the case says.
    pub short: Option<bool>,
}

/// One thing that happens.
pub enum Step {
    /// A packet.
    Packet(Place, Vec<u8>, Expect),
    /// The agent writes another world.
    Change(Box<World>),
    /// Time passes, in ticks.
    Wait(u32),
    /// Flow entries of one direction are evicted: those with this bit of [`portolan_abi::state::REPLY`].
    Lose(u8),
    /// The agent finds that the backends of all flows left their service, which resets connections.
    Depart,
    /// There shall be as many flow entries.
    Flows(usize),
    /// All flow entries shall have this state, apart from the bit that tells the directions.
    State(u8),
}

impl Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packet(place, bytes, _) => write!(f, "a packet of {} bytes at {place:?}", bytes.len()),
            Self::Change(_) => write!(f, "another world"),
            Self::Wait(ticks) => write!(f, "{ticks} ticks pass"),
            Self::Lose(bit) => write!(f, "entries of direction {bit} are lost"),
            Self::Depart => write!(f, "backends leave"),
            Self::Flows(count) => write!(f, "{count} flow entries"),
            Self::State(bits) => write!(f, "flow entries in state {bits:#08b}"),
        }
    }
}

/// A case.
pub struct Script {
    /// The world it starts in.
    pub world: World,
    /// What happens.
    pub steps: Vec<Step>,
}

/// A packet whose fate is still to be said.
pub struct Sent<'a> {
    script: &'a mut Script,
    place: Place,
    bytes: Vec<u8>,
    opens: bool,
    short: Option<bool>,
}

impl Script {
    /// Starts in a world.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self { world, steps: Vec::new() }
    }

    /// A packet.
    pub fn send(&mut self, place: Place, packet: &Packet) -> Sent<'_> {
        self.send_bytes(place, packet.bytes())
    }

    /// Any bytes.
    pub fn send_bytes(&mut self, place: Place, bytes: Vec<u8>) -> Sent<'_> {
        Sent { script: self, place, bytes, opens: false, short: None }
    }

    /// The world changes.
    pub fn change(&mut self, change: impl FnOnce(&mut World)) {
        let last = self.steps.iter().rev().find_map(|step| match step {
            Step::Change(world) => Some(world.as_ref()),
            _ => None,
        });
        let mut world = last.unwrap_or(&self.world).clone();
        change(&mut world);
        self.steps.push(Step::Change(Box::new(world)));
    }

    /// Time passes.
    pub fn wait(&mut self, ticks: u32) {
        self.steps.push(Step::Wait(ticks));
    }

    /// Flow entries of one direction are evicted.
    pub fn lose(&mut self, direction: u8) {
        self.steps.push(Step::Lose(direction));
    }

    /// The backends of all flows leave their service, which resets connections.
    pub fn depart(&mut self) {
        self.steps.push(Step::Depart);
    }

    /// There are as many flow entries now.
    pub fn flows(&mut self, count: usize) {
        self.steps.push(Step::Flows(count));
    }

    /// All flow entries are in this state now.
    pub fn state(&mut self, bits: u8) {
        self.steps.push(Step::State(bits));
    }
}

impl Sent<'_> {
    /// It opens a flow.
    #[must_use]
    pub fn opening(mut self) -> Self {
        self.opens = true;
        self
    }

    /// The short way is enough for it, or not.
    #[must_use]
    pub fn short(mut self, short: bool) -> Self {
        self.short = Some(short);
        self
    }

    /// It is left as it is; the outcome that counts it.
    pub fn passes(self, outcome: u32) {
        let same = Frame::Is(self.bytes.clone());
        self.ends(outcome, Leaves::Passed, same);
    }

    /// It is dropped; the outcome that counts it.
    pub fn is_dropped(self, outcome: u32) {
        let same = Frame::Is(self.bytes.clone());
        self.ends(outcome, Leaves::Dropped, same);
    }

    /// It is dropped after it was changed to these bytes; the outcome that counts it.
    pub fn is_dropped_as(self, outcome: u32, bytes: Vec<u8>) {
        self.ends(outcome, Leaves::Dropped, Frame::Is(bytes));
    }

    /// It leaves as another packet.
    pub fn leaves(self, outcome: u32, leaves: Leaves, packet: &Packet) {
        self.ends(outcome, leaves, Frame::Is(packet.bytes()));
    }

    /// It leaves as a packet that is accepted.
    pub fn leaves_as(
        self,
        outcome: u32,
        leaves: Leaves,
        accept: impl Fn(&[u8]) -> Result<(), String> + 'static,
    ) {
        self.ends(outcome, leaves, Frame::Accepted(Box::new(accept)));
    }

    fn ends(self, outcome: u32, leaves: Leaves, frame: Frame) {
        let Self { script, place, bytes, opens, short } = self;
        script.steps.push(Step::Packet(place, bytes, Expect { outcome, leaves, frame, opens, short }));
    }
}
