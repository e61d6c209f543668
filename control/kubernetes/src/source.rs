//! Lists and watches, and tells what changed.

use std::collections::BTreeSet;
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

use crate::facts::Facts;
use crate::state::{Interest, Seen, State};
use crate::{ApiConfig, ConfigError};

/// Updates that may wait for their reader.
const UPDATES_WAITING: usize = 16;

/// Events that make one update at most.
const BATCH: usize = 4096;

/// Failures one after the other, of each watch on average, after which another server is tried.
const FAILURES: usize = 2;

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

/// What changed, and how the objects of the changes are at the server.
#[derive(Debug)]
pub struct Watched {
    /// What changed.
    pub update: Update,
    /// New facts in their order; none: the object is gone.
    pub facts: Vec<(ObjectKey, Option<Facts>)>,
}

impl From<Watched> for Update {
    fn from(watched: Watched) -> Self {
        watched.update
    }
}

impl ClusterSource {
    /// Watches what an agent needs of an API server. The first update is the complete state and comes when every kind was listed; until then,
    /// and whenever the server does not answer, nothing comes. Needs a tokio runtime.
    ///
    /// # Errors
    /// There is no usable configuration. A server that does not answer is no error.
    pub async fn start(config: ApiConfig) -> Result<(mpsc::Receiver<Update>, ClusterHandle), ConfigError> {
        Self::begin(config, Interest::AGENT).await
    }

    /// As [`start`](Self::start), for the controller.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn watch(config: ApiConfig) -> Result<(mpsc::Receiver<Watched>, ClusterHandle), ConfigError> {
        Self::begin(config, Interest::CONTROLLER).await
    }

    async fn begin<T: From<Watched> + Send + 'static>(
        config: ApiConfig,
        interest: Interest,
    ) -> Result<(mpsc::Receiver<T>, ClusterHandle), ConfigError> {
        let (client, server) = config.client(0).await?;
        let (updates, receiver) = mpsc::channel(UPDATES_WAITING);
        let worker = Worker {
            config,
            updates,
            interest,
            state: State::new(interest),
            pending: Vec::new(),
            refusals: Vec::new(),
            told: false,
            missing: BTreeSet::new(),
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

struct Worker<T> {
    config: ApiConfig,
    updates: mpsc::Sender<T>,
    interest: Interest,
    state: State,
    /// Events that nobody was told of yet.
    pending: Vec<Event>,
    /// As last told.
    refusals: Vec<Refusal>,
    /// The complete state was told once.
    told: bool,
    /// Kinds of our own that the server does not have.
    missing: BTreeSet<Kind>,
}

impl<T: From<Watched> + Send + 'static> Worker<T> {
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
        let kinds = self.interest.kinds.iter().map(|kind| of_kind(client.clone(), *kind));
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
                    Err(error) if is_missing(kind, &error) => self.note_missing(kind, &name),
                    Ok(seen) => {
                        if matches!(seen, Seen::ListEnds) && self.missing.remove(&kind) {
                            tracing::info!(server, %kind, "the API server has this kind now");
                        }
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
            if failures >= FAILURES * self.interest.kinds.len() && self.config.servers.len() > 1 {
                return End::Away;
            }
        }
    }

    /// A kind that the server does not have has no objects. The watcher asks again from time to time.
    fn note_missing(&mut self, kind: Kind, server: &Arc<PathBuf>) {
        if self.missing.insert(kind) {
            tracing::warn!(server = %server.display(), %kind, "the API server does not have this kind: apply deploy/crds.yaml");
        }
        for seen in [Seen::ListBegins, Seen::ListEnds] {
            self.pending.extend(self.state.take_in(kind, seen, server));
        }
    }

    /// Tells the reader what is new, once the state is complete.
    async fn tell(&mut self) -> Result<(), mpsc::error::SendError<T>> {
        if !self.state.is_complete() {
            return Ok(());
        }
        let refusals = self.state.refusals();
        let facts = self.state.take_facts();
        if self.told && self.pending.is_empty() && facts.is_empty() && refusals == self.refusals {
            return Ok(());
        }
        for refusal in refusals.iter().filter(|refusal| !self.refusals.contains(refusal)) {
            tracing::warn!("{refusal}");
        }
        self.refusals.clone_from(&refusals);
        self.told = true;
        let update = Update { events: std::mem::take(&mut self.pending), refusals, synced: true };
        self.updates.send(Watched { update, facts }.into()).await
    }
}

type Told = (Kind, Result<Seen, watcher::Error>);

/// Whether a failure means that a kind of our own group is not installed.
fn is_missing(kind: Kind, error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) = error else {
        return false;
    };
    is_own(kind) && matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether a kind is of our own group: its definition has to be installed.
fn is_own(kind: Kind) -> bool {
    matches!(kind, Kind::LoadBalancerPool | Kind::BgpPeer | Kind::BgpAdvertisement)
}

/// Everything that happens to objects of a kind, for ever.
fn of_kind(client: Client, kind: Kind) -> BoxStream<'static, Told> {
    let resource = resource(kind);
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let types = TypeMeta { api_version: kind.api_version().to_owned(), kind: kind.as_str().to_owned() };
    let seen = move |event| (kind, event_of(kind, event, &types));
    let watch = move || watcher(api.clone(), watcher::Config::default()).backoff(Wait::default()).boxed();
    let events = if is_own(kind) { beginning_anew(kind, watch) } else { watch() };
    events.map(seen).boxed()
}

type Events = BoxStream<'static, watcher::Result<watcher::Event<DynamicObject>>>;

/// A watch that begins anew with a list after its kind was missing: what was there before is not told again by one that goes
/// on.
fn beginning_anew(kind: Kind, watch: impl Fn() -> Events + Send + 'static) -> Events {
    let state = (watch(), None, Wait::default());
    let events = stream::unfold((state, watch), move |((mut events, pause, mut wait), watch)| async move {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
            events = watch();
        }
        let event = events.next().await?;
        let pause = match &event {
            Err(error) if is_missing(kind, error) => wait.next(),
            // `Init` comes before the server was asked.
            Ok(watcher::Event::InitDone) => {
                wait = Wait::default();
                None
            }
            _ => None,
        };
        Some((event, ((events, pause, wait), watch)))
    });
    events.boxed()
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

impl Interest {
    /// What is listed and watched, as `group/plural`, sorted: what a role has to allow.
    #[must_use]
    pub fn resources(&self) -> Vec<String> {
        let resources = self.kinds.iter().map(|kind| resource(*kind));
        let mut resources: Vec<String> = resources.map(|it| format!("{}/{}", it.group, it.plural)).collect();
        resources.sort();
        resources
    }
}

pub(crate) fn resource(kind: Kind) -> ApiResource {
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
