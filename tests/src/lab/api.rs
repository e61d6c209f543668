//! A stand-in for a Kubernetes API server: list and watch with resource versions and bookmarks, and faults on demand.
//!
//! Its objects are the files of a directory, so that whatever a test writes there comes to an agent this way or that.
//! Of the real one's behaviour it has what a client sees of lists and watches (Kubernetes API concepts, "Efficient
//! detection of changes"): objects in lists without kind, versions that grow, 410 for what was forgotten, watches that
//! end.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::Netns;

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Plural names of the kinds it serves, with their groups.
const KINDS: [(&str, &str, &str); 4] = [
    ("Service", "v1", "services"),
    ("EndpointSlice", "discovery.k8s.io/v1", "endpointslices"),
    ("Node", "v1", "nodes"),
    ("Pod", "v1", "pods"),
];

/// The stand-in. Dropping it closes every connection.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    mirror: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    objects: Mutex<Objects>,
    /// The latest version, for watches that wait.
    version: watch::Sender<u64>,
    /// Connections end while it is true.
    away: watch::Sender<bool>,
    stop: AtomicBool,
    /// How often the directory was looked at.
    looks: AtomicU64,
}

#[derive(Debug, Default)]
struct Objects {
    version: u64,
    /// By plural name, namespace and name.
    live: BTreeMap<(String, String, String), Value>,
    history: Vec<Change>,
    /// What happened before is forgotten.
    oldest: u64,
    lists: usize,
}

#[derive(Clone, Debug)]
struct Change {
    version: u64,
    plural: String,
    kind: &'static str,
    object: Value,
}

impl ApiServer {
    /// Serves the files of a directory.
    ///
    /// # Errors
    /// No runtime can be made.
    pub fn start(directory: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (version, away) = (watch::Sender::new(0), watch::Sender::new(false));
        let objects = Mutex::new(Objects { version: 1, ..Objects::default() });
        let shared = Arc::new(Shared {
            objects,
            version,
            away,
            stop: AtomicBool::new(false),
            looks: AtomicU64::new(0),
        });
        shared.take_in(&read(directory));
        let (mirrored, directory) = (Arc::clone(&shared), directory.to_owned());
        let mirror = std::thread::spawn(move || {
            while !mirrored.stop.load(Ordering::Relaxed) {
                mirrored.take_in(&read(&directory));
                mirrored.looks.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        Ok(Self { shared, runtime: Some(runtime), mirror: Some(mirror) })
    }

    /// Listens on the loopback address of a namespace; where.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen_in(&self, netns: &Netns, port: u16) -> Result<SocketAddr> {
        let bind = move || TcpListener::bind(("127.0.0.1", port));
        self.serve(netns.enter(bind)?.context("binding the API server's port")?)
    }

    /// Listens on a loopback address of the machine; where.
    ///
    /// # Errors
    /// There is no free port.
    pub fn listen(&self) -> Result<SocketAddr> {
        self.serve(TcpListener::bind(("127.0.0.1", 0)).context("binding a port")?)
    }

    fn serve(&self, listener: TcpListener) -> Result<SocketAddr> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::clone(&self.shared);
        let runtime = self.runtime.as_ref().context("the API server is stopped")?;
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(Arc::clone(&shared), stream));
            }
        });
        Ok(address)
    }

    /// Cuts every connection and takes no more, or answers again.
    pub fn set_away(&self, away: bool) {
        self.shared.away.send_replace(away);
    }

    /// Forgets what happened: a watch that wants to go on from before now gets 410.
    pub fn forget(&self) {
        let mut objects = self.shared.lock();
        objects.version += 1;
        objects.oldest = objects.version;
        objects.history.clear();
        self.shared.version.send_replace(objects.version);
    }

    /// Ends every connection, as a server that is restarted does, and answers again at once.
    pub fn cut(&self) {
        self.set_away(true);
        self.set_away(false);
    }

    /// How often a list was asked for.
    #[must_use]
    pub fn lists(&self) -> usize {
        self.shared.lock().lists
    }

    /// Waits until the files, as they are now, are what it serves.
    pub fn settle(&self) {
        let looks = || self.shared.looks.load(Ordering::Relaxed);
        // Two looks: one may have begun before a file was written.
        let then = looks() + 2;
        while looks() < then {
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.set_away(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if let Some(mirror) = self.mirror.take() {
            // A mirror that panicked has said why.
            let _ = mirror.join();
        }
    }
}

/// Writes a kubeconfig for a server.
///
/// # Errors
/// The file system refuses.
pub fn write_kubeconfig(path: &Path, server: SocketAddr) -> Result<PathBuf> {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  cluster: {{server: \"http://{server}\"}}\n\
         users:\n- name: lab\n  user: {{}}\ncontexts:\n- name: lab\n  context: {{cluster: lab, user: lab}}\n"
    );
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path.to_owned())
}

/// Every document of a directory's files that has a kind.
fn read(directory: &Path) -> Vec<Value> {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let documents = |text: String| -> Vec<Value> {
        use serde::Deserialize as _;
        let all = serde_yaml_ng::Deserializer::from_str(&text);
        all.filter_map(|document| Value::deserialize(document).ok()).collect()
    };
    texts.flat_map(documents).filter(|document| document["kind"].is_string()).collect()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes these the objects; what changed is told to watches.
    fn take_in(&self, documents: &[Value]) {
        let mut objects = self.lock();
        let wanted: BTreeMap<_, &Value> = documents.iter().filter_map(|it| Some((key(it)?, it))).collect();
        let gone: Vec<_> = objects.live.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            if let Some(object) = objects.live.remove(&key) {
                objects.note(&key.0, "DELETED", object);
            }
        }
        for (key, document) in wanted {
            let known = objects.live.get(&key).map(without_version);
            if known.as_ref() == Some(document) {
                continue;
            }
            let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
            let object = objects.note(&key.0, kind, document.clone());
            objects.live.insert(key, object);
        }
        self.version
            .send_if_modified(|version| std::mem::replace(version, objects.version) != objects.version);
    }
}

impl Objects {
    fn note(&mut self, plural: &str, kind: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let change =
            Change { version: self.version, plural: plural.to_owned(), kind, object: object.clone() };
        self.history.push(change);
        object
    }

    fn list(&mut self, kind: &str, api_version: &str, plural: &str) -> Value {
        self.lists += 1;
        let of_kind = self.live.iter().filter(|((of, ..), _)| of == plural);
        // In a list, objects do not say what they are.
        let bare = of_kind.map(|(_, object)| {
            let mut object = object.clone();
            if let Some(fields) = object.as_object_mut() {
                fields.remove("kind");
                fields.remove("apiVersion");
            }
            object
        });
        json!({
            "kind": format!("{kind}List"), "apiVersion": api_version,
            "metadata": {"resourceVersion": self.version.to_string()}, "items": bare.collect::<Vec<_>>(),
        })
    }

    /// Lines of a watch after `from`; `None` if that is forgotten.
    fn since(&self, from: u64, plural: &str) -> Option<Vec<Value>> {
        if from < self.oldest {
            return None;
        }
        let new = self.history.iter().filter(|change| change.version > from && change.plural == plural);
        Some(new.map(|change| json!({"type": change.kind, "object": change.object})).collect())
    }
}

fn key(document: &Value) -> Option<(String, String, String)> {
    let kind = document["kind"].as_str()?;
    let (_, _, plural) = KINDS.into_iter().find(|(name, ..)| *name == kind)?;
    let text = |field: &str| document["metadata"][field].as_str().map(str::to_owned);
    Some((plural.to_owned(), text("namespace").unwrap_or_default(), text("name")?))
}

fn without_version(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    object
}

type Body = BoxBody<Bytes, Infallible>;

/// Serves one connection until it ends or the server goes away.
async fn connection(shared: Arc<Shared>, stream: tokio::net::TcpStream) {
    let mut away = shared.away.subscribe();
    let service = service_fn(|request| answer(Arc::clone(&shared), request));
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // How a client ends its connection is its own business.
        _ = serving => {}
        _ = away.wait_for(|away| *away) => {}
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let found = KINDS.into_iter().find(|(_, api_version, plural)| {
        let root = if api_version.contains('/') { "apis" } else { "api" };
        path == format!("/{root}/{api_version}/{plural}")
    });
    let Some((kind, api_version, plural)) = found else {
        return Ok(whole(StatusCode::NOT_FOUND, &status(404, "NotFound")));
    };
    let query = request.uri().query().unwrap_or_default();
    let asked = |name: &str| {
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    if !asked("watch").is_some_and(|value| value == "true" || value == "1") {
        return Ok(whole(StatusCode::OK, &shared.lock().list(kind, api_version, plural)));
    }
    let from = asked("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let (sender, body) = Channel::new(16);
    tokio::spawn(stream(shared, plural, from, sender));
    Ok(Response::new(body.boxed()))
}

/// Tells a watch everything from a version on, with a bookmark after each batch.
async fn stream(
    shared: Arc<Shared>,
    plural: &'static str,
    mut from: u64,
    mut sender: http_body_util::channel::Sender<Bytes>,
) {
    let mut version = shared.version.subscribe();
    loop {
        let (mut lines, now) = {
            let objects = shared.lock();
            (objects.since(from, plural), objects.version)
        };
        let forgotten = lines.is_none();
        let lines =
            lines.get_or_insert_with(|| vec![json!({"type": "ERROR", "object": status(410, "Expired")})]);
        if !forgotten && now > from {
            let bookmark = json!({"metadata": {"resourceVersion": now.to_string()}});
            lines.push(json!({"type": "BOOKMARK", "object": bookmark}));
        }
        for line in lines {
            if sender.send_data(Bytes::from(format!("{line}\n"))).await.is_err() {
                return;
            }
        }
        from = now;
        if forgotten || version.wait_for(|version| *version > from).await.is_err() {
            return;
        }
    }
}

fn whole(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() = status;
    response
}

fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason,
        "reason": reason, "code": code,
    })
}
