//! The API server as a source: whatever it does, the reader's objects become what the server has.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Uri;
use portolan_kubernetes::{ApiConfig, ClusterSource};
use portolan_model::{Event, Object, ObjectKey};
use portolan_source::Update;
use portolan_tests::lab::{ApiServer, write_kubeconfig};
use tokio::sync::mpsc::Receiver;

/// Longest wait for something that comes.
const SOON: Duration = Duration::from_secs(10);

/// A server, its directory, and what a reader knows.
struct Bench {
    server: ApiServer,
    directory: tempfile::TempDir,
    updates: Receiver<Update>,
    known: BTreeMap<ObjectKey, Object>,
    refusals: Vec<String>,
    _source: portolan_kubernetes::ClusterHandle,
}

impl Bench {
    async fn start(files: &[(&str, String)]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        std::fs::create_dir(directory.path().join("objects"))?;
        write(directory.path(), files)?;
        let server = ApiServer::start(&directory.path().join("objects"))?;
        let kubeconfig = write_kubeconfig(&directory.path().join("kubeconfig"), server.listen()?)?;
        let config = ApiConfig { kubeconfig: Some(kubeconfig), servers: Vec::new() };
        let (updates, source) = ClusterSource::start(config).await?;
        let known = BTreeMap::new();
        Ok(Self { server, directory, updates, known, refusals: Vec::new(), _source: source })
    }

    fn write(&self, files: &[(&str, String)]) -> Result<()> {
        write(self.directory.path(), files)
    }

    /// Takes in one update.
    async fn next(&mut self) -> Result<()> {
        let update = tokio::time::timeout(SOON, self.updates.recv()).await.context("no update comes")?;
        let update = update.context("the source has ended")?;
        ensure!(update.synced, "an update that is no complete state");
        for event in update.events {
            match event {
                Event::Upsert(object) => drop(self.known.insert(object.key(), object)),
                Event::Delete(key) => drop(self.known.remove(&key).context("deleted twice")?),
            }
        }
        self.refusals = update.refusals.iter().map(ToString::to_string).collect();
        Ok(())
    }

    /// Takes in updates until these are the objects' names.
    async fn until(&mut self, names: &[&str]) -> Result<()> {
        while self.names() != names {
            self.next()
                .await
                .with_context(|| format!("waiting for {names:?}, there are {:?}", self.names()))?;
        }
        Ok(())
    }

    fn names(&self) -> Vec<&str> {
        self.known.keys().map(ObjectKey::name).collect()
    }

    /// The first port of a service.
    fn port(&self, name: &str) -> Option<u16> {
        self.known.values().find_map(|object| match object {
            Object::Service(service) if service.key.name() == name => {
                service.ports.first().map(|port| port.port)
            }
            _ => None,
        })
    }
}

fn write(directory: &Path, files: &[(&str, String)]) -> Result<()> {
    for (name, text) in files {
        let fresh = directory.join("fresh");
        std::fs::write(&fresh, text)?;
        std::fs::rename(fresh, directory.join("objects").join(name))?;
    }
    Ok(())
}

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{{port: {port}}}]}}\n---\n"
    )
}

fn node() -> String {
    "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\nspec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}\n"
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_update_is_everything_and_changes_follow() -> Result<()> {
    let both = service("a", "80") + &service("b", "81");
    let mut bench = Bench::start(&[("services.yaml", both), ("node.yaml", node())]).await?;
    bench.next().await?;
    assert_eq!(bench.names(), ["a", "b", "node1"], "all at once");

    bench.write(&[("services.yaml", service("a", "90") + &service("c", "82"))])?;
    bench.until(&["a", "c", "node1"]).await?;
    while bench.port("a") != Some(90) {
        bench.next().await?;
    }
    assert_eq!(bench.server.lists(), 6, "one for each kind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_the_server_is_away_is_seen_when_it_is_back() -> Result<()> {
    let mut bench = Bench::start(&[("services.yaml", service("a", "80") + &service("b", "81"))]).await?;
    bench.until(&["a", "b"]).await?;
    bench.server.set_away(true);
    bench.write(&[("services.yaml", service("b", "91") + &service("c", "82"))])?;
    bench.server.settle();
    // It has forgotten what happened meanwhile: only a new list can tell that one is gone.
    bench.server.forget();
    let quiet = tokio::time::timeout(Duration::from_millis(300), bench.updates.recv()).await;
    ensure!(quiet.is_err(), "nothing is told of a server that does not answer: {quiet:?}");
    bench.server.set_away(false);
    bench.until(&["b", "c"]).await?;
    while bench.port("b") != Some(91) {
        bench.next().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_was_cut_goes_on_where_it_was() -> Result<()> {
    let mut bench = Bench::start(&[("services.yaml", service("a", "80"))]).await?;
    bench.until(&["a"]).await?;
    let lists = bench.server.lists();
    for port in 81..86u16 {
        bench.server.cut();
        bench.write(&[("services.yaml", service("a", &port.to_string()))])?;
        while bench.port("a") != Some(port) {
            bench.next().await?;
        }
    }
    assert_eq!(bench.server.lists(), lists, "nothing is listed again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_object_is_refused_by_name_and_field_and_all_others_are_served() -> Result<()> {
    let mut bench =
        Bench::start(&[("services.yaml", service("a", "80") + &service("bad", "\"http\""))]).await?;
    bench.until(&["a"]).await?;
    assert_eq!(bench.refusals.len(), 1, "{:?}", bench.refusals);
    let refusal = &bench.refusals[0];
    for word in ["http://127.0.0.1", "Service shop/bad", "spec.ports[0].port", "it is not served"] {
        ensure!(refusal.contains(word), "no {word} in: {refusal}");
    }
    bench.write(&[("services.yaml", service("a", "70000") + &service("bad", "81"))])?;
    bench.until(&["a", "bad"]).await?;
    while !bench.refusals.iter().any(|refusal| refusal.contains("the last good version keeps serving")) {
        bench.next().await?;
    }
    assert_eq!(bench.port("a"), Some(80), "the last good version");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_takes_over_when_one_does_not_answer() -> Result<()> {
    let directory = tempfile::tempdir()?;
    std::fs::create_dir(directory.path().join("objects"))?;
    write(directory.path(), &[("services.yaml", service("a", "80"))])?;
    let objects = directory.path().join("objects");
    let servers = [ApiServer::start(&objects)?, ApiServer::start(&objects)?];
    let addresses = [servers[0].listen()?, servers[1].listen()?];
    let uris = addresses.map(|address| format!("http://{address}").parse::<Uri>().expect("an address"));
    let kubeconfig = write_kubeconfig(&directory.path().join("kubeconfig"), addresses[0])?;
    let config = ApiConfig { kubeconfig: Some(kubeconfig), servers: uris.to_vec() };
    let (mut updates, _source) = ClusterSource::start(config).await?;
    let first = tokio::time::timeout(SOON, updates.recv()).await?.context("the first update")?;
    assert_eq!(first.events.len(), 1);

    servers[0].set_away(true);
    write(directory.path(), &[("more.yaml", service("b", "81"))])?;
    let named = |event: &Event| matches!(event, Event::Upsert(object) if object.key().name() == "b");
    let mut events = Vec::new();
    while !events.iter().any(named) {
        let update = tokio::time::timeout(SOON, updates.recv()).await.context("from the other server")?;
        events.extend(update.context("the source has ended")?.events);
    }
    ensure!(events.iter().all(|event| matches!(event, Event::Upsert(_))), "nothing was deleted: {events:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_that_are_not_installed_keep_nobody_from_being_served_and_are_looked_for_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    std::fs::create_dir(directory.path().join("objects"))?;
    let pool = "apiVersion: portolan.dev/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: p}\n\
                spec: {addresses: [198.51.100.0/24]}\n";
    write(directory.path(), &[("services.yaml", service("a", "80")), ("pool.yaml", pool.to_owned())])?;
    let server = ApiServer::start(&directory.path().join("objects"))?;
    for plural in ["loadbalancerpools", "bgppeers", "bgpadvertisements"] {
        server.set_missing(plural, true);
    }
    let kubeconfig = write_kubeconfig(&directory.path().join("kubeconfig"), server.listen()?)?;
    let config = ApiConfig { kubeconfig: Some(kubeconfig), ..ApiConfig::default() };
    let (mut updates, _source) = ClusterSource::start(config).await?;
    let first = tokio::time::timeout(SOON, updates.recv()).await?.context("the first update")?;
    assert_eq!(first.events.len(), 1, "the service alone: {:?}", first.events);

    server.set_missing("loadbalancerpools", false);
    let update = tokio::time::timeout(SOON, updates.recv()).await.context("of the pool")?;
    let events = update.context("the source has ended")?.events;
    ensure!(matches!(&events[..], [Event::Upsert(Object::LoadBalancerPool(_))]), "{events:?}");

    server.set_missing("loadbalancerpools", true);
    let update = tokio::time::timeout(SOON, updates.recv()).await.context("of its end")?;
    let events = update.context("the source has ended")?.events;
    ensure!(matches!(&events[..], [Event::Delete(key)] if key.name() == "p"), "{events:?}");

    // What did not change meanwhile is told again: only a new list has it.
    server.set_missing("loadbalancerpools", false);
    let update = tokio::time::timeout(SOON, updates.recv()).await.context("of its return")?;
    let events = update.context("the source has ended")?.events;
    ensure!(matches!(&events[..], [Event::Upsert(Object::LoadBalancerPool(_))]), "{events:?}");
    Ok(())
}
