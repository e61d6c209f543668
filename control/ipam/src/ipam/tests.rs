//! Properties of the allocator on a disk that crashes, fills up and loses writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// A disk that outlives the allocator's process, and on request fails.
#[derive(Debug, Default)]
struct Disk {
    /// What can be read while the machine runs.
    log: Vec<u8>,
    /// What a crash leaves of the start of `log`; the rest is in memory only.
    durable: Vec<u8>,
    /// What goes wrong at the next call that writes or flushes.
    fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// An append stops half-way: the disk is full.
    Append,
    /// A flush fails. What it should have written can still be read, is not on disk, and no later flush tries again.
    Flush,
    /// A snapshot cannot be written.
    Replace,
    /// A snapshot got its name, then the directory could not be flushed.
    ReplaceLate,
}

#[derive(Debug, Clone, Default)]
struct FaultyStore(Arc<Mutex<Disk>>);

impl FaultyStore {
    /// The machine loses power: of the cached bytes `kept` are there, and `hole` of them as zeros when it lies among those.
    fn crash(&self, kept: usize, hole: Option<usize>) {
        let mut disk = self.0.lock().unwrap();
        let start = disk.durable.len();
        let mut tail: Vec<u8> = disk.log.drain(start..).take(kept).collect();
        if let Some(byte) = hole.and_then(|hole| tail.get_mut(hole)) {
            *byte = 0;
        }
        disk.durable.append(&mut tail);
        disk.log = disk.durable.clone();
        disk.fault = None;
    }

    fn fail_next(&self, fault: Fault) {
        self.0.lock().unwrap().fault = Some(fault);
    }

    fn heal(&self) {
        self.0.lock().unwrap().fault = None;
    }
}

impl Store for FaultyStore {
    type Flush = Self;

    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().unwrap().log.clone())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        match disk.fault {
            Some(Fault::Append) => {
                disk.fault = None;
                disk.log.extend_from_slice(&bytes[..bytes.len() / 2]);
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => {
                disk.log.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        match disk.fault {
            Some(Fault::Replace) => {
                disk.fault = None;
                Err(io::ErrorKind::StorageFull.into())
            }
            fault => {
                disk.log = bytes.to_vec();
                disk.durable = bytes.to_vec();
                if matches!(fault, Some(Fault::ReplaceLate)) {
                    disk.fault = None;
                    return Err(io::ErrorKind::Other.into());
                }
                Ok(())
            }
        }
    }

    fn probe(&self) -> io::Result<()> {
        match self.0.lock().unwrap().fault {
            Some(Fault::Append) => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn flusher(&self) -> Self {
        self.clone()
    }
}

impl Flush for FaultyStore {
    fn flush(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let unwritten = disk.log[disk.durable.len()..].to_vec();
        if matches!(disk.fault, Some(Fault::Flush)) {
            disk.fault = None;
            disk.durable.extend(unwritten.iter().map(|_| 0));
            return Err(io::ErrorKind::Other.into());
        }
        disk.durable.extend(unwritten);
        Ok(())
    }
}

fn id(n: u8) -> AttachmentId {
    AttachmentId::new(format!("container{n}"), "eth0").unwrap()
}

fn open(store: &FaultyStore, cidrs: &[&str]) -> Engine<FaultyStore> {
    let cidrs: Vec<IpNetwork> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    Engine::open(Path::new("test"), store.clone(), cidrs.into()).unwrap()
}

fn allocate<S: Store>(engine: &Engine<S>, n: u8, now: u64) -> Result<Vec<String>, IpamError> {
    let addresses = engine.allocate(&id(n), Meta::default(), &[], now)?.addresses;
    Ok(addresses.networks().map(|net| net.to_string()).collect())
}

fn release<S: Store>(engine: &Engine<S>, n: u8, now: u64) -> Result<usize, IpamError> {
    Ok(engine.release(|allocation| allocation.id == id(n), now)?.len())
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u8),
    Release(u8),
    Retain(BTreeSet<u8>),
    Fail(Fault),
    /// Power fails after everything that was answered; see [`FaultyStore::crash`].
    Crash {
        kept: usize,
        hole: Option<usize>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let fault =
        prop_oneof![Just(Fault::Append), Just(Fault::Flush), Just(Fault::Replace), Just(Fault::ReplaceLate),];
    prop_oneof![
        6 => (0..12_u8).prop_map(Step::Allocate),
        4 => (0..12_u8).prop_map(Step::Release),
        1 => prop::collection::btree_set(0..12_u8, 0..12).prop_map(Step::Retain),
        2 => fault.prop_map(Step::Fail),
        2 => (0..600_usize, prop::option::of(0..600_usize)).prop_map(|(kept, hole)| Step::Crash { kept, hole }),
    ]
}

/// What callers were told, per attachment: `Some(held)` after an answer, `None` after an error that leaves it open.
#[derive(Debug, Default)]
struct Promises(BTreeMap<u8, Option<Option<Addresses>>>);

impl Promises {
    fn check(&self, engine: &Engine<FaultyStore>) {
        let state = engine.state();
        let all: Vec<IpAddr> =
            state.ledger.iter().flat_map(|allocation| allocation.addresses.iter()).collect();
        let distinct: HashSet<&IpAddr> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "an address was given twice");
        for (n, promise) in &self.0 {
            if let Some(promised) = promise {
                let held = state.ledger.get(&id(*n)).map(|allocation| allocation.addresses);
                assert_eq!(held, *promised, "attachment {n}");
            }
        }
    }
}

fn run(engine: &Engine<FaultyStore>, step: &Step, now: u64, promises: &mut Promises) {
    match step {
        Step::Allocate(n) => {
            let answer = engine.allocate(&id(*n), Meta::default(), &[], now);
            let exhausted = matches!(answer, Err(IpamError::Exhausted { .. }));
            if !exhausted {
                promises.0.insert(*n, answer.ok().map(|given| Some(given.addresses)));
            }
        }
        Step::Release(n) => {
            let answer = release(engine, *n, now);
            promises.0.insert(*n, answer.ok().map(|_| None));
        }
        Step::Retain(valid) => {
            let valid: HashSet<AttachmentId> = valid.iter().map(|n| id(*n)).collect();
            let answer = engine.release(|allocation| !valid.contains(&allocation.id), now);
            for n in (0..12).filter(|n| !valid.contains(&id(*n))) {
                promises.0.insert(n, answer.as_ref().ok().map(|_| None));
            }
        }
        Step::Fail(_) | Step::Crash { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_crash_or_full_disk_gives_an_address_twice_loses_one_or_leaks_one(
        steps in prop::collection::vec(step(), 1..60),
        dual in any::<bool>(),
    ) {
        let cidrs: &[&str] = if dual { &["10.0.0.0/28", "fd00::/125"] } else { &["10.0.0.0/29"] };
        let store = FaultyStore::default();
        let mut engine = open(&store, cidrs);
        let mut promises = Promises::default();
        for (now, step) in (1_000..).zip(&steps) {
            match step {
                Step::Fail(fault) => store.fail_next(*fault),
                Step::Crash { kept, hole } => {
                    store.crash(*kept, *hole);
                    engine = open(&store, cidrs);
                }
                step => run(&engine, step, now, &mut promises),
            }
            promises.check(&engine);
        }
        store.heal();
        engine.release(|_| true, 9_000).unwrap();
        store.crash(0, None);
        let left = open(&store, cidrs).available();
        prop_assert!(left.iter().all(|pool| pool.available == pool.capacity && pool.used == 0), "{left:?}");
    }

    #[test]
    fn a_crash_in_the_middle_of_a_call_leaves_the_old_or_the_new_state(kept in 0..400_usize, first in any::<bool>()) {
        let store = FaultyStore::default();
        let engine = open(&store, &["10.0.0.0/29"]);
        let before = allocate(&engine, 1, 0).unwrap();
        // The line is appended and not flushed: this is where the power fails.
        let mut state = engine.state();
        let op = if first {
            Op::Release { id: id(1), at: 0 }
        } else {
            let v4 = Some("10.0.0.5/29".parse().unwrap());
            Op::Allocate(Box::new(Allocation { id: id(2), addresses: Addresses { v4, v6: None }, meta: Meta::default() }))
        };
        engine.append(&mut state, vec![op]).unwrap();
        drop(state);
        store.crash(kept, None);
        let engine = open(&store, &["10.0.0.0/29"]);
        let used = engine.available()[0].used;
        let possible = if first { 0..=1 } else { 1..=2 };
        prop_assert!(possible.contains(&used), "{used} in use");
        if !first {
            prop_assert_eq!(allocate(&engine, 1, 0).unwrap(), before);
        }
    }
}

#[test]
fn the_same_attachment_gets_the_same_addresses_of_each_family() {
    let engine = open(&FaultyStore::default(), &["10.0.0.0/24", "fd00::/64"]);
    let first = allocate(&engine, 1, 0).unwrap();
    assert_eq!(first, ["10.0.0.1/24", "fd00::1/64"]);
    assert_eq!(allocate(&engine, 1, 5).unwrap(), first);
    assert_eq!(allocate(&engine, 2, 5).unwrap(), ["10.0.0.2/24", "fd00::2/64"]);
}

#[test]
fn a_full_family_gives_nothing_of_the_other_and_says_which_is_full() {
    let engine = open(&FaultyStore::default(), &["10.0.0.0/24", "fd00::/127"]);
    allocate(&engine, 1, 0).unwrap();
    allocate(&engine, 2, 0).unwrap();
    let error = allocate(&engine, 3, 0).unwrap_err().to_string();
    assert!(
        error.contains("fd00::/127") && error.contains("2 in use") && error.contains("delete pods"),
        "{error}"
    );
    assert_eq!(engine.available()[0].used, 2);
}

#[test]
fn a_released_address_rests_until_nothing_else_is_left() {
    let engine = open(&FaultyStore::default(), &["10.0.0.0/29"]);
    for n in 1..=3 {
        allocate(&engine, n, 0).unwrap();
    }
    release(&engine, 2, 10).unwrap();
    release(&engine, 1, 20).unwrap();
    assert_eq!(engine.available()[0].resting, 2);
    let later: Vec<_> = (4..=8).map(|n| allocate(&engine, n, 30).unwrap().remove(0)).collect();
    assert_eq!(later, ["10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29", "10.0.0.2/29", "10.0.0.1/29"]);
    assert!(matches!(allocate(&engine, 9, 30), Err(IpamError::Exhausted { used: 6, .. })));
}

#[test]
fn rest_and_turn_survive_a_restart() {
    let store = FaultyStore::default();
    let engine = open(&store, &["10.0.0.0/29"]);
    for n in 1..=6 {
        allocate(&engine, n, 0).unwrap();
    }
    (3..=6).rev().for_each(|n| assert_eq!(release(&engine, n, 100).unwrap(), 1));
    drop(engine);
    let engine = open(&store, &["10.0.0.0/29"]);
    assert_eq!(engine.available()[0].resting, 4);
    assert_eq!(allocate(&engine, 7, 101).unwrap(), ["10.0.0.6/29"], "the one released first");
    assert_eq!(allocate(&engine, 8, 1_000).unwrap(), ["10.0.0.3/29"], "all are rested: the next in turn");
}

#[test]
fn a_clock_set_back_starts_the_rest_again_and_does_not_end_it() {
    let engine = open(&FaultyStore::default(), &["10.0.0.0/30"]);
    allocate(&engine, 1, 5_000).unwrap();
    release(&engine, 1, 5_000).unwrap();
    assert_eq!(allocate(&engine, 2, 10).unwrap(), ["10.0.0.2/30"]);
    assert_eq!(engine.available()[0].resting, 1);
    release(&engine, 2, 400).unwrap();
    assert_eq!(engine.available()[0].resting, 1, "the first has rested since 10, the second rests since 400");
}

#[test]
fn a_changed_pod_cidr_keeps_what_is_allocated() {
    let store = FaultyStore::default();
    let old = allocate(&open(&store, &["10.0.0.0/24"]), 1, 0).unwrap();
    let engine = open(&store, &["10.9.0.0/24"]);
    assert_eq!(allocate(&engine, 1, 0).unwrap(), old);
    assert_eq!(allocate(&engine, 2, 0).unwrap(), ["10.9.0.1/24"]);
    assert_eq!(engine.available()[0].used, 1);
    release(&engine, 1, 0).unwrap();
    assert_eq!(allocate(&engine, 1, 0).unwrap(), ["10.9.0.2/24"]);
}

#[test]
fn a_second_cidr_of_a_family_serves_when_the_first_is_full() {
    let engine = open(&FaultyStore::default(), &["10.0.0.0/31", "10.1.0.0/24"]);
    let given: Vec<_> = (1..=3).map(|n| allocate(&engine, n, 0).unwrap().remove(0)).collect();
    assert_eq!(given, ["10.0.0.0/31", "10.0.0.1/31", "10.1.0.1/24"]);
}

#[test]
fn reserved_addresses_are_never_given() {
    let settings = Settings {
        reserved: vec!["10.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()],
        ..Settings::new(vec!["10.0.0.0/30".parse().unwrap()])
    };
    let engine = Engine::open(Path::new("test"), FaultyStore::default(), settings).unwrap();
    assert_eq!(allocate(&engine, 1, 0).unwrap(), ["10.0.0.2/30"]);
    assert!(matches!(allocate(&engine, 2, 0), Err(IpamError::Exhausted { .. })));
    let pool = engine.available().remove(0);
    assert_eq!((pool.capacity, pool.used, pool.available), (1, 1, 0));
}

#[test]
fn a_full_disk_refuses_changes_and_recovers_with_space() {
    let store = FaultyStore::default();
    let engine = open(&store, &["10.0.0.0/29"]);
    allocate(&engine, 1, 0).unwrap();
    store.fail_next(Fault::Append);
    let error = allocate(&engine, 2, 0).unwrap_err().to_string();
    assert!(error.contains("free space there"), "{error}");
    store.fail_next(Fault::Replace);
    assert!(matches!(release(&engine, 1, 0), Err(IpamError::Write { .. })));
    assert_eq!(engine.available()[0].used, 1, "a release that failed gives nothing away");
    assert_eq!(allocate(&engine, 2, 0).unwrap(), ["10.0.0.2/29"]);
}

#[test]
fn a_log_damaged_in_its_middle_is_refused() {
    let store = FaultyStore::default();
    let engine = open(&store, &["10.0.0.0/29"]);
    (1..=4).for_each(|n| drop(allocate(&engine, n, 0).unwrap()));
    {
        let mut disk = store.0.lock().unwrap();
        let middle = disk.log.len() / 2;
        disk.log[middle] ^= 0xff;
    }
    let settings = Settings::new(vec!["10.0.0.0/29".parse().unwrap()]);
    let error = Engine::open(Path::new("test"), store.clone(), settings).unwrap_err();
    assert!(matches!(error, IpamError::Damaged { .. }), "{error}");
}

#[test]
fn a_grown_log_is_rewritten_and_stays_small() {
    let store = FaultyStore::default();
    let engine = open(&store, &["10.0.0.0/29"]);
    for now in 0..1_500 {
        allocate(&engine, 1, now).unwrap();
        release(&engine, 1, now).unwrap();
    }
    assert!(store.read().unwrap().len() < LOG_MIN + 1_000);
    drop(engine);
    assert_eq!(open(&store, &["10.0.0.0/29"]).available()[0].used, 0);
}

fn with_ports(ports: &[HostPort]) -> Meta {
    Meta {
        pod_namespace: "shop".into(),
        pod_name: "web".into(),
        host_ports: ports.to_vec(),
        ..Meta::default()
    }
}

fn port(host_ip: Option<&str>, host_port: u16) -> HostPort {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    HostPort { host_ip, host_port, container_port: 8080, protocol: crate::Transport::Tcp }
}

#[test]
fn a_port_of_the_node_has_one_holder_who_is_named_also_after_a_restart() {
    let store = FaultyStore::default();
    let engine = open(&store, &["10.0.0.0/29"]);
    engine.allocate(&id(1), with_ports(&[port(None, 80)]), &[], 0).unwrap();
    engine.allocate(&id(1), with_ports(&[port(None, 80)]), &[], 0).unwrap();
    drop(engine);
    let engine = open(&store, &["10.0.0.0/29"]);
    let refused = engine.allocate(&id(2), with_ports(&[port(Some("127.0.0.1"), 80)]), &[], 0).unwrap_err();
    assert!(refused.to_string().starts_with("host port 80/TCP is taken by pod shop/web"), "{refused}");
    assert_eq!(engine.available()[0].used, 1, "the refused one holds no address");
    engine.allocate(&id(2), with_ports(&[port(None, 81)]), &[], 0).unwrap();
    release(&engine, 1, 0).unwrap();
    engine.allocate(&id(3), with_ports(&[port(Some("127.0.0.1"), 80)]), &[], 0).unwrap();
}

#[test]
fn lines_without_ports_of_the_node_are_as_they_were_before_there_were_any() {
    let json = serde_json::to_string(&Meta { mac: "02:00:00:00:00:01".into(), ..Meta::default() }).unwrap();
    assert!(!json.contains("host_ports"), "{json}");
    assert_eq!(serde_json::from_str::<Meta>(&json).unwrap().host_ports, []);
    let meta = with_ports(&[port(Some("::1"), 80), port(None, 81)]);
    let json = serde_json::to_string(&meta).unwrap();
    assert_eq!(serde_json::from_str::<Meta>(&json).unwrap(), meta, "{json}");
}

#[test]
fn an_address_that_is_asked_for_is_given_if_it_is_free_and_ours() {
    let engine = open(&FaultyStore::default(), &["10.0.0.0/29", "fd00::/120"]);
    let ask = |n: u8, wanted: &[&str]| {
        let wanted: Vec<IpAddr> = wanted.iter().map(|ip| ip.parse().unwrap()).collect();
        let given = engine.allocate(&id(n), with_ports(&[]), &wanted, 0)?.addresses;
        Ok::<Vec<String>, IpamError>(given.networks().map(|net| net.to_string()).collect())
    };
    assert_eq!(ask(1, &["10.0.0.5"]).unwrap(), ["10.0.0.5/29", "fd00::1/120"]);
    assert_eq!(ask(1, &["10.0.0.5"]).unwrap(), ["10.0.0.5/29", "fd00::1/120"], "again");
    assert_eq!(ask(2, &["fd00::77", "10.0.0.2"]).unwrap(), ["10.0.0.2/29", "fd00::77/120"]);
    for (wanted, text) in [
        (["10.0.0.5"].as_slice(), "10.0.0.5 is held by pod shop/web"),
        (&["10.0.0.4", "fd00::77"], "fd00::77 is held by pod shop/web"),
        (
            &["10.0.1.5"],
            "10.0.1.5 is not an address that this node gives to pods: ask for one of 10.0.0.0/29",
        ),
        (&["10.0.0.0"], "10.0.0.0 is not an address"),
        (&["10.0.0.4", "10.0.0.6"], "10.0.0.4 and 10.0.0.6 are of one family"),
    ] {
        let refused = ask(3, wanted).unwrap_err().to_string();
        assert!(refused.starts_with(text), "{wanted:?}: {refused}");
    }
    let other = ask(1, &["10.0.0.6"]).unwrap_err().to_string();
    assert!(other.starts_with("the container has 10.0.0.5 and fd00::1 already and not 10.0.0.6"), "{other}");
    assert_eq!(engine.available()[0].used, 2, "what was refused holds nothing");
    release(&engine, 1, 0).unwrap();
    assert_eq!(ask(3, &["10.0.0.5"]).unwrap(), ["10.0.0.5/29", "fd00::78/120"], "one that rests");
    release(&engine, 3, 0).unwrap();
    let rested =
        |n: u8, wanted: &[IpAddr]| engine.allocate(&id(n), with_ports(&[]), wanted, 0).unwrap().rested;
    assert!(rested(4, &[]) && !rested(5, &["10.0.0.5".parse().unwrap()]), "and that is told");
}
