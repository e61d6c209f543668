use super::*;

fn service(name: &str, port: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  - port: {port}\n"
    )
}

/// A directory in memory and what was told about it so far.
#[derive(Default)]
struct World {
    state: State,
    files: BTreeMap<PathBuf, Content>,
    refusals: Vec<Refusal>,
}

impl World {
    /// Puts the files in, reconciles, and gives the events in short: `+name:port`, `-name`.
    fn write(&mut self, files: &[(&str, &str)]) -> Vec<String> {
        for (name, text) in files {
            self.files.insert(PathBuf::from(name), Content::Bytes(text.as_bytes().to_vec()));
        }
        self.reconcile()
    }

    fn remove(&mut self, name: &str) -> Vec<String> {
        self.files.remove(&PathBuf::from(name));
        self.reconcile()
    }

    fn reconcile(&mut self) -> Vec<String> {
        let files: Vec<_> =
            self.files.iter().map(|(path, content)| (path.clone(), content.clone())).collect();
        let outcome = reconcile(std::mem::take(&mut self.state), files);
        self.state = outcome.state;
        self.refusals = outcome.refusals;
        // What was read need not be read again.
        self.files.values_mut().for_each(|content| *content = Content::Unchanged);
        outcome.events.iter().map(short).collect()
    }

    fn refusals(&self) -> Vec<String> {
        self.refusals.iter().map(ToString::to_string).collect()
    }
}

fn short(event: &Event) -> String {
    match event {
        Event::Upsert(Object::Service(service)) => {
            format!("+{}:{}", service.key.name(), service.ports[0].port)
        }
        Event::Upsert(other) => format!("+{}", other.key()),
        Event::Delete(key) => format!("-{}", key.name()),
    }
}

#[test]
fn several_documents_in_one_file_are_several_objects() {
    let mut world = World::default();
    let text = format!(
        "# comment\n---\n{}---\n{}...\n---\n# nothing\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\n",
        service("a", 80),
        service("b", 81)
    );
    assert_eq!(world.write(&[("x.yaml", &text)]), ["+a:80", "+b:81"]);
    assert!(world.refusals().is_empty(), "{:?}", world.refusals());
    assert!(world.reconcile().is_empty());
}

#[test]
fn lists_of_any_and_of_our_kinds_are_opened() {
    let item = |name: &str| {
        format!("{{metadata: {{name: {name}}}, spec: {{clusterIP: 10.0.0.1, ports: [{{port: 1}}]}}}}")
    };
    let list = format!("apiVersion: v1\nkind: ServiceList\nitems:\n- {}\n- {}\n", item("a"), item("b"));
    let mut world = World::default();
    assert_eq!(world.write(&[("x.yaml", &list)]), ["+a:1", "+b:1"]);

    let mixed = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata: {name: n}\n- apiVersion: v1\n  \
                 kind: Service\n  metadata: {name: bad}\n  spec:\n    ports:\n    - port: 99999\n- kind: Other\n  apiVersion: v1\n";
    assert_eq!(world.write(&[("y.yaml", mixed)]), ["+Node n"]);
    assert_eq!(
        world.refusals(),
        [
            "y.yaml:12: Service default/bad: spec.ports[0].port: expected 1 to 65535, found 99999 (it is not served)"
        ]
    );
    assert_eq!(world.write(&[("z.yaml", "apiVersion: v1\nkind: List\nitems: []\n")]), Vec::<String>::new());
}

#[test]
fn an_object_whose_document_went_bad_keeps_its_last_good_version_and_the_others_change() {
    let mut world = World::default();
    world.write(&[("x.yaml", &format!("{}---\n{}", service("a", 80), service("b", 81)))]);
    let events = world.write(&[("x.yaml", &format!("{}---\n{}", service("a", 70_000), service("b", 82)))]);
    assert_eq!(events, ["+b:82"]);
    let reason = "x.yaml:8: Service default/a: spec.ports[0].port: expected 1 to 65535, found 70000";
    assert_eq!(world.refusals(), [format!("{reason} (the last good version keeps serving)")]);
    assert_eq!(world.write(&[("x.yaml", &service("a", 83))]), ["-b", "+a:83"]);
    assert!(world.refusals().is_empty());
}

#[test]
fn a_syntax_error_costs_one_document_and_deletes_nothing() {
    let mut world = World::default();
    world.write(&[(
        "x.yaml",
        &format!("{}---\n{}---\n{}", service("a", 1), service("b", 2), service("c", 3)),
    )]);
    // `b` is broken beyond recognition and `c` is gone: it might have been the broken one.
    let events = world
        .write(&[("x.yaml", &format!("{}---\nkind: [Service\n---\n{}", service("a", 4), service("d", 5)))]);
    assert_eq!(events, ["+a:4", "+d:5"]);
    assert_eq!(world.refusals.len(), 1);
    assert_eq!(
        (world.refusals[0].line, world.refusals[0].effect),
        (11, Effect::LastGoodServed),
        "{:?}",
        world.refusals()
    );
    assert_eq!(world.write(&[("x.yaml", &service("a", 4))]), ["-b", "-c", "-d"]);
}

#[test]
fn an_unreadable_file_keeps_its_objects_and_a_missing_one_does_not() {
    let mut world = World::default();
    world.write(&[("x.yaml", &service("a", 80)), ("y.yaml", &service("b", 80))]);
    world.files.insert("x.yaml".into(), Content::Unreadable("cannot be read: denied".into()));
    assert!(world.reconcile().is_empty());
    assert_eq!(world.refusals(), ["x.yaml: cannot be read: denied (the last good version keeps serving)"]);
    assert_eq!(world.remove("x.yaml"), ["-a"]);
    assert!(world.refusals().is_empty());
}

#[test]
fn bytes_that_are_not_utf8_are_refused_with_their_line() {
    let mut world = World::default();
    world.files.insert("x.yaml".into(), Content::Bytes(b"a: 1\nb: \xff\n".to_vec()));
    assert!(world.reconcile().is_empty());
    assert_eq!(world.refusals(), ["x.yaml:2: not UTF-8 text (it is not served)"]);
}

#[test]
fn the_first_file_by_name_owns_an_object_whatever_came_first() {
    let mut world = World::default();
    assert_eq!(world.write(&[("b.yaml", &service("web", 80))]), ["+web:80"]);
    assert_eq!(world.write(&[("a.yaml", &service("web", 81))]), ["+web:81"]);
    let refusal = "b.yaml:1: Service default/web: a.yaml:1 already defines it; remove one of them (the other one is served)";
    assert_eq!(world.refusals(), [refusal]);
    assert_eq!(world.remove("a.yaml"), ["+web:80"]);
    assert!(world.refusals().is_empty());
}

#[test]
fn an_owner_that_goes_bad_does_not_lose_its_object_to_a_copy() {
    let mut world = World::default();
    world.write(&[("a.yaml", &service("web", 80)), ("b.yaml", &service("web", 81))]);
    assert!(world.write(&[("a.yaml", "kind: [")]).is_empty());
    assert!(world.write(&[("a.yaml", &service("web", 0))]).is_empty());
    assert_eq!(world.refusals.len(), 2, "{:?}", world.refusals());
}

#[test]
fn a_bad_document_that_never_was_good_does_not_stand_in_the_way_of_a_good_copy() {
    let mut world = World::default();
    assert_eq!(world.write(&[("a.yaml", &service("web", 0)), ("b.yaml", &service("web", 81))]), ["+web:81"]);
    assert_eq!(world.refusals[0].effect, Effect::NotServed);
}

#[test]
fn an_object_that_moves_to_another_file_is_neither_deleted_nor_changed() {
    let mut world = World::default();
    world.write(&[("a.yaml", &service("web", 80))]);
    world.files.remove(&PathBuf::from("a.yaml"));
    assert!(world.write(&[("b.yaml", &service("web", 80))]).is_empty());
    assert_eq!(world.remove("b.yaml"), ["-web"]);
}

#[test]
fn a_part_that_is_left_out_is_told_and_the_rest_served() {
    let mut world = World::default();
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s\naddressType: IPv4\nendpoints:\n\
                 - addresses: [10.1.0.1]\n- addresses:\n  - 127.0.0.1\n";
    assert_eq!(world.write(&[("x.yaml", slice)]), ["+EndpointSlice default/s"]);
    assert_eq!(
        world.refusals(),
        [
            "x.yaml:9: EndpointSlice default/s: endpoints[1].addresses[0]: expected a unicast address outside one host or \
         link, found loopback 127.0.0.1 (the rest of it is served)"
        ]
    );
}

#[test]
fn a_document_that_is_no_object_is_refused() {
    let mut world = World::default();
    world.write(&[
        ("x.yaml", "just text\n"),
        ("y.yaml", "name: values of some chart\n"),
        ("z.yaml", "- a\n"),
    ]);
    let fields: Vec<_> = world.refusals.iter().map(|refusal| refusal.field.as_str()).collect();
    assert_eq!(fields, ["", "kind", ""]);
}

#[test]
fn pools_and_statuses_are_read_and_what_is_only_told_is_not() {
    let mut world = World::default();
    let text = "apiVersion: portolan.dev/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: p}\nspec:\n  addresses:\n  - 198.51.100.0/24\n  \
                - 127.0.0.0/8\n---\napiVersion: portolan.dev/v1alpha1\nkind: LoadBalancerPoolStatus\nmetadata: {name: p}\n---\n\
                apiVersion: portolan.dev/v1alpha1\nkind: ServiceStatus\nmetadata: {name: web}\nstatus:\n  loadBalancer:\n    ingress:\n    \
                - ip: 198.51.100.1\n      ipMode: VIP\n";
    assert_eq!(world.write(&[("x.yaml", text)]), ["+LoadBalancerPool p", "+ServiceStatus default/web"]);
    assert_eq!(
        world.refusals(),
        [
            "x.yaml:7: LoadBalancerPool p: spec.addresses[1]: expected a unicast address outside one host or link, found \
             127.0.0.0/8, with loopback 127.0.0.0 (the rest of it is served)"
        ]
    );
    assert_eq!(world.remove("x.yaml"), ["-p", "-web"]);
}
