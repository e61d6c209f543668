use std::fs;

use portolan_model::{Event, ObjectKey};
use portolan_source::{Content, State, reconcile};
use tempfile::TempDir;

use super::*;

const POOL: &str = "apiVersion: portolan.dev/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: p}\nspec: {addresses: [198.51.100.0/30]}\n";

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n"
    )
}

/// A directory of objects in memory, beside a state file on disk.
struct World {
    directory: TempDir,
    source: State,
    files: Vec<(PathBuf, String)>,
    controller: Option<Controller>,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut world = Self { directory, source: State::default(), files: Vec::new(), controller: None };
        world.start().unwrap();
        world
    }

    fn path(&self) -> PathBuf {
        default_state(self.directory.path())
    }

    /// As a new process: nothing is remembered but the file.
    fn start(&mut self) -> anyhow::Result<()> {
        self.controller = None;
        self.source = State::default();
        let settings = Settings {
            class: portolan_pool::CLASS.into(),
            is_default: true,
            service_cidrs: Vec::new(),
            document_addresses: true,
        };
        let (state, record) = StateFile::open(&self.path())?;
        self.controller = Some(Controller::new(settings, state, record));
        Ok(())
    }

    /// What the directory says now, and the state file after it, which is in the directory.
    fn tell(&mut self, files: &[(&str, &str)]) -> Status {
        self.files = files.iter().map(|(name, text)| (name.into(), (*text).to_owned())).collect();
        for _ in 0..2 {
            let own = fs::read_to_string(self.path()).map(|text| ("portolan-status.yaml".into(), text));
            let all = self.files.iter().cloned().chain(own.ok());
            let contents = all.map(|(path, text)| (path, Content::Bytes(text.into_bytes())));
            let outcome = reconcile(std::mem::take(&mut self.source), contents.collect());
            self.source = outcome.state;
            let update = Update { events: outcome.events, refusals: outcome.refusals, synced: true };
            self.controller.as_mut().unwrap().update(update);
        }
        read(&self.path()).unwrap().unwrap()
    }
}

fn ips(status: &Status, name: &str) -> Vec<String> {
    let service = status.services.iter().find(|service| service.metadata.name == name);
    let addresses = service.map(|service| &service.status.addresses[..]).unwrap_or_default();
    addresses.iter().map(|address| address.ip.to_string()).collect()
}

#[test]
fn services_keep_their_addresses_when_the_controller_begins_anew() {
    let mut world = World::new();
    let (a, b) = (service("a"), service("b"));
    let status = world.tell(&[("pool", POOL), ("b", &b)]);
    assert_eq!(ips(&status, "b"), ["198.51.100.0"]);
    let bytes = fs::read(world.path()).unwrap();

    world.start().unwrap();
    assert_eq!(fs::read(world.path()).unwrap(), bytes, "it writes nothing before it knows the objects");
    let status = world.tell(&[("pool", POOL), ("a", &a), ("b", &b)]);
    assert_eq!(
        (ips(&status, "b"), ips(&status, "a")),
        (vec!["198.51.100.0".into()], vec!["198.51.100.1".into()])
    );

    let status = world.tell(&[("pool", POOL), ("a", &a), ("c", &service("c"))]);
    assert!(ips(&status, "b").is_empty() && !status.services.iter().any(|it| it.metadata.name == "b"));
    assert_eq!(
        (ips(&status, "a"), ips(&status, "c")),
        (vec!["198.51.100.1".into()], vec!["198.51.100.0".into()])
    );
}

#[test]
fn a_service_whose_document_cannot_be_read_after_a_start_keeps_its_address() {
    let mut world = World::new();
    world.tell(&[("pool", POOL), ("a", &service("a")), ("b", &service("b"))]);
    let c = service("c");
    for broken in ["kind: [Service\n".to_owned(), service("a").replace("port: 80", "port: 800000")] {
        world.start().unwrap();
        let status = world.tell(&[("pool", POOL), ("a", &broken), ("c", &c)]);
        assert_eq!(ips(&status, "a"), ["198.51.100.0"], "{broken}");
        assert_ne!(ips(&status, "c"), ["198.51.100.0"], "{broken}");
    }
    // Of what was seen once, the source would know.
    let status = world.tell(&[("pool", POOL), ("junk", "kind: [Service\n")]);
    assert!(ips(&status, "c").is_empty() && !ips(&status, "a").is_empty());
    let status = world.tell(&[("pool", POOL)]);
    assert!(ips(&status, "a").is_empty() && ips(&status, "b").is_empty(), "they are gone");
}

#[test]
fn agents_read_the_addresses_from_the_state_file() {
    let mut world = World::new();
    let own = service("own") + "status: {loadBalancer: {ingress: [{ip: 192.0.2.9}]}}\n";
    world.tell(&[("pool", POOL), ("a", &service("a")), ("own", &own)]);
    let store = &world.controller.as_ref().unwrap().store;
    let ingress = |name: &str| {
        let entry = store.service(&ServiceKey::new("shop", name)).unwrap();
        entry.service.as_ref().unwrap().ingress_ips.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(ingress("a"), ["198.51.100.0"]);
    assert_eq!(ingress("own"), ["192.0.2.9"], "it has one, and gets no other");
}

#[test]
fn edits_of_the_state_file_are_undone() {
    let mut world = World::new();
    let files = [("pool", POOL), ("a", &*service("a"))];
    world.tell(&files);
    let bytes = fs::read_to_string(world.path()).unwrap();
    for edited in ["", &bytes.replace("198.51.100.0", "198.51.100.3")] {
        fs::write(world.path(), edited).unwrap();
        world.tell(&files);
        assert_eq!(fs::read_to_string(world.path()).unwrap(), bytes);
    }
    fs::remove_file(world.path()).unwrap();
    assert_eq!(ips(&world.tell(&files), "a"), ["198.51.100.0"]);
}

#[test]
fn one_controller_writes_a_state_file() {
    let world = World::new();
    let refused = StateFile::open(&world.path()).unwrap_err().to_string();
    assert!(refused.contains("another controller writes"), "{refused}");
}

#[test]
fn a_state_file_that_is_not_understood_is_left_alone() {
    let good =
        "apiVersion: portolan.dev/v1alpha1\nkind: ServiceStatus\nmetadata: {namespace: shop, name: a}\n";
    let cases = [
        ("kind: [Service\n".to_owned(), "document 1"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n".to_owned(), "found Service of v1"),
        (format!("{good}---\n{good}"), "service shop/a is there twice"),
        (
            format!("{good}status: {{loadBalancer: {{ingress: [{{ip: 198.51.100}}]}}}}\n"),
            "invalid IP address",
        ),
    ];
    for (text, reason) in cases {
        let mut world = World::new();
        world.controller = None;
        fs::write(world.path(), &text).unwrap();
        let refused = format!("{:#}", world.start().unwrap_err());
        assert!(refused.contains(reason) && refused.contains("mend it"), "{refused}");
        assert_eq!(fs::read_to_string(world.path()).unwrap(), text);
    }
}

#[test]
fn what_cannot_be_written_was_not_given() {
    let mut world = World::new();
    // A directory in the way of the file that is written beside it.
    let in_the_way = world.directory.path().join(".portolan-status.yaml.tmp");
    fs::create_dir(&in_the_way).unwrap();
    let read_object = |text: &str| {
        let value: serde_json::Value = serde_yaml_ng::from_str(text).unwrap();
        Event::Upsert(portolan_model::read(&value).unwrap().unwrap().object)
    };
    let controller = world.controller.as_mut().unwrap();
    let events = vec![read_object(POOL), read_object(&service("b"))];
    controller.update(Update { events, refusals: Vec::new(), synced: true });
    assert!(controller.unwritten && controller.record.is_empty());
    let gone = Event::Delete(ObjectKey::new(Kind::Service, "shop", "b"));
    let events = vec![gone, read_object(&service("c"))];
    controller.update(Update { events, refusals: Vec::new(), synced: true });
    fs::remove_dir(&in_the_way).unwrap();
    controller.sync();
    assert!(!controller.unwritten);
    assert_eq!(ips(&read(&world.path()).unwrap().unwrap(), "c"), ["198.51.100.0"]);
}
