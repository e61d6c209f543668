use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::*;

/// A pod network that shows when calls overlap and lets the test decide when they end.
#[derive(Default)]
struct Gate {
    running: AtomicUsize,
    most: AtomicUsize,
    open: Notify,
    panic: bool,
}

impl Gate {
    async fn pass(&self) -> Result<(), CniError> {
        assert!(!self.panic, "a defect");
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        self.open.notified().await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    async fn until_running(&self, count: usize) {
        let reached = async {
            while self.running.load(Ordering::SeqCst) != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.expect("calls are running");
    }
}

impl PodNetwork for Gate {
    async fn add(&self, _: PodRequest) -> Result<Attached, CniError> {
        Err(CniError::new(Code::Internal, "not in this test"))
    }
    async fn del(&self, _: DelRequest) -> Result<(), CniError> {
        self.pass().await
    }
    async fn check(&self, _: PodRequest) -> Result<Attached, CniError> {
        Err(CniError::new(Code::Internal, "not in this test"))
    }
    async fn gc(&self, _: String, _: HashSet<AttachmentId>) -> Result<(), CniError> {
        self.pass().await
    }
    async fn status(&self) -> Result<(), CniError> {
        Ok(())
    }
}

fn config() -> NetworkConfig {
    let config = serde_json::json!({"cniVersion": "1.1.0", "name": "pods", "cni.dev/attachments": []});
    NetworkConfig::parse(config).unwrap()
}

fn del(container: &str) -> Request {
    let attachment = AttachmentId::new(container, "eth0").unwrap();
    Request::Del(Call { attachment, netns: None, pod: PodRef::default(), config: config() })
}

/// Starts the requests one after the other and returns what they will answer.
fn start(server: &Server<Gate>, requests: Vec<Request>) -> Vec<tokio::task::JoinHandle<Reply>> {
    let spawn = |request| {
        let server = server.clone();
        tokio::spawn(async move { server.serve(request, Vec::new()).await })
    };
    requests.into_iter().map(spawn).collect()
}

/// Lets one call after the other end, until all have answered.
async fn finish(gate: &Gate, calls: Vec<tokio::task::JoinHandle<Reply>>) {
    for call in calls {
        while !call.is_finished() {
            gate.open.notify_waiters();
            tokio::task::yield_now().await;
        }
        assert_eq!(call.await.unwrap(), Reply::Result(Value::Null));
    }
}

#[tokio::test]
async fn calls_for_different_containers_run_at_the_same_time() {
    let gate = Arc::new(Gate::default());
    let server = Server::new(Arc::clone(&gate));
    let calls = start(&server, (0..50).map(|n| del(&format!("c{n}"))).collect());
    gate.until_running(50).await;
    finish(&gate, calls).await;
    assert_eq!(server.inner.turns.len(), 0);
}

#[tokio::test]
async fn calls_for_one_attachment_run_one_after_the_other() {
    let gate = Arc::new(Gate::default());
    let server = Server::new(Arc::clone(&gate));
    let calls = start(&server, (0..20).map(|_| del("c")).collect());
    gate.until_running(1).await;
    finish(&gate, calls).await;
    assert_eq!(gate.most.load(Ordering::SeqCst), 1);
    assert_eq!(server.inner.turns.len(), 0, "nothing is kept of an attachment that nobody works on");
}

#[tokio::test]
async fn gc_runs_alone() {
    let gate = Arc::new(Gate::default());
    let server = Server::new(Arc::clone(&gate));
    let mut calls = start(&server, vec![Request::Gc { config: config() }]);
    gate.until_running(1).await;
    calls.extend(start(&server, vec![del("a"), del("b"), Request::Gc { config: config() }]));
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert_eq!(gate.running.load(Ordering::SeqCst), 1);
    }
    finish(&gate, calls).await;
    assert!(gate.most.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn a_call_goes_on_when_its_caller_goes_away() {
    let gate = Arc::new(Gate::default());
    let server = Server::new(Arc::clone(&gate));
    let calls = start(&server, vec![del("c")]);
    gate.until_running(1).await;
    calls.into_iter().for_each(|call| call.abort());
    gate.open.notify_waiters();
    gate.until_running(0).await;
}

#[tokio::test]
async fn a_defect_of_the_network_is_an_error_and_blocks_nobody() {
    let server = Server::new(Arc::new(Gate { panic: true, ..Gate::default() }));
    for _ in 0..2 {
        let Reply::Error(error) = server.serve(del("c"), Vec::new()).await else { panic!("no error") };
        assert_eq!(error.code, Code::Internal);
    }
}

#[tokio::test]
async fn requests_are_told_from_others_and_nonsense_is_answered() {
    let server = Server::new(Arc::new(Gate::default()));
    assert_eq!(server.answer(r#"{"status":{}}"#, Vec::new()).await, None);
    assert_eq!(server.answer("not json", Vec::new()).await, None);
    let hostile = del("c").to_line().replace("\"c\"", "\"../../c\"");
    for line in [r#"{"cni":{"command":"FORMAT"}}"#, r#"{"cni":7}"#, hostile.trim_end()] {
        let answer = server.answer(line, Vec::new()).await.unwrap();
        assert!(answer.contains(r#""code":6"#), "{line}: {answer}");
    }
}

#[tokio::test]
async fn an_add_without_exactly_one_namespace_is_refused() {
    let server = Server::new(Arc::new(Gate::default()));
    let Request::Del(call) = del("c") else { panic!("not a DEL") };
    let file = || OwnedFd::from(std::fs::File::open("/proc/self/stat").unwrap());
    let host = || OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap());
    let mount = || OwnedFd::from(std::fs::File::open("/proc/self/ns/mnt").unwrap());
    for (fds, expected) in [
        (vec![], "carries 0 network namespaces"),
        (vec![file(), file()], "carries 2 network namespaces"),
        (vec![file()], "is not a network namespace"),
        (vec![mount()], "is not a network namespace"),
        (vec![host()], "namespace of the host"),
    ] {
        let Reply::Error(error) = server.serve(Request::Add(call.clone()), fds).await else {
            panic!("no error")
        };
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.msg.contains(expected), "{}", error.msg);
    }
}
