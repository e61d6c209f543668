//! The controller on an API server: addresses in statuses, whatever happens to it, its peers and the server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{ApiServer, Controller, Fault, poll, write_kubeconfig};
use serde_json::{Value, json};

/// Longest time for anything. It takes milliseconds, or a lease's second, but a test machine may be busy.
const SOON: Duration = Duration::from_secs(20);

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// An API server and controllers that are its clients.
struct Bench {
    server: ApiServer,
    controllers: Vec<Controller>,
    directory: tempfile::TempDir,
}

impl Bench {
    /// With so many controllers, of which one leads.
    fn start(controllers: usize, files: &[(&str, String)]) -> Result<Self> {
        let bench = Self::prepare(controllers, files)?;
        let mut bench = bench;
        for controller in &mut bench.controllers {
            controller.launch()?;
        }
        Ok(bench)
    }

    fn prepare(controllers: usize, files: &[(&str, String)]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        std::fs::create_dir(directory.path().join("objects"))?;
        let server = ApiServer::start(&directory.path().join("objects"))?;
        let kubeconfig = write_kubeconfig(&directory.path().join("kubeconfig"), server.listen()?)?;
        let controller = |number| {
            Controller::on_api(&kubeconfig, directory.path().join(format!("controller{number}.log")))
        };
        let controllers = (0..controllers).map(controller).collect();
        let bench = Self { server, controllers, directory };
        bench.write(files)?;
        bench.server.settle();
        Ok(bench)
    }

    fn write(&self, files: &[(&str, String)]) -> Result<()> {
        for (name, text) in files {
            let fresh = self.directory.path().join("fresh");
            std::fs::write(&fresh, text)?;
            std::fs::rename(fresh, self.objects().join(name))?;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.objects().join(name))?)
    }

    fn objects(&self) -> std::path::PathBuf {
        Path::join(self.directory.path(), "objects")
    }

    fn service(&self, name: &str) -> Value {
        self.server.object("services", "shop", name).unwrap_or_default()
    }

    /// Waits until something is so; tells the controllers' logs if it never is.
    fn until<T>(&self, what: &str, is: impl Fn() -> Option<T>) -> Result<T> {
        poll(SOON, what, is).with_context(|| {
            let logs: Vec<String> = self.controllers.iter().map(Controller::log).collect();
            logs.join("\n--- the next controller ---\n")
        })
    }

    /// Waits until a service has these addresses.
    fn until_has(&self, name: &str, wanted: &[&str]) -> Result<()> {
        let has = || {
            let service = self.service(name);
            (!service.is_null() && addresses(&service) == wanted).then_some(())
        };
        self.until(&format!("{name} has {wanted:?}"), has)
            .with_context(|| format!("{:#}", self.service(name)))
    }

    /// Waits until a service's condition has this reason.
    fn until_said(&self, name: &str, reason: &str) -> Result<()> {
        let is = || {
            (condition(&self.service(name), "portolan.dev/AddressesGiven")["reason"] == reason).then_some(())
        };
        self.until(&format!("{name} is {reason}"), is).with_context(|| format!("{:#}", self.service(name)))
    }

    /// Nobody ever had an address while another service had it, and nobody had one before the finalizer.
    fn check(&self) -> Result<()> {
        let mut statuses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for change in self.server.chronicle("services") {
            let name = change.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if change.kind == "DELETED" {
                statuses.remove(&name);
                continue;
            }
            let now: BTreeSet<String> = addresses(&change.object).into_iter().collect();
            ensure!(
                now.is_empty() || has_finalizer(&change.object),
                "without a finalizer: {}",
                change.object
            );
            statuses.insert(name, now);
            let all: Vec<&String> = statuses.values().flatten().collect();
            let distinct: BTreeSet<&&String> = all.iter().collect();
            ensure!(all.len() == distinct.len(), "given twice at version {}: {statuses:?}", change.version);
        }
        Ok(())
    }
}

fn addresses(service: &Value) -> Vec<String> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
    let ips = ingress.into_iter().flatten().filter_map(|entry| entry["ip"].as_str().map(str::to_owned));
    ips.collect()
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|it| it["type"] == kind).cloned().unwrap_or_default()
}

fn has_finalizer(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|all| all.contains(&json!(FINALIZER)))
}

fn pool(addresses: &str) -> (&'static str, String) {
    let text = format!(
        "apiVersion: portolan.dev/v1alpha1\nkind: LoadBalancerPool\nmetadata: {{name: p}}\nspec: {{addresses: [{addresses}]}}\n"
    );
    ("pool.yaml", text)
}

fn service_with(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{type: LoadBalancer, clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{{port: 80}}]{spec}}}\n---\n"
    )
}

fn service(name: &str) -> String {
    service_with(name, "")
}

#[test]
fn a_service_is_given_an_address_with_its_finalizer_conditions_and_an_event() -> Result<()> {
    let mut bench = Bench::start(1, &[pool("198.51.100.8/30"), ("a.yaml", service("a"))])?;
    bench.until_has("a", &["198.51.100.8"])?;
    let a = bench.service("a");
    assert_eq!(a["status"]["loadBalancer"]["ingress"], json!([{"ip": "198.51.100.8", "ipMode": "VIP"}]));
    let given = condition(&a, "portolan.dev/AddressesGiven");
    assert_eq!((&given["status"], &given["reason"]), (&json!("True"), &json!("Given")));
    ensure!(given["lastTransitionTime"].as_str().is_some_and(|time| time.len() == 20), "{given}");
    ensure!(has_finalizer(&a), "{a:#}");

    let told = || {
        let pool = bench.server.object("loadbalancerpools", "", "p")?;
        let counts = json!({"total": 4, "assigned": 1, "available": 3});
        (pool["status"]["ipv4"] == counts && condition(&pool, "Ready")["status"] == "True").then_some(())
    };
    bench.until("the pool's status", told)?;
    let event = bench.until("an event", || {
        bench.server.objects("events").into_iter().find(|it| it["reason"] == "AddressesGiven")
    })?;
    assert_eq!(event["regarding"]["uid"], a["metadata"]["uid"]);
    assert_eq!((&event["type"], &event["note"]), (&json!("Normal"), &json!("198.51.100.8")));
    assert_eq!(event["metadata"]["namespace"], "shop");

    // Nothing is left to do: no version changes any more, but the lease's.
    let version = |bench: &Bench| bench.service("a")["metadata"]["resourceVersion"].clone();
    let before = version(&bench);
    bench.write(&[("b.yaml", service_with("b", ", loadBalancerClass: example.org/other"))])?;
    bench.until("the other service is there", || (!bench.service("b").is_null()).then_some(()))?;
    bench.controllers[0].terminate()?;
    assert_eq!(version(&bench), before);
    assert_eq!(
        (bench.service("b")["status"].clone(), has_finalizer(&bench.service("b"))),
        (json!(null), false)
    );
    let lease = bench.server.object("leases", "default", "portolan-controller").context("no lease")?;
    assert_eq!(lease["spec"]["holderIdentity"], "", "it was given back");
    bench.check()
}

#[test]
fn an_address_stays_over_a_kill_of_the_controller_and_edits_of_the_pool_and_the_status() -> Result<()> {
    let mut bench = Bench::start(1, &[pool("198.51.100.8/30"), ("a.yaml", service("b"))])?;
    bench.until_has("b", &["198.51.100.8"])?;
    bench.controllers[0].kill()?;
    // An older service by name, and the pool has other addresses.
    bench.write(&[pool("203.0.113.0/30"), ("b.yaml", service("a"))])?;
    bench.server.settle();
    bench.controllers[0].launch()?;
    bench.until_has("a", &["203.0.113.0"])?;
    bench.until_has("b", &["198.51.100.8"])?;
    bench.until("it is said that it is kept", || {
        (condition(&bench.service("b"), "portolan.dev/AddressesKept")["reason"] == "NotInAPool").then_some(())
    })?;
    // Back to what is right when somebody else writes.
    bench.server.edit("services", "shop", "b", |it| it["status"]["loadBalancer"] = json!({}))?;
    bench.until_has("b", &["198.51.100.8"])?;
    bench.remove("pool.yaml")?;
    bench.write(&[("c.yaml", service("c"))])?;
    bench.until_said("c", "NoPool")?;
    bench.until_has("a", &["203.0.113.0"])?;
    bench.check()
}

#[test]
fn what_is_refused_says_why_in_conditions_and_events() -> Result<()> {
    let bad = service_with("d", "")
        .replace("namespace: shop", "namespace: shop, annotations: {portolan.dev/pool: nowhere}");
    let bench = Bench::start(
        1,
        &[
            pool("198.51.100.8/32, 127.0.0.0/8"),
            (
                "a.yaml",
                service("a") + &service("b") + &service_with("c", ", loadBalancerIP: 192.0.2.1") + &bad,
            ),
        ],
    )?;
    bench.until_has("a", &["198.51.100.8"])?;
    for (name, reason) in [("b", "PoolsExhausted"), ("c", "RequestRefused"), ("d", "RequestRefused")] {
        bench.until_said(name, reason)?;
        let event = bench.until("an event", || {
            bench.server.objects("events").into_iter().find(|it| it["regarding"]["name"] == name)
        })?;
        assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!(reason)));
        assert_eq!(condition(&bench.service(name), "portolan.dev/AddressesGiven")["status"], "False");
        ensure!(!has_finalizer(&bench.service(name)), "{name} has nothing to clean up");
    }
    let pool = bench.until("the pool's refusal", || {
        let pool = bench.server.object("loadbalancerpools", "", "p")?;
        (condition(&pool, "Invalid")["status"] == "True").then_some(pool)
    })?;
    let message = condition(&pool, "Invalid")["message"].as_str().unwrap_or_default().to_owned();
    ensure!(message.contains("spec.addresses[1]") && message.contains("127.0.0.0"), "{message}");
    assert_eq!(condition(&pool, "Ready")["status"], "True", "the rest is used");
    let event = bench.until("the pool's event", || {
        bench
            .server
            .objects("events")
            .into_iter()
            .find(|it| it["regarding"]["name"] == "p" && it["reason"] == "Invalid")
    })?;
    assert_eq!(event["metadata"]["namespace"], "default");

    // Room is made, and the next one gets it.
    bench.write(&[("pool.yaml", pool_text("198.51.100.8/31"))])?;
    bench.until_has("b", &["198.51.100.9"])?;
    bench.until("the refusal is taken back", || {
        condition(&bench.server.object("loadbalancerpools", "", "p")?, "Invalid").is_null().then_some(())
    })?;
    bench.check()
}

fn pool_text(addresses: &str) -> String {
    pool(addresses).1
}

#[test]
fn a_deleted_service_is_gone_when_its_address_is_free_and_the_next_one_gets_it() -> Result<()> {
    let bench = Bench::start(1, &[pool("198.51.100.8/32"), ("a.yaml", service("a"))])?;
    bench.until_has("a", &["198.51.100.8"])?;
    bench.write(&[("b.yaml", service("b"))])?;
    bench.until_said("b", "PoolsExhausted")?;
    bench.remove("a.yaml")?;
    bench.until("it is gone", || bench.service("a").is_null().then_some(()))?;
    bench.until_has("b", &["198.51.100.8"])?;
    let chronicle = bench.server.chronicle("services");
    let last = chronicle.iter().rfind(|it| it.object["metadata"]["name"] == "a").context("nothing of it")?;
    assert_eq!((last.kind, addresses(&last.object)), ("DELETED", vec![]), "its status was emptied first");

    // One that is no load balancer any more is like one that is gone, but stays.
    let plain = service("b").replace("type: LoadBalancer", "type: ClusterIP");
    bench.write(&[("b.yaml", plain), ("c.yaml", service("c"))])?;
    bench.until_has("c", &["198.51.100.8"])?;
    bench.until("the finalizer is taken out", || {
        let b = bench.service("b");
        (!has_finalizer(&b) && condition(&b, "portolan.dev/AddressesGiven").is_null()).then_some(())
    })?;
    bench.check()
}

#[test]
fn of_two_controllers_one_writes_and_the_other_takes_over_with_all_addresses_as_they_are() -> Result<()> {
    let many = |range: std::ops::Range<usize>| range.map(|n| service(&format!("s{n}"))).collect::<String>();
    let mut bench = Bench::start(2, &[pool("198.51.100.0/24"), ("a.yaml", many(0..10))])?;
    let given = |bench: &Bench, count: usize| -> Result<BTreeMap<String, Vec<String>>> {
        bench.until("all have addresses", || {
            let all: BTreeMap<String, Vec<String>> = bench
                .server
                .objects("services")
                .iter()
                .map(|it| (it["metadata"]["name"].to_string(), addresses(it)))
                .collect();
            (all.len() == count && all.values().all(|ips| ips.len() == 1)).then_some(all)
        })
    };
    let before = given(&bench, 10)?;
    let holder = |bench: &Bench| {
        let lease = bench.server.object("leases", "default", "portolan-controller").unwrap_or_default();
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    };
    let leads = |controller: &Controller| controller.log().matches(" leading").count();
    let leader = bench.controllers.iter().position(|it| leads(it) == 1).context("nobody leads")?;
    assert_eq!(leads(&bench.controllers[1 - leader]), 0, "one of them waits");

    // The leader is stopped for longer than its lease, with work in front of it; then it goes on.
    let first = holder(&bench);
    bench.controllers[leader].set_stopped(true)?;
    bench.write(&[("b.yaml", many(10..20))])?;
    let second = given(&bench, 20)?;
    ensure!(holder(&bench) != first && before.iter().all(|(name, ips)| second[name] == *ips), "{second:?}");
    bench.controllers[leader].set_stopped(false)?;
    bench.write(&[("c.yaml", many(20..30))])?;
    given(&bench, 30)?;
    bench.until("it knows that it leads no more", || {
        bench.controllers[leader].log().contains("not leading any more").then_some(())
    })?;

    // A leader that ends in peace leaves the lease: the other one is there before its end.
    bench.controllers[1 - leader].terminate()?;
    bench.write(&[("d.yaml", many(30..40))])?;
    let third = given(&bench, 40)?;
    ensure!(second.iter().all(|(name, ips)| third[name] == *ips), "{third:?}");
    bench.check()
}

#[test]
fn writes_that_are_refused_or_lost_are_done_in_the_end_and_once() -> Result<()> {
    let bench = Bench::prepare(
        1,
        &[pool("198.51.100.0/29"), ("a.yaml", (0..8).map(|n| service(&format!("s{n}"))).collect())],
    )?;
    let faults =
        [Fault::Refuse(409), Fault::LoseAnswer, Fault::Refuse(500), Fault::LoseRequest, Fault::Refuse(422)];
    for fault in faults {
        bench.server.fail(fault, "PATCH", "/services/", 4);
    }
    bench.server.fail(Fault::Refuse(500), "POST", "/events", 1);
    let mut bench = bench;
    bench.controllers[0].launch()?;
    for n in 0..8 {
        bench.until(&format!("s{n} has an address"), || {
            (addresses(&bench.service(&format!("s{n}"))).len() == 1).then_some(())
        })?;
    }
    assert_eq!(bench.server.faults_left(), 0, "all faults were met");
    bench.check()
}

#[test]
fn everything_stays_while_the_api_server_is_away_and_goes_on_when_it_is_back() -> Result<()> {
    let bench =
        Bench::start(1, &[pool("198.51.100.8/31"), ("a.yaml", service("a")), ("b.yaml", service("b"))])?;
    bench.until_has("a", &["198.51.100.8"])?;
    bench.until_has("b", &["198.51.100.9"])?;
    bench.server.set_away(true);
    bench.until("it leads no more", || {
        bench.controllers[0].log().contains("not leading any more").then_some(())
    })?;
    bench.remove("b.yaml")?;
    bench.write(&[("c.yaml", service("c"))])?;
    bench.server.settle();
    bench.server.forget();
    bench.server.set_away(false);
    bench.until_has("c", &["198.51.100.9"])?;
    bench.until_has("a", &["198.51.100.8"])?;
    bench.check()
}

#[test]
fn without_the_kind_of_pools_services_keep_what_they_have_and_others_are_told() -> Result<()> {
    let bench = Bench::start(1, &[pool("198.51.100.8/31"), ("a.yaml", service("a"))])?;
    bench.until_has("a", &["198.51.100.8"])?;
    bench.server.set_missing("loadbalancerpools", true);
    bench.until("it says so", || {
        bench.controllers[0].log().contains("does not have this kind").then_some(())
    })?;
    bench.write(&[("b.yaml", service("b"))])?;
    bench.until_said("b", "NoPool")?;
    bench.until_has("a", &["198.51.100.8"])?;
    bench.server.set_missing("loadbalancerpools", false);
    bench.until_has("b", &["198.51.100.9"])?;
    bench.check()
}
