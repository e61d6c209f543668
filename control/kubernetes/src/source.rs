//! Lists and watches, and tells what changed.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, TypeMeta};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use portolan_model::{Event, Kind, ObjectKey};
use portolan_source::{Refusal, Update};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::state::{KINDS, Seen, State};
use crate::{ApiConfig, ConfigError};

/// Updates that may wait for their reader.
const UPDATES_WAITING: usize = 16;

/// Events that make one update at most.
const BATCH: usize = 4096;

/// Failures one after the other, of all watches together, after which another server is tried.
const FAILURES: usize = 6;

/// Shortest and longest wait after a failure.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// An API server as a source of objects.
#[derive(Debug)]
pub struct ClusterSource;

/// Keeps the server watched. Dropping it ends that.
#[derive(Debug)]
pub struct ClusterHandle(JoinHandle<()>);

impl Drop for ClusterHandle {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ClusterSource {
    /// Watches an API server. The first update is the complete state and comes when every kind was listed; until then,
    /// and whenever the server does not answer, nothing comes. Needs a tokio runtime.
    ///
    /// # Errors
    /// There is no usable configuration. A server that does not answer is no error.
    pub async fn start(config: ApiConfig) -> Result<(mpsc::Receiver<Update>, ClusterHandle), ConfigError> {
        let (client, server) = config.client(0).await?;
        let (updates, receiver) = mpsc::channel(UPDATES_WAITING);
        let worker = Worker {
            config,
            updates,
            state: State::default(),
            pending: Vec::new(),
            refusals: Vec::new(),
            told: false,
        };
        Ok((receiver, ClusterHandle(tokio::spawn(worker.run(client, server.to_string())))))
    }
}

/// Why a server is not watched any more.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Nobody reads.
    Closed,
    /// It does not answer.
    Away,
}

struct Worker {
    config: ApiConfig,
    updates: mpsc::Sender<Update>,
    state: State,
    /// Events that nobody was told of yet.
    pending: Vec<Event>,
    /// As last told.
    refusals: Vec<Refusal>,
    /// The complete state was told once.
    told: bool,
}

impl Worker {
    async fn run(mut self, mut client: Client, mut server: String) {
        let mut turn = 0;
        while self.watch(client.clone(), &server).await == End::Away {
            turn += 1;
            match self.config.client(turn).await {
                Ok((next, name)) => {
                    tracing::warn!(from = server, to = %name, "trying the next API server");
                    (client, server) = (next, name.to_string());
                }
                // As at the start, when it was good; the file may be being written.
                Err(error) => tracing::error!(%error, "the configuration of the API server"),
            }
        }
    }

    /// Watches one server until it does not answer any more and there is another one, or nobody reads.
    async fn watch(&mut self, client: Client, server: &str) -> End {
        let name = Arc::new(PathBuf::from(server));
        let kinds = KINDS.map(|kind| of_kind(client.clone(), kind));
        let mut told = pin!(stream::select_all(kinds).ready_chunks(BATCH));
        let mut failures = 0;
        loop {
            let chunk = tokio::select! {
                chunk = told.next() => chunk,
                () = self.updates.closed() => return End::Closed,
            };
            // Watches never end by themselves.
            let Some(chunk) = chunk else { return End::Away };
            for (kind, seen) in chunk {
                match seen {
                    Ok(seen) => {
                        if std::mem::take(&mut failures) > 0 {
                            tracing::info!(server, "the API server answers again");
                        }
                        self.pending.extend(self.state.take_in(kind, seen, &name));
                    }
                    Err(error) => {
                        failures += 1;
                        tracing::warn!(server, %error, "the API server; what is served stays as it is");
                    }
                }
            }
            if self.tell().await.is_err() {
                return End::Closed;
            }
            if failures >= FAILURES && self.config.servers.len() > 1 {
                return End::Away;
            }
        }
    }

    /// Tells the reader what is new, once the state is complete.
    async fn tell(&mut self) -> Result<(), mpsc::error::SendError<Update>> {
        if !self.state.is_complete() {
            return Ok(());
        }
        let refusals = self.state.refusals();
        if self.told && self.pending.is_empty() && refusals == self.refusals {
            return Ok(());
        }
        for refusal in refusals.iter().filter(|refusal| !self.refusals.contains(refusal)) {
            tracing::warn!("{refusal}");
        }
        self.refusals.clone_from(&refusals);
        self.told = true;
        self.updates.send(Update { events: std::mem::take(&mut self.pending), refusals, synced: true }).await
    }
}

type Told = (Kind, Result<Seen, watcher::Error>);

/// Everything that happens to objects of a kind, for ever.
fn of_kind(client: Client, kind: Kind) -> BoxStream<'static, Told> {
    let resource = resource(kind);
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let types = TypeMeta { api_version: kind.api_version().to_owned(), kind: kind.as_str().to_owned() };
    let seen = move |event| (kind, event_of(kind, event, &types));
    watcher(api, watcher::Config::default()).backoff(Wait::default()).map(seen).boxed()
}

fn event_of(
    kind: Kind,
    event: watcher::Result<watcher::Event<DynamicObject>>,
    types: &TypeMeta,
) -> Result<Seen, watcher::Error> {
    Ok(match event? {
        watcher::Event::Init => Seen::ListBegins,
        watcher::Event::InitDone => Seen::ListEnds,
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
            Seen::Object(Box::new(document(object, types)))
        }
        watcher::Event::Delete(object) => {
            let metadata = object.metadata;
            let (namespace, name) =
                (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
            Seen::Deleted(ObjectKey::new(kind, &namespace, &name))
        }
    })
}

/// The object as `kubectl get -o json` shows it. Objects in a list do not say what they are, and who wrote which field
/// is most of some of them.
fn document(mut object: DynamicObject, types: &TypeMeta) -> Value {
    object.types = Some(types.clone());
    object.metadata.managed_fields = None;
    // What was read from JSON can be written as such.
    serde_json::to_value(&object).unwrap_or_default()
}

/// What is listed and watched, as `group/plural`, sorted: what a role has to allow.
#[must_use]
pub fn resources() -> Vec<String> {
    let mut resources: Vec<String> =
        KINDS.map(resource).iter().map(|it| format!("{}/{}", it.group, it.plural)).collect();
    resources.sort();
    resources
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version) = match kind.api_version().split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", kind.api_version()),
    };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: kind.api_version().to_owned(),
        kind: kind.as_str().to_owned(),
        plural: format!("{}s", kind.as_str().to_lowercase()),
    }
}

/// Twice as long after each failure.
#[derive(Debug, Default)]
struct Wait {
    next: Option<Duration>,
}

impl Iterator for Wait {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.next.unwrap_or(WAIT.0);
        self.next = Some((wait * 2).min(WAIT.1));
        Some(wait)
    }
}

impl Backoff for Wait {
    fn reset(&mut self) {
        self.next = None;
    }
}
