//! The allocator: the ledger, the log, and the order between them.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ipnetwork::IpNetwork;

use crate::attachment::AttachmentId;
use crate::host_port::HostPort;
use crate::ledger::{Addresses, Allocation, Ledger, Meta};
use crate::pool::{Availability, InvalidPool, Pool, Settings};
use crate::record::{self, Op, Record, VERSION};
use crate::store::{DirStore, Flush, Store};

/// This node's pod addresses. Shared by reference between threads; calls block for a disk flush.
#[derive(Debug)]
pub struct Ipam {
    engine: Engine<DirStore>,
}

impl Ipam {
    /// Opens (or makes) the log in `dir`, which this process then holds alone. Allocations from podCIDRs that are no longer in `settings` stay.
    /// Without any podCIDR, what is held is known and can be released, and nothing is given.
    ///
    /// A directory that can be read but not written still opens: what is allocated stays known, [`Ipam::health`] and every change say why it fails.
    ///
    /// # Errors
    /// Bad podCIDRs, a directory that another process uses or that cannot be read, a log that is damaged where that is not what a crash does.
    pub fn open(dir: &Path, settings: impl Into<Settings>) -> Result<Self, IpamError> {
        let store = DirStore::open(dir).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => IpamError::Locked { dir: dir.to_owned() },
            _ => IpamError::Read { dir: dir.to_owned(), source },
        })?;
        Ok(Self { engine: Engine::open(dir, store, settings.into())? })
    }

    /// Gives the attachment one address of each configured family, or the ones that it has. `meta` replaces what was recorded.
    ///
    /// On return the addresses are on disk. All families or none. The ports of the node in `meta` are held with them.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`], [`IpamError::PortTaken`], or [`IpamError::Write`], after which a retry or a release is safe.
    pub fn allocate(&self, id: &AttachmentId, meta: Meta, now: SystemTime) -> Result<Addresses, IpamError> {
        Ok(self.engine.allocate(id, meta, &[], seconds(now))?.addresses)
    }

    /// As [`allocate`](Self::allocate), with these addresses where the attachment has none yet: one of a family at most, the other
    /// families' as usual. One that rests after a release is given. Says whether what was given had rested.
    ///
    /// # Errors
    /// Also [`IpamError::NotOurs`] and [`IpamError::AddressTaken`], and if it holds others.
    pub fn allocate_these(
        &self,
        id: &AttachmentId,
        meta: Meta,
        wanted: &[IpAddr],
        now: SystemTime,
    ) -> Result<Given, IpamError> {
        self.engine.allocate(id, meta, wanted, seconds(now))
    }

    /// Takes the attachment's addresses back. On return this is on disk. `None`: it had none, which is no error.
    ///
    /// # Errors
    /// [`IpamError::Write`]: nobody gets the addresses until a later release or [`Ipam::retain`] succeeds.
    pub fn release(&self, id: &AttachmentId, now: SystemTime) -> Result<Option<Allocation>, IpamError> {
        Ok(self.engine.release(|allocation| allocation.id == *id, seconds(now))?.pop())
    }

    /// Releases every attachment that is not in `valid`, and returns what they held.
    ///
    /// # Errors
    /// As [`Ipam::release`].
    pub fn retain(
        &self,
        valid: &HashSet<AttachmentId>,
        now: SystemTime,
    ) -> Result<Vec<Allocation>, IpamError> {
        self.engine.release(|allocation| !valid.contains(&allocation.id), seconds(now))
    }

    /// Changes what new addresses come from. Existing allocations stay.
    ///
    /// # Errors
    /// Bad podCIDRs; the old settings stay in force.
    pub fn configure(&self, settings: impl Into<Settings>) -> Result<(), IpamError> {
        let rules = Rules::new(settings.into())?;
        self.engine.state().rules = rules;
        Ok(())
    }

    /// What the attachment holds.
    pub fn get(&self, id: &AttachmentId) -> Option<Allocation> {
        self.engine.state().ledger.get(id).cloned()
    }

    /// Everything that is held, ordered by attachment.
    pub fn list(&self) -> Vec<Allocation> {
        self.engine.state().ledger.iter().cloned().collect()
    }

    /// How full each podCIDR is, in the configured order.
    pub fn available(&self) -> Vec<Availability> {
        self.engine.available()
    }

    /// Whether changes can be recorded: writes a little now, and what an earlier write has left undone.
    ///
    /// # Errors
    /// [`IpamError::Write`] says why not and what to do.
    pub fn health(&self) -> Result<(), IpamError> {
        let mut state = self.engine.state();
        self.engine.make_writable(&mut state)?;
        state.store.probe().map_err(|source| self.engine.write_error(source))
    }
}

/// What an attachment got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// Its addresses.
    pub addresses: Addresses,
    /// None of them was in use until a moment ago: whoever remembers the last holder has had time to forget it.
    pub rested: bool,
}

/// Why an address could not be given or taken back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IpamError {
    /// A family has no free address.
    #[error(
        "no free pod address in {cidrs}: {used} in use; delete pods or give the node a larger podCIDR (`portolan pod list` shows who holds them)"
    )]
    Exhausted {
        /// The family's podCIDRs.
        cidrs: String,
        /// How many of their addresses attachments hold.
        used: u128,
    },
    /// An address that was asked for is none that this node gives.
    #[error(
        "{address} is not an address that this node gives to pods: ask for one of {cidrs} that is not reserved"
    )]
    NotOurs {
        /// What was asked for.
        address: IpAddr,
        /// The podCIDRs.
        cidrs: String,
    },
    /// An address that was asked for is in use.
    #[error("{address} is held by pod {pod} (container {container}): delete that pod, or ask for another")]
    AddressTaken {
        /// What was asked for.
        address: IpAddr,
        /// The holder's pod.
        pod: String,
        /// The holder's container.
        container: String,
    },
    /// The attachment holds other addresses than are asked for.
    #[error("the container has {held} already and not {address}: delete it first")]
    OtherAddress {
        /// What was asked for.
        address: IpAddr,
        /// What it holds.
        held: String,
    },
    /// Two addresses of one family were asked for.
    #[error("{one} and {other} are of one family, in which a pod has one address: ask for one of them")]
    TwoOfFamily {
        /// The first.
        one: IpAddr,
        /// The second.
        other: IpAddr,
    },
    /// Another attachment has a port of the node that this one wants.
    #[error(
        "host port {port} is taken by pod {pod} (container {container}): delete that pod, or give one of them another hostPort, protocol or hostIP"
    )]
    PortTaken {
        /// The port as its holder has it.
        port: HostPort,
        /// The holder's pod.
        pod: String,
        /// The holder's container.
        container: String,
    },
    /// The change could not be put on disk; it is not in force.
    #[error(
        "recording pod addresses in {}: {source}; free space there or make it writable, then try again", dir.display()
    )]
    Write {
        /// The state directory.
        dir: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The log could not be read.
    #[error("reading pod addresses from {}: {source}", dir.display())]
    Read {
        /// The state directory.
        dir: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Another process has the directory open.
    #[error("{} is in use by another agent: stop that one first", dir.display())]
    Locked {
        /// The state directory.
        dir: PathBuf,
    },
    /// The log is damaged in a part that was known to be on disk.
    #[error(
        "the log of pod addresses in {} is damaged at record {record}: drain the node, move the directory away and start again", dir.display()
    )]
    Damaged {
        /// The state directory.
        dir: PathBuf,
        /// The number of the first record that is damaged.
        record: u64,
    },
    /// The log is of a layout that this version does not know.
    #[error(
        "the log of pod addresses in {} has layout {found}, this version reads {VERSION}: use the version that wrote it", dir.display()
    )]
    Layout {
        /// The state directory.
        dir: PathBuf,
        /// The layout's number.
        found: u32,
    },
    /// The podCIDRs cannot be used.
    #[error(transparent)]
    Pool(#[from] InvalidPool),
}

/// The settings in the form that allocation needs.
#[derive(Debug)]
struct Rules {
    pools: Vec<Pool>,
    reserved: HashSet<IpAddr>,
    quarantine: u64,
}

impl Rules {
    fn new(settings: Settings) -> Result<Self, InvalidPool> {
        let pools = Pool::all(&settings.cidrs)?;
        let reserved = settings.reserved.into_iter().collect();
        Ok(Self { pools, reserved, quarantine: settings.quarantine.as_secs() })
    }
}

/// [`Ipam`] over any store.
///
/// Two locks. `state` is held while a line is appended, never while the disk is flushed; `flushing` is held by the one caller that flushes
/// for all who appended before. `flushing` is taken first when both are needed.
#[derive(Debug)]
pub(crate) struct Engine<S> {
    dir: PathBuf,
    state: Mutex<State<S>>,
    flushing: Mutex<()>,
    /// Every line up to this number is on disk.
    durable: AtomicU64,
}

#[derive(Debug)]
struct State<S> {
    ledger: Ledger,
    rules: Rules,
    store: S,
    next_seq: u64,
    /// The log's end is unknown after an error: it takes no more lines until a snapshot has replaced it.
    broken: bool,
    /// Bytes in the log, and how many make it worth a snapshot.
    size: usize,
    limit: usize,
}

impl<S: Store> Engine<S> {
    pub(crate) fn open(dir: &Path, store: S, settings: Settings) -> Result<Self, IpamError> {
        let rules = Rules::new(settings)?;
        let log = store.read().map_err(|source| IpamError::Read { dir: dir.to_owned(), source })?;
        let (ledger, next_seq) = replay(dir, &log)?;
        let state = State { ledger, rules, store, next_seq, broken: true, size: 0, limit: 0 };
        let engine = Self {
            dir: dir.to_owned(),
            state: Mutex::new(state),
            flushing: Mutex::default(),
            durable: AtomicU64::new(0),
        };
        // What was read becomes durable before anybody acts on it. If it cannot be, the first change tries again and reports.
        drop(engine.rewrite(&mut engine.state()));
        Ok(engine)
    }

    pub(crate) fn allocate(
        &self,
        id: &AttachmentId,
        meta: Meta,
        wanted: &[IpAddr],
        now: u64,
    ) -> Result<Given, IpamError> {
        check_families(wanted)?;
        let (given, seq) = {
            let mut state = self.state();
            self.make_writable(&mut state)?;
            if let Some((port, holder)) = state.ledger.port_holder(id, &meta.host_ports) {
                let container = holder.id.container().to_owned();
                return Err(IpamError::PortTaken { port, pod: holder.meta.pod(), container });
            }
            let known = state.ledger.get(id).map(|known| (known.addresses, known.meta == meta));
            let given = match known {
                Some((addresses, _)) => {
                    check_held(&addresses, wanted)?;
                    Given { addresses, rested: true }
                }
                None if state.rules.pools.is_empty() => return Err(InvalidPool::Empty.into()),
                None => state.choose(wanted, now)?,
            };
            if !known.is_some_and(|(_, same)| same) {
                let allocation = Allocation { id: id.clone(), addresses: given.addresses, meta };
                self.append(&mut state, vec![Op::Allocate(Box::new(allocation))])?;
            }
            (given, state.next_seq - 1)
        };
        self.commit(seq)?;
        Ok(given)
    }

    pub(crate) fn release(
        &self,
        gone: impl Fn(&Allocation) -> bool,
        now: u64,
    ) -> Result<Vec<Allocation>, IpamError> {
        let (released, seq) = {
            let mut state = self.state();
            self.make_writable(&mut state)?;
            let quarantine = state.rules.quarantine;
            state.ledger.wake(now, quarantine);
            let released: Vec<Allocation> =
                state.ledger.iter().filter(|allocation| gone(allocation)).cloned().collect();
            let ops = released.iter().map(|allocation| Op::Release { id: allocation.id.clone(), at: now });
            self.append(&mut state, ops.collect())?;
            (released, state.next_seq - 1)
        };
        // Also when there was nothing to do: an earlier call that failed may have left its line unflushed.
        self.commit(seq)?;
        Ok(released)
    }

    pub(crate) fn available(&self) -> Vec<Availability> {
        let state = self.state();
        let rules = &state.rules;
        rules.pools.iter().map(|pool| state.ledger.availability(pool, &rules.reserved)).collect()
    }

    /// Waits until line `seq` is on disk. Callers that wait together share one flush.
    fn commit(&self, seq: u64) -> Result<(), IpamError> {
        if self.is_durable(seq) {
            return Ok(());
        }
        let _leader = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_durable(seq) {
            return Ok(());
        }
        let (flusher, written) = {
            let mut state = self.state();
            // An append that failed meanwhile broke the log; the snapshot that mends it is durable, too.
            if state.broken {
                return self.rewrite(&mut state);
            }
            (state.store.flusher(), state.next_seq - 1)
        };
        let flushed = flusher.flush();
        let mut state = self.state();
        match flushed {
            Ok(()) => self.mark_durable(written),
            Err(_) if self.is_durable(seq) => {}
            Err(source) => {
                // The kernel reports a lost write once, so no later flush of this file can be believed.
                state.broken = true;
                return Err(self.write_error(source));
            }
        }
        Ok(())
    }

    /// Appends and applies lines. Neither happens on an error.
    fn append(&self, state: &mut State<S>, ops: Vec<Op>) -> Result<(), IpamError> {
        if state.size >= state.limit {
            self.rewrite(state)?;
        }
        let bytes = self.encode(state.next_seq, &ops);
        if let Err(source) = state.store.append(&bytes) {
            state.broken = true;
            return Err(self.write_error(source));
        }
        state.size += bytes.len();
        state.next_seq += ops.len() as u64;
        for op in ops {
            state.ledger.apply(op).map_err(|_| self.damaged(state.next_seq))?;
        }
        Ok(())
    }

    fn make_writable(&self, state: &mut State<S>) -> Result<(), IpamError> {
        if state.broken { self.rewrite(state) } else { Ok(()) }
    }

    /// Replaces the log by a snapshot of the state; afterwards everything is durable.
    fn rewrite(&self, state: &mut State<S>) -> Result<(), IpamError> {
        let ops = state.ledger.snapshot(state.next_seq);
        let bytes = self.encode(state.next_seq, &ops);
        if let Err(source) = state.store.replace(&bytes) {
            state.broken = true;
            return Err(self.write_error(source));
        }
        state.next_seq += ops.len() as u64;
        state.broken = false;
        state.size = bytes.len();
        state.limit = (bytes.len() * 4).max(LOG_MIN);
        self.mark_durable(state.next_seq - 1);
        Ok(())
    }

    fn encode(&self, first: u64, ops: &[Op]) -> Vec<u8> {
        let durable = self.durable.load(Ordering::Acquire);
        let mut bytes = Vec::new();
        for (seq, op) in (first..).zip(ops) {
            Record { seq, durable, op: op.clone() }.encode(&mut bytes);
        }
        bytes
    }

    fn is_durable(&self, seq: u64) -> bool {
        self.durable.load(Ordering::Acquire) >= seq
    }

    fn mark_durable(&self, seq: u64) {
        self.durable.fetch_max(seq, Ordering::AcqRel);
    }

    /// Nothing panics half-way through a change of the state, so a poisoned lock guards a whole one.
    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_error(&self, source: io::Error) -> IpamError {
        IpamError::Write { dir: self.dir.clone(), source }
    }

    fn damaged(&self, record: u64) -> IpamError {
        IpamError::Damaged { dir: self.dir.clone(), record }
    }
}

impl<S> State<S> {
    /// One address of each configured family. They are not held yet.
    fn choose(&mut self, wanted: &[IpAddr], now: u64) -> Result<Given, IpamError> {
        self.ledger.wake(now, self.rules.quarantine);
        let mut addresses = Addresses { v4: None, v6: None };
        for is_ipv4 in [true, false] {
            let pools: Vec<&Pool> =
                self.rules.pools.iter().filter(|pool| pool.is_ipv4() == is_ipv4).collect();
            let wanted = wanted.iter().find(|address| address.is_ipv4() == is_ipv4);
            let (address, cidr) = match wanted {
                Some(address) => self.take(&pools, *address)?,
                None if pools.is_empty() => continue,
                None => {
                    self.ledger.pick(&pools, &self.rules.reserved).ok_or_else(|| self.exhausted(&pools))?
                }
            };
            match IpNetwork::new(address, cidr.prefix()) {
                Ok(IpNetwork::V4(net)) => addresses.v4 = Some(net),
                Ok(IpNetwork::V6(net)) => addresses.v6 = Some(net),
                Err(_) => return Err(InvalidPool::TooLarge { cidr }.into()),
            }
        }
        let rested = !addresses.iter().any(|address| self.ledger.is_resting(address));
        Ok(Given { addresses, rested })
    }

    /// An address that was asked for, and its podCIDR.
    fn take(&self, pools: &[&Pool], address: IpAddr) -> Result<(IpAddr, IpNetwork), IpamError> {
        let pool = pools.iter().find(|pool| pool.contains(address));
        let Some(pool) = pool.filter(|_| !self.rules.reserved.contains(&address)) else {
            return Err(IpamError::NotOurs { address, cidrs: cidrs(pools) });
        };
        match self.ledger.holder(address) {
            None => Ok((address, pool.cidr())),
            Some(holder) => {
                let (pod, container) = (holder.meta.pod(), holder.id.container().to_owned());
                Err(IpamError::AddressTaken { address, pod, container })
            }
        }
    }

    fn exhausted(&self, pools: &[&Pool]) -> IpamError {
        let used = pools.iter().map(|pool| self.ledger.availability(pool, &self.rules.reserved).used).sum();
        IpamError::Exhausted { cidrs: cidrs(pools), used }
    }
}

fn cidrs(pools: &[&Pool]) -> String {
    let cidrs: Vec<String> = pools.iter().map(|pool| pool.cidr().to_string()).collect();
    if cidrs.is_empty() { "no podCIDR of its family".to_owned() } else { cidrs.join(", ") }
}

fn check_families(wanted: &[IpAddr]) -> Result<(), IpamError> {
    for (at, one) in wanted.iter().enumerate() {
        if let Some(other) = wanted[at + 1..].iter().find(|other| other.is_ipv4() == one.is_ipv4()) {
            return Err(IpamError::TwoOfFamily { one: *one, other: *other });
        }
    }
    Ok(())
}

fn check_held(held: &Addresses, wanted: &[IpAddr]) -> Result<(), IpamError> {
    match wanted.iter().find(|address| !held.iter().any(|held| held == **address)) {
        None => Ok(()),
        Some(address) => {
            let held: Vec<String> = held.iter().map(|held| held.to_string()).collect();
            Err(IpamError::OtherAddress { address: *address, held: held.join(" and ") })
        }
    }
}

/// A log that is shorter than this (bytes) is not worth a snapshot.
const LOG_MIN: usize = 256 * 1024;

fn replay(dir: &Path, log: &[u8]) -> Result<(Ledger, u64), IpamError> {
    let damaged = |record| IpamError::Damaged { dir: dir.to_owned(), record };
    let mut ledger = Ledger::default();
    let mut next_seq = 1;
    for record in record::read(log).map_err(damaged)? {
        if let Op::Snapshot { version, .. } = record.op
            && version != VERSION
        {
            return Err(IpamError::Layout { dir: dir.to_owned(), found: version });
        }
        next_seq = record.seq + 1;
        ledger.apply(record.op).map_err(|_| damaged(record.seq))?;
    }
    Ok((ledger, next_seq))
}

/// Seconds of Unix time. Before 1970, where a machine without a clock battery may start: 0.
fn seconds(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
