//! Runs cases through the loaded programs, in a network namespace of its own.

use std::collections::BTreeMap;
use std::process::Command;
use std::thread;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use portolan_abi::{Affinity, Backend, Flow, FlowKey, Fragment, Service};
use portolan_core::conntrack::DEPARTURE;
use portolan_core::{Address as _, Hook};
use portolan_node::maps::Visit;
use portolan_node::{Object, Sizes, Tables, clock};

use super::family::Tested;
use super::fixture::site::Site;
use super::host::{Machine, Seen};
use super::memory::Flows;
use super::script::{Leaves, Place};
use super::world::{Records, World};

/// Size of the kernel's `struct __sk_buff`, and where its `ifindex` is.
const CONTEXT: usize = 192;
const CONTEXT_IFINDEX: usize = 40;
/// Results of a classifier.
const UNSPEC: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

/// Runs `work` on a thread of its own in a new network namespace with the devices and routes of [`Site`]. The
/// namespace ends with the thread.
///
/// # Panics
/// As `work` does, or if the kernel refuses.
pub fn in_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        // SAFETY: a new network namespace takes nothing away from other threads.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .expect("a new network namespace needs CAP_SYS_ADMIN");
        set_up();
        work()
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn set_up() {
    // Namespaces of the calling thread, not of the process: /proc/sys/net is this namespace's.
    for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{file}"), "1").expect("forwarding can be switched on");
    }
    ip(&["link", "set", "lo", "up"]);
    for (name, index) in [
        ("pod-a", Site::A_IF),
        ("pod-b", Site::B_IF),
        ("uplink", Site::UPLINK_IF),
        ("service", Site::SERVICE_IF),
        ("overlay", Site::OVERLAY_IF),
    ] {
        let (index, peer) = (index.to_string(), format!("{name}-x"));
        ip(&["link", "add", name, "index", &index, "type", "veth", "peer", "name", &peer]);
        ip(&["link", "set", name, "up"]);
        ip(&["link", "set", &peer, "up"]);
    }
    for site in [Site::v4(), Site::v6()] {
        let node = format!("{}/{}", site.node, site.bits());
        let mut add = vec!["addr", "add", &node, "dev", "uplink"];
        if site.node.is_ipv6() {
            add.push("nodad");
        }
        ip(&add);
        // The first next hop is resolved, the second is not.
        let router = site.router.to_string();
        ip(&["neigh", "add", &router, "lladdr", "02:aa:00:00:00:fe", "dev", "uplink", "nud", "permanent"]);
        for (prefix, via) in site.routed().into_iter().zip([router, site.router2.to_string()]) {
            let prefix = format!("{}/{}", prefix.0, prefix.1);
            ip(&["route", "add", &prefix, "via", &via, "dev", "uplink", "onlink"]);
        }
    }
}

fn ip(arguments: &[&str]) {
    // A child of this thread is in this thread's namespaces.
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The programs, loaded with new tables.
pub struct Kernel {
    object: Object,
    tables: Tables,
}

impl Kernel {
    /// Loads them.
    ///
    /// # Panics
    /// The kernel refuses.
    #[must_use]
    pub fn load() -> Self {
        let mut object = Object::load(None, Sizes::small()).expect("the programs load");
        object.load_overlay().expect("the overlay's programs load");
        let tables = object.tables().expect("the tables open");
        Self { object, tables }
    }

    /// Runs a packet; result and packet as the kernel reports them.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn test_run(&mut self, place: Place, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut context = [0u8; CONTEXT];
        context[CONTEXT_IFINDEX..CONTEXT_IFINDEX + 4].copy_from_slice(&place.ifindex.to_ne_bytes());
        let mut out = vec![0; 70_000];
        let program = self.program(place.hook);
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        let result = program.test_run(options).expect("the kernel runs the packet");
        let (status, len) = (result.return_value, result.data_size_out as usize);
        out.truncate(len);
        (status, out)
    }

    /// The program of a hook.
    ///
    /// # Panics
    /// The object does not have it.
    pub fn program(&mut self, hook: Hook) -> &mut SchedClassifier {
        self.object.classifier(hook.program()).expect("the object has it")
    }

    /// Flows opened for all services together.
    #[must_use]
    pub fn opened(&self) -> u64 {
        let service = |index| self.tables.services.read(index).picked;
        (0..self.tables.services.len()).map(service).sum()
    }

    /// Packets by outcome.
    ///
    /// # Panics
    /// The kernel refuses.
    #[must_use]
    pub fn counters(&self) -> Vec<u64> {
        self.tables.counters().expect("the counters can be read")
    }

    /// Makes all tables of a family as they were when they were loaded, but for counters.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn clear<F: Tested>(&mut self) {
        for index in 0..self.tables.services.len() {
            self.tables.services.write(index, Service::default());
        }
        let slots = self.tables.slab.len();
        self.tables.slab.fill(0, &vec![0; slots as usize]);
        let tables = F::tables_mut(&mut self.tables);
        let nobody = Backend { picked: 0, addr: F::Addr::UNSPECIFIED, port: 0, flags: 0 };
        for index in 0..tables.backends.len() {
            tables.backends.write(index, nobody);
        }
        replace(&tables.frontends, &[]);
        replace(&tables.endpoints, &[]);
        tables.flows.sweep(|_, _| Visit::Remove).expect("the flow table can be swept");
        replace(&tables.affinity, &[]);
        replace(&tables.fragments, &[]);
        replace(&tables.sources, &[]);
        replace(&tables.realms, &[]);
        assert!(tables.flows.dump().expect("the table can be read").is_empty(), "the flow table is empty");
    }

    fn write<F: Tested>(&mut self, records: &Records<F>) {
        self.tables.config.write(0, records.config);
        self.tables.slab.fill(0, &records.slab);
        for (index, service) in (0..).zip(&records.services) {
            let picked = self.tables.services.read(index).picked;
            self.tables.services.write(index, Service { picked, ..*service });
        }
        let tables = F::tables_mut(&mut self.tables);
        for (index, backend) in (0..).zip(&records.backends) {
            tables.backends.write(index, *backend);
        }
        replace(&tables.frontends, &records.frontends);
        replace(&tables.endpoints, &records.endpoints);
        let sources: Vec<_> = records.sources.iter().map(|key| (*key, 1)).collect();
        replace(&tables.sources, &sources);
        replace(&tables.realms, &records.realms);
    }
}

fn replace<K: Copy + Ord, V: Copy>(table: &portolan_node::maps::Hash<K, V>, records: &[(K, V)]) {
    let old: Vec<K> = dump(table).into_keys().collect();
    table.remove_all(&old).expect("elements can be removed");
    let (keys, values): (Vec<K>, Vec<V>) = records.iter().copied().unzip();
    table.insert_all(&keys, &values).expect("the table has room");
}

fn dump<K: Copy + Ord, V: Copy>(table: &portolan_node::maps::Hash<K, V>) -> BTreeMap<K, V> {
    table.dump().expect("the table can be read").into_iter().collect()
}

impl<F: Tested> Machine<F> for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn change(&mut self, world: &World) {
        self.write(&world.records::<F>());
    }

    fn wait(&mut self, ticks: u32) {
        // The clock cannot be moved, so the entries are.
        let flows = &F::tables(&self.tables).flows;
        for (key, flow) in flows.dump().expect("the table can be read") {
            // A beat is longer than a tick, so it may not have changed: it always has here.
            let aged = Flow { seen: flow.seen.wrapping_sub(ticks), beat: flow.beat.wrapping_sub(1), ..flow };
            flows.insert(&key, &aged).expect("an entry can be replaced");
        }
        let fragments = &F::tables(&self.tables).fragments;
        for (key, fragment) in dump(fragments) {
            let flow = Flow { seen: fragment.flow.seen.wrapping_sub(ticks), ..fragment.flow };
            fragments.insert(&key, &Fragment { flow, ..fragment }).expect("an entry can be replaced");
        }
        let affinity = &F::tables(&self.tables).affinity;
        for (key, memory) in dump(affinity) {
            let aged = Affinity { seen: memory.seen.wrapping_sub(ticks), ..memory };
            affinity.insert(&key, &aged).expect("an entry can be replaced");
        }
    }

    fn lose(&mut self, keys: &[FlowKey<F::Addr>]) {
        for key in keys {
            F::tables(&self.tables).flows.remove(key).expect("flows can be removed");
        }
    }

    fn depart(&mut self) {
        let flows = &F::tables(&self.tables).flows;
        flows.sweep(|_, _| Visit::Mark(DEPARTURE)).expect("the flow table can be swept");
    }

    fn run(&mut self, place: Place, frame: &[u8]) -> Seen {
        let (before, opened) = (self.counters(), self.opened());
        let (status, out) = self.test_run(place, frame);
        let after = self.counters();
        let counted = (0..).zip(before.iter().zip(&after)).filter(|(_, (before, after))| before != after);
        let leaves = match status {
            UNSPEC => Leaves::Passed,
            SHOT => Leaves::Dropped,
            REDIRECT => Leaves::Redirected(u8::MAX, 0),
            other => panic!("the program returned {other}"),
        };
        Seen {
            counted: counted.map(|(index, (before, after))| (index, after - before)).collect(),
            leaves,
            frame: out,
            opened: self.opened() - opened,
            short: None,
        }
    }

    fn flows(&self) -> Flows<F> {
        let now = clock::ticks();
        let age = |(key, flow): (FlowKey<F::Addr>, Flow<F::Addr>)| {
            (key, Flow { seen: now.wrapping_sub(flow.seen), beat: 0, ..flow })
        };
        F::tables(&self.tables).flows.dump().expect("the table can be read").into_iter().map(age).collect()
    }
}
