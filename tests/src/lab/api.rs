//! A stand-in for a Kubernetes API server: list, watch, create and patch with resource versions and bookmarks, and faults on
//! demand.
//!
//! Its objects are the files of a directory, so that whatever a test writes there comes to an agent this way or that, and what
//! clients write beside that.
//! Of the real one's behaviour it has what a client sees of lists and watches (Kubernetes API concepts, "Efficient
//! detection of changes"): objects in lists without kind, versions that grow, 410 for what was forgotten, watches that
//! end; and of writes: statuses apart, 409 for an old version, finalizers.

mod objects;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
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
pub use objects::Change;
use objects::{KINDS, Objects, Refused};

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What a server does to a request in place of answering it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It refuses it with this status of HTTP.
    Refuse(u16),
    /// It does it, and the connection ends before the answer.
    LoseAnswer,
    /// The connection ends, and nothing is done.
    LoseRequest,
}

#[derive(Clone, Debug)]
struct Planned {
    fault: Fault,
    method: String,
    path: String,
    times: usize,
}

/// The stand-in. Dropping it closes every connection.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    mirror: Option<JoinHandle<()>>,
}

/// Whether the server is away, and how often connections were cut: one that was opened before the last cut ends.
#[derive(Clone, Copy, Debug, Default)]
struct Away {
    away: bool,
    cuts: u64,
}

#[derive(Debug)]
struct Shared {
    objects: Mutex<Objects>,
    /// The latest version, for watches that wait.
    version: watch::Sender<u64>,
    away: watch::Sender<Away>,
    stop: AtomicBool,
    /// How often the directory was looked at.
    looks: AtomicU64,
    faults: Mutex<Vec<Planned>>,
    /// Kinds that are not installed, by their plural names.
    missing: Mutex<BTreeSet<String>>,
}

impl ApiServer {
    /// Serves the files of a directory.
    ///
    /// # Errors
    /// No runtime can be made.
    pub fn start(directory: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (version, away) = (watch::Sender::new(0), watch::Sender::new(Away::default()));
        let objects = Mutex::new(Objects::new());
        let shared = Arc::new(Shared {
            objects,
            version,
            away,
            stop: AtomicBool::new(false),
            looks: AtomicU64::new(0),
            faults: Mutex::default(),
            missing: Mutex::default(),
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
        self.shared.away.send_modify(|it| it.away = away);
    }

    /// Forgets what happened: a watch that wants to go on from before now gets 410.
    pub fn forget(&self) {
        let mut objects = self.shared.lock();
        objects.forget();
        self.shared.version.send_replace(objects.version);
    }

    /// Does this to the next requests of a method whose path contains a text, so many times.
    pub fn fail(&self, fault: Fault, method: &str, path: &str, times: usize) {
        let planned = Planned { fault, method: method.to_owned(), path: path.to_owned(), times };
        lock(&self.shared.faults).push(planned);
    }

    /// How many requests the faults that were asked for are still to meet.
    #[must_use]
    pub fn faults_left(&self) -> usize {
        lock(&self.shared.faults).iter().map(|planned| planned.times).sum()
    }

    /// Takes the definition of a kind out, by its plural name, or puts it back.
    pub fn set_missing(&self, plural: &str, missing: bool) {
        let mut all = lock(&self.shared.missing);
        if missing {
            all.insert(plural.to_owned());
        } else {
            all.remove(plural);
        }
        drop(all);
        self.cut();
    }

    /// An object as it is now.
    #[must_use]
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.lock().get(&(plural.to_owned(), namespace.to_owned(), name.to_owned())).ok()
    }

    /// All objects of a kind, by its plural name.
    #[must_use]
    pub fn objects(&self, plural: &str) -> Vec<Value> {
        self.shared.lock().all(plural)
    }

    /// Everything that ever happened to objects of a kind.
    #[must_use]
    pub fn chronicle(&self, plural: &str) -> Vec<Change> {
        self.shared.lock().chronicle(plural)
    }

    /// Changes an object as somebody else with the rights to.
    ///
    /// # Errors
    /// There is no such object.
    pub fn edit(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<()> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut objects = self.shared.lock();
        objects.edit(&key, edit).map_err(|(.., message)| anyhow::Error::msg(message))?;
        self.shared.tell(&objects);
        Ok(())
    }

    /// Ends every connection, as a server that is restarted does, and answers again at once.
    pub fn cut(&self) {
        self.shared.away.send_modify(|it| it.cuts += 1);
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
        lock(&self.objects)
    }

    /// Makes these the objects; what changed is told to watches.
    fn take_in(&self, documents: &[Value]) {
        let mut objects = self.lock();
        objects.take_in(documents);
        self.tell(&objects);
    }

    fn tell(&self, objects: &Objects) {
        self.version
            .send_if_modified(|version| std::mem::replace(version, objects.version) != objects.version);
    }

    /// What is to be done to a request, if something is.
    fn fault(&self, method: &str, path: &str) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let concerned = |it: &&mut Planned| it.times > 0 && it.method == method && path.contains(&it.path);
        let planned = faults.iter_mut().find(concerned)?;
        planned.times -= 1;
        Some(planned.fault)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Body = BoxBody<Bytes, Infallible>;

/// Serves one connection until it ends or the server goes away.
async fn connection(shared: Arc<Shared>, stream: tokio::net::TcpStream) {
    let mut away = shared.away.subscribe();
    let opened = away.borrow().cuts;
    let service = service_fn(|request| answer(Arc::clone(&shared), request));
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // How a client ends its connection is its own business.
        _ = serving => {}
        _ = away.wait_for(|now| now.away || now.cuts != opened) => {}
    }
}

/// What a path is about.
struct Target {
    kind: &'static str,
    api_version: &'static str,
    plural: &'static str,
    namespace: String,
    name: String,
    is_status: bool,
}

/// Paths as the API has them: the version, maybe a namespace, the kind, maybe a name, maybe its status.
fn target(path: &str) -> Option<Target> {
    let found = KINDS.into_iter().find_map(|kind| {
        let root = if kind.1.contains('/') { "apis" } else { "api" };
        let rest = path.strip_prefix(&format!("/{root}/{}/", kind.1))?;
        let (namespace, rest) = match rest.strip_prefix("namespaces/").and_then(|it| it.split_once('/')) {
            Some((namespace, rest)) => (namespace, rest),
            None => ("", rest),
        };
        let mut parts = rest.split('/');
        (parts.next() == Some(kind.2)).then(|| (kind, namespace, parts.collect::<Vec<_>>()))
    });
    let ((kind, api_version, plural), namespace, rest) = found?;
    let (name, is_status) = match rest[..] {
        [] => ("", false),
        [name] => (name, false),
        [name, "status"] => (name, true),
        _ => return None,
    };
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    Some(Target { kind, api_version, plural, namespace, name, is_status })
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let method = request.method().as_str().to_owned();
    let lost = || io::Error::other("the connection is lost");
    match shared.fault(&method, &path) {
        Some(Fault::Refuse(code)) => {
            return Ok(refused((code, "Injected", "as the test asked for".to_owned())));
        }
        Some(Fault::LoseRequest) => return Err(lost()),
        Some(Fault::LoseAnswer) => {
            dispatch(shared, request, &path, &method).await?;
            return Err(lost());
        }
        None => {}
    }
    dispatch(shared, request, &path, &method).await
}

async fn dispatch(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    path: &str,
    method: &str,
) -> io::Result<Response<Body>> {
    let known = target(path).filter(|target| !lock(&shared.missing).contains(target.plural));
    let Some(target) = known else {
        return Ok(refused((404, "NotFound", "the server could not find the requested resource".to_owned())));
    };
    let query = request.uri().query().unwrap_or_default().to_owned();
    if method == "GET" && target.name.is_empty() {
        return Ok(list_or_watch(shared, &target, &query));
    }
    let content_type = request.headers().get("content-type").map(|it| it.as_bytes().to_vec());
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut objects = shared.lock();
    let name = if method == "POST" { body["metadata"]["name"].as_str().unwrap_or("") } else { &target.name };
    let key = (target.plural.to_owned(), target.namespace.clone(), name.to_owned());
    let done = match (method, content_type.as_deref()) {
        ("GET", _) => objects.get(&key),
        ("POST", _) => objects.create(&key, body),
        ("PATCH", Some(b"application/merge-patch+json")) => objects.patch(&key, target.is_status, &body),
        _ => Err((405, "MethodNotAllowed", format!("{method} is not what this stand-in does"))),
    };
    shared.tell(&objects);
    drop(objects);
    let code = if method == "POST" { StatusCode::CREATED } else { StatusCode::OK };
    Ok(done.map_or_else(refused, |object| whole(code, &object)))
}

fn list_or_watch(shared: Arc<Shared>, target: &Target, query: &str) -> Response<Body> {
    let Target { kind, api_version, plural, .. } = *target;
    let asked = |name: &str| {
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    if !asked("watch").is_some_and(|value| value == "true" || value == "1") {
        return whole(StatusCode::OK, &shared.lock().list(kind, api_version, plural));
    }
    let from = asked("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let (sender, body) = Channel::new(16);
    tokio::spawn(stream(shared, (kind, api_version, plural), from, sender));
    Response::new(body.boxed())
}

fn refused((code, reason, message): Refused) -> Response<Body> {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    whole(code, &status(code.as_u16(), reason, &message))
}

/// Tells a watch everything from a version on, with a bookmark after each batch.
async fn stream(
    shared: Arc<Shared>,
    (kind, api_version, plural): (&'static str, &'static str, &'static str),
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
        let lines = lines.get_or_insert_with(|| {
            vec![json!({"type": "ERROR", "object": status(410, "Expired", "too old resource version")})]
        });
        if !forgotten && now > from {
            let metadata = json!({"resourceVersion": now.to_string(), "creationTimestamp": null});
            let bookmark = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
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

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code,
    })
}
