//! The built plugin, an agent with a pod network that only notes what it is told, and pods' namespaces.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portolan_cni::server::{DelRequest, PodNetwork, PodRequest, Server, receive};
use portolan_cni::spec::{PodAddress, Route};
use portolan_cni::{Attached, AttachmentId, CniError};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

/// A directory of one test, removed at its end.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("portolan-cni-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The configuration of a runtime whose agent lives here.
    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "portolan-cni",
            "portolan": {"socket": self.path("agent.sock"), "stateDir": self.path("state")},
        })
    }

    /// Names of the DELs that wait here.
    pub(crate) fn queued(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("state/cni-pending")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A pod's network namespace, kept by a process that ends when this value or the test goes away.
pub(crate) struct Pod(Child);

impl Pod {
    pub(crate) fn new() -> Self {
        let mut unshare = Command::new("unshare");
        let child =
            unshare.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pod = Self(child);
        let host = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        let end = Instant::now() + Duration::from_secs(10);
        while pod.inode() == host {
            assert!(Instant::now() < end, "no network namespace: these tests need root");
            std::thread::yield_now();
        }
        pod
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    pub(crate) fn inode(&self) -> u64 {
        std::fs::metadata(self.path()).unwrap().ino()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One run of the plugin.
pub(crate) struct Run {
    pub(crate) env: Vec<(&'static str, OsString)>,
    pub(crate) stdin: Vec<u8>,
}

impl Run {
    /// What a runtime passes for this pod.
    pub(crate) fn new(command: &'static str, netns: &str, config: &Value) -> Self {
        let env = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "4f2a"),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let env = env.into_iter().map(|(name, value)| (name, value.into())).collect();
        Self { env, stdin: config.to_string().into_bytes() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.retain(|(other, _)| *other != name);
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Starts it and waits for its answer. It prints JSON or nothing, and nothing to stderr.
    pub(crate) fn go(self) -> Answer {
        let mut plugin = Command::new(env!("CARGO_BIN_EXE_portolan-cni"));
        plugin.env_clear().envs(self.env).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = plugin.spawn().unwrap();
        // The plugin may refuse before it has read all.
        drop(child.stdin.take().unwrap().write_all(&self.stdin));
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let json = match &output.stdout[..] {
            [] => Value::Null,
            text => serde_json::from_slice(text).expect("stdout is one JSON document"),
        };
        Answer { success: output.status.success(), code: output.status.code(), json }
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) code: Option<i32>,
    pub(crate) json: Value,
}

impl Answer {
    /// It is a CNI error with this code, and its message contains this.
    #[track_caller]
    pub(crate) fn is_error(&self, code: u32, msg: &str) {
        assert_eq!((self.code, self.json["code"].as_u64()), (Some(1), Some(code.into())), "{:?}", self.json);
        assert!(self.json["msg"].as_str().unwrap().contains(msg), "{:?} has no {msg:?}", self.json);
        assert!(self.json["cniVersion"].is_string() && self.json["details"].is_string());
    }

    /// It is success without a result.
    #[track_caller]
    pub(crate) fn is_done(&self) {
        assert!(self.success && self.json.is_null(), "{self:?}");
    }
}

/// A pod network that notes calls and connects nothing.
#[derive(Default)]
pub(crate) struct Notes {
    calls: Mutex<Vec<String>>,
    /// Inode of the namespace that came with the last ADD.
    pub(crate) netns: Mutex<Option<u64>>,
    /// What every call fails with.
    pub(crate) failure: Mutex<Option<CniError>>,
    /// What CHECK finds instead of what ADD had answered.
    pub(crate) found: Mutex<Option<Attached>>,
}

impl Notes {
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn note(&self, call: String) -> Result<(), CniError> {
        self.calls.lock().unwrap().push(call);
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

impl PodNetwork for Notes {
    async fn add(&self, request: PodRequest) -> Result<Attached, CniError> {
        let file = std::fs::File::from(request.netns.as_fd().try_clone_to_owned().unwrap());
        *self.netns.lock().unwrap() = Some(file.metadata().unwrap().ino());
        let pod = &request.pod;
        self.note(format!("ADD {} {} {}/{}", request.attachment, request.network, pod.namespace, pod.name))?;
        Ok(attached())
    }

    async fn del(&self, request: DelRequest) -> Result<(), CniError> {
        let netns = if request.netns.is_some() { "with netns" } else { "without netns" };
        self.note(format!("DEL {} {netns}", request.attachment))
    }

    async fn check(&self, request: PodRequest) -> Result<Attached, CniError> {
        self.note(format!("CHECK {}", request.attachment))?;
        Ok(self.found.lock().unwrap().clone().unwrap_or_else(attached))
    }

    async fn gc(&self, network: String, valid: HashSet<AttachmentId>) -> Result<(), CniError> {
        let mut valid: Vec<String> = valid.iter().map(ToString::to_string).collect();
        valid.sort();
        self.note(format!("GC {network} {}", valid.join(" ")))
    }

    async fn status(&self) -> Result<(), CniError> {
        self.note("STATUS".into())
    }
}

/// What every ADD answers.
pub(crate) fn attached() -> Attached {
    let gateway = Some("169.254.1.1".parse().unwrap());
    Attached {
        host_ifname: "ptl0123456789".into(),
        host_mac: "02:00:00:00:00:01".parse().unwrap(),
        pod_mac: "02:00:00:00:00:0a".parse().unwrap(),
        mtu: 1500,
        addresses: vec![PodAddress { address: "10.0.0.5/32".parse().unwrap(), gateway }],
        routes: vec![Route { dst: "0.0.0.0/0".parse().unwrap(), gw: gateway }],
    }
}

/// An agent that answers on `dir`'s socket until it is dropped.
pub(crate) struct Agent {
    pub(crate) notes: Arc<Notes>,
    runtime: tokio::runtime::Runtime,
    socket: PathBuf,
}

impl Agent {
    /// Binds, does what was queued, then accepts, as an agent does.
    pub(crate) fn start(dir: &Dir) -> Self {
        let notes = Arc::new(Notes::default());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = Server::new(Arc::clone(&notes));
        let socket = dir.path("agent.sock");
        let listener = {
            let _context = runtime.enter();
            tokio::net::UnixListener::bind(&socket).unwrap()
        };
        runtime.block_on(server.replay(&dir.path("state"))).unwrap();
        runtime.spawn(accept(listener, server));
        Self { notes, runtime, socket }
    }

    /// Ends it and lets its socket stay behind, as a killed agent does.
    pub(crate) fn kill(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
        assert!(Path::exists(&self.socket));
    }
}

async fn accept(listener: tokio::net::UnixListener, server: Server<Notes>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let server = server.clone();
        tokio::spawn(async move {
            let received = receive(&stream, Duration::from_secs(5)).await?;
            let reply = server.answer(&received.line, received.fds).await.unwrap_or_default();
            stream.write_all(reply.as_bytes()).await
        });
    }
}
