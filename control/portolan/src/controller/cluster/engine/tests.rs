use std::collections::BTreeMap;
use std::path::PathBuf;

use portolan_kubernetes::{Interest, MANAGER_ANNOTATION, Seen, State};
use portolan_source::Update;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::documents::FINALIZER;
use super::*;

/// Objects as an API server has them, and what it does to writes.
#[derive(Default)]
struct Server {
    version: u64,
    objects: BTreeMap<ObjectKey, Value>,
    uids: u64,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is done and answered.
    Done,
    /// It is done, and nobody hears of it.
    AnswerLost,
    /// Nothing is done, and nobody hears of that.
    RequestLost,
    /// It is done at some later time, if its version still is the object's then, and nobody hears of it.
    Delayed,
}

impl Server {
    fn put(&mut self, key: &ObjectKey, edit: impl FnOnce(&mut Value)) {
        self.version += 1;
        self.uids += 1;
        let (uid, kind) = (self.uids.to_string(), key.kind);
        let object = self.objects.entry(key.clone()).or_insert_with(|| {
            json!({
                "apiVersion": kind.api_version(), "kind": kind.as_str(),
                "metadata": {"name": key.name(), "uid": uid}, "spec": {}, "status": {},
            })
        });
        if kind.is_namespaced() {
            object["metadata"]["namespace"] = json!(key.namespace());
        }
        edit(object);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let finalizers = object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        if object["metadata"]["deletionTimestamp"].is_string() && !finalizers {
            self.objects.remove(key);
        }
    }

    fn delete(&mut self, key: &ObjectKey) {
        if self.objects.contains_key(key) {
            self.put(key, |it| it["metadata"]["deletionTimestamp"] = json!("2025-01-31T12:00:00Z"));
        }
    }

    fn write(&mut self, patch: &Patch) -> Result<Facts, WriteError> {
        let known = self.objects.get(&patch.object).ok_or_else(|| WriteError::Gone("gone".into()))?;
        if patch.body["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"] {
            return Err(WriteError::Conflict("changed".into()));
        }
        let mut after = known.clone();
        self.put(&patch.object, |it| {
            match patch.part {
                Part::Status => merge(&mut it["status"], &patch.body["status"]),
                Part::Object => merge(&mut it["metadata"], &patch.body["metadata"]),
            }
            after = it.clone();
        });
        after["metadata"]["resourceVersion"] = json!(self.version.to_string());
        Ok(Facts::of(&after).expect("it has a uid and a version"))
    }

    /// No address is in two statuses, and none without the finalizer.
    fn check(&self) -> Result<(), TestCaseError> {
        let mut owners: BTreeMap<IpAddr, &ObjectKey> = BTreeMap::new();
        for (key, object) in &self.objects {
            let facts = Facts::of(object).expect("it has a uid and a version");
            for ip in facts.addresses() {
                prop_assert!(
                    facts.finalizers.iter().any(|it| it == FINALIZER),
                    "{key}: {ip} without a finalizer"
                );
                if let Some(other) = owners.insert(ip, key) {
                    prop_assert!(false, "{ip} is {other}'s and {key}'s");
                }
            }
        }
        Ok(())
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

/// A server, a controller on it, and what it has seen.
struct World {
    server: Server,
    engine: Engine,
    state: State,
    now: Instant,
    under_way: Vec<Patch>,
    delayed: Vec<Patch>,
}

impl World {
    fn new() -> Self {
        let (engine, state) = (engine(), State::new(Interest::CONTROLLER));
        let (server, now) = (Server::default(), Instant::now());
        Self { server, engine, state, now, under_way: Vec::new(), delayed: Vec::new() }
    }

    /// The controller begins anew; nothing that was under way comes after its first list.
    fn restart(&mut self) {
        (self.engine, self.state) = (engine(), State::new(Interest::CONTROLLER));
        self.under_way.clear();
        self.delayed.clear();
    }

    /// Tells the engine how everything is.
    fn tell(&mut self) {
        let name = std::sync::Arc::new(PathBuf::from("test"));
        let mut events = Vec::new();
        for kind in Interest::CONTROLLER.kinds {
            let objects = self.server.objects.iter().filter(|(key, _)| key.kind == *kind);
            let objects = objects.map(|(_, object)| Seen::Object(Box::new(object.clone())));
            for seen in [Seen::ListBegins].into_iter().chain(objects).chain([Seen::ListEnds]) {
                events.extend(self.state.take_in(*kind, seen, &name));
            }
        }
        let update = Update { events, refusals: self.state.refusals(), synced: true };
        self.engine.update(Watched { update, facts: self.state.take_facts() });
    }

    fn start(&mut self) {
        self.now += Duration::from_secs(1);
        let clock = Clock { now: self.now, stamp: "2025-01-31T12:00:00Z".into() };
        let room = 4_usize.saturating_sub(self.under_way.len());
        self.under_way.extend(self.engine.start(&clock, room));
    }

    fn finish(&mut self, fate: Fate) {
        if self.under_way.is_empty() {
            return;
        }
        let patch = self.under_way.remove(0);
        let unknown = || Err(WriteError::Unknown("lost".into()));
        let outcome = match fate {
            Fate::Done => self.server.write(&patch),
            Fate::AnswerLost => {
                let _ = self.server.write(&patch);
                unknown()
            }
            Fate::RequestLost => unknown(),
            Fate::Delayed => {
                self.delayed.push(patch.clone());
                unknown()
            }
        };
        self.engine.done(self.now, &patch.object, outcome);
    }

    /// Everything is told and done until nothing is left to do.
    fn calm(&mut self) {
        for _ in 0..100 {
            self.now += Duration::from_secs(60);
            self.tell();
            self.start();
            if self.under_way.is_empty() && self.engine.is_done() {
                return;
            }
            while !self.under_way.is_empty() {
                self.finish(Fate::Done);
            }
        }
        panic!("there is always something left to do");
    }

    fn has(&self, name: &str) -> Vec<String> {
        let facts = self.server.objects.get(&key(name)).and_then(Facts::of);
        facts.map(|it| it.addresses()).unwrap_or_default().iter().map(ToString::to_string).collect()
    }
}

fn engine() -> Engine {
    Engine::new(Settings {
        class: portolan_pool::CLASS.into(),
        is_default: true,
        service_cidrs: Vec::new(),
        document_addresses: false,
    })
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Service, "shop", name)
}

fn pool_key() -> ObjectKey {
    ObjectKey::new(Kind::LoadBalancerPool, "", "p")
}

fn wants(server: &mut Server, name: &str, kind: &str, asks: &str) {
    server.put(&key(name), |it| {
        it["spec"] = json!({"type": kind, "ipFamilies": ["IPv4"], "ports": [{"port": 80}], "loadBalancerIP": asks});
    });
}

fn pool(server: &mut Server, last: u8) {
    server.put(&pool_key(), |it| {
        it["spec"] = json!({"addresses": [format!("198.51.100.1-198.51.100.{last}")]})
    });
}

#[test]
fn an_address_moves_only_after_a_status_without_it_was_seen() {
    let mut world = World::new();
    pool(&mut world.server, 1);
    wants(&mut world.server, "a", "LoadBalancer", "");
    world.calm();
    assert_eq!(world.has("a"), ["198.51.100.1"]);
    wants(&mut world.server, "b", "LoadBalancer", "");
    world.calm();
    // Given up in the plan, and the write of that is not heard of.
    wants(&mut world.server, "a", "ClusterIP", "");
    world.tell();
    world.start();
    assert!(world.under_way.iter().any(|patch| patch.object == key("a")));
    assert!(!world.under_way.iter().any(|patch| patch.object == key("b") && patch.part == Part::Object));
    while !world.under_way.is_empty() {
        world.finish(Fate::Delayed);
    }
    world.start();
    assert_eq!(world.has("a"), ["198.51.100.1"]);
    assert!(world.has("b").is_empty());
    world.calm();
    assert!(world.has("a").is_empty());
    assert_eq!(world.has("b"), ["198.51.100.1"]);
}

#[test]
fn a_service_of_another_controller_is_left_alone() {
    let mut world = World::new();
    pool(&mut world.server, 3);
    let theirs = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
    world.server.put(&key("a"), |it| {
        it["spec"] =
            json!({"type": "LoadBalancer", "loadBalancerClass": "example.org/lb", "ports": [{"port": 80}]});
        it["metadata"]["finalizers"] = json!([FINALIZER]);
        it["status"] = theirs.clone();
    });
    world.server.put(&key("b"), |it| {
        it["spec"] = json!({"type": "ClusterIP", "ports": [{"port": 80}]});
        it["metadata"]["finalizers"] = json!([FINALIZER]);
    });
    let before = world.server.objects.clone();
    world.calm();
    for name in ["a", "b"] {
        assert_eq!(world.server.objects[&key(name)], before[&key(name)], "{name}");
    }
    wants(&mut world.server, "c", "LoadBalancer", "");
    world.calm();
    assert_eq!(world.has("c"), ["198.51.100.2"], "the first one is theirs");
}

#[test]
fn a_service_that_is_refused_after_a_start_keeps_its_address_and_goes_in_order() {
    let mut world = World::new();
    pool(&mut world.server, 3);
    wants(&mut world.server, "a", "LoadBalancer", "");
    world.calm();
    world.server.put(&key("a"), |it| it["spec"]["ports"] = json!([{"port": 0}]));
    world.restart();
    wants(&mut world.server, "b", "LoadBalancer", "");
    world.calm();
    assert_eq!((world.has("a"), world.has("b")), (vec!["198.51.100.1".into()], vec!["198.51.100.2".into()]));
    assert_eq!(
        world.server.objects[&key("a")]["metadata"]["annotations"][MANAGER_ANNOTATION],
        portolan_pool::CLASS
    );
    world.server.delete(&key("a"));
    world.calm();
    assert!(!world.server.objects.contains_key(&key("a")), "{:#}", world.server.objects[&key("a")]);
}

#[test]
fn a_condition_keeps_its_time_while_it_says_the_same_and_others_conditions_stay() {
    let mut world = World::new();
    pool(&mut world.server, 1);
    wants(&mut world.server, "a", "LoadBalancer", "");
    world.server.put(&key("a"), |it| {
        it["status"]["conditions"] = json!([{"type": "example.org/x", "status": "True"}])
    });
    world.calm();
    world.server.put(&key("a"), |it| {
        it["status"]["conditions"][1]["lastTransitionTime"] = json!("2001-01-01T00:00:00Z")
    });
    pool(&mut world.server, 0);
    world.server.put(&pool_key(), |it| it["spec"] = json!({"addresses": ["203.0.113.0/30"]}));
    world.calm();
    let conditions = world.server.objects[&key("a")]["status"]["conditions"].clone();
    assert_eq!(conditions[0], json!({"type": "example.org/x", "status": "True"}));
    assert_eq!(conditions[1]["lastTransitionTime"], "2001-01-01T00:00:00Z");
    assert_eq!((&conditions[2]["reason"], conditions.as_array().unwrap().len()), (&json!("NotInAPool"), 3));
}

#[test]
fn a_change_that_echoes_what_was_written_makes_no_new_outcome() {
    let mut world = World::new();
    pool(&mut world.server, 3);
    wants(&mut world.server, "a", "LoadBalancer", "");
    world.calm();
    world.tell();
    assert!(!world.engine.is_stale, "nothing is new");
}

#[derive(Clone, Debug)]
enum Step {
    Want(usize, bool, u8),
    Delete(usize),
    Pool(u8),
    Tell,
    Start,
    Finish(Fate),
    Late,
    ForeignEdit(usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        4 => Just(Fate::Done), 1 => Just(Fate::AnswerLost), 1 => Just(Fate::RequestLost), 1 => Just(Fate::Delayed),
    ];
    prop_oneof![
        4 => (0..5_usize, prop::bool::weighted(0.8), 0..6_u8).prop_map(|(n, is, asks)| Step::Want(n, is, asks)),
        1 => (0..5_usize).prop_map(Step::Delete),
        1 => (1..6_u8).prop_map(Step::Pool),
        6 => Just(Step::Tell),
        6 => Just(Step::Start),
        8 => fate.prop_map(Step::Finish),
        2 => Just(Step::Late),
        1 => (0..5_usize).prop_map(Step::ForeignEdit),
        1 => Just(Step::Restart),
    ]
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Want(n, is, asks) => {
                let kind = if is { "LoadBalancer" } else { "ClusterIP" };
                let asks = if asks > 2 { String::new() } else { format!("198.51.100.{}", asks + 1) };
                wants(&mut self.server, &n.to_string(), kind, &asks);
            }
            Step::Delete(n) => self.server.delete(&key(&n.to_string())),
            Step::Pool(last) => pool(&mut self.server, last),
            Step::Tell => self.tell(),
            Step::Start => self.start(),
            Step::Finish(fate) => self.finish(fate),
            Step::Late => {
                for patch in std::mem::take(&mut self.delayed) {
                    let _ = self.server.write(&patch);
                }
            }
            Step::ForeignEdit(n) => {
                let key = key(&n.to_string());
                if self.server.objects.contains_key(&key) {
                    self.server.put(&key, |it| it["metadata"]["labels"] = json!({"a": "b"}));
                }
            }
            Step::Restart => self.restart(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_address_is_ever_in_two_statuses_and_in_the_end_all_is_as_it_should_be(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        pool(&mut world.server, 3);
        for step in steps {
            world.step(step);
            world.server.check()?;
        }
        world.calm();
        world.server.check()?;
        for (key, object) in world.server.objects.iter().filter(|(key, _)| key.kind == Kind::Service) {
            let facts = Facts::of(object).unwrap();
            let is_held = facts.finalizers.iter().any(|it| it == FINALIZER);
            prop_assert!(!facts.deleting, "{} is not let go", key);
            prop_assert!(facts.is_load_balancer || !is_held && facts.addresses().is_empty() && facts.manager.is_none(), "{}: {}", key, object);
        }
        // Nobody who could have one is without.
        pool(&mut world.server, 20);
        world.calm();
        for (key, object) in world.server.objects.iter().filter(|(_, it)| it["spec"]["type"] == "LoadBalancer") {
            let asks = object["spec"]["loadBalancerIP"] != "";
            prop_assert!(asks || Facts::of(object).unwrap().addresses().len() == 1, "{}: {}", key, object);
        }
    }
}
