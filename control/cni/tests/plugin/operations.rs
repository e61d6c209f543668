//! What a runtime may rely on, by the real plugin, with an agent, without one, and with one that fails.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::support::{Agent, Dir, Pod, Run, attached};
use portolan_cni::proto::Call;
use portolan_cni::{CniError, Code, pending};
use serde_json::{Value, json};

fn config(dir: &Dir, version: &str) -> Value {
    let mut config = dir.config();
    config["cniVersion"] = version.into();
    config
}

#[test]
fn versions_are_told_without_an_agent_and_without_input() {
    let dir = Dir::new();
    let all = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let asked = Run::new("VERSION", "", &config(&dir, "1.0.0")).go();
    assert_eq!(asked.json, json!({"cniVersion": "1.0.0", "supportedVersions": all}));
    for stdin in ["", "{", "{\"cniVersion\": \"9.9.9\"}"] {
        let answer = Run::new("VERSION", "", &dir.config()).stdin(stdin).go();
        assert!(answer.success);
        assert_eq!(answer.json, json!({"cniVersion": "1.1.0", "supportedVersions": all}));
    }
}

#[test]
fn add_answers_in_the_version_asked_for() {
    let (dir, pod) = (Dir::new(), Pod::new());
    let agent = Agent::start(&dir);
    for (version, family, mtu) in [
        ("0.3.1", json!("4"), Value::Null),
        ("0.4.0", json!("4"), Value::Null),
        ("1.0.0", Value::Null, Value::Null),
        ("1.1.0", Value::Null, json!(1500)),
    ] {
        let answer = Run::new("ADD", &pod.path(), &config(&dir, version)).go();
        assert!(answer.success, "{answer:?}");
        assert_eq!(answer.json["cniVersion"], version);
        assert_eq!(answer.json["interfaces"][1]["sandbox"], pod.path());
        assert_eq!(
            (&answer.json["ips"][0]["version"], &answer.json["interfaces"][1]["mtu"]),
            (&family, &mtu)
        );
        assert_eq!(agent.notes.calls(), ["ADD 4f2a/eth0 pods shop/web-0"]);
    }
}

#[test]
fn the_agent_gets_the_namespace_itself_and_not_its_path() {
    let (dir, pod) = (Dir::new(), Pod::new());
    let agent = Agent::start(&dir);
    assert!(Run::new("ADD", &pod.path(), &dir.config()).go().success);
    assert_eq!(*agent.notes.netns.lock().unwrap(), Some(pod.inode()));
}

#[test]
fn an_error_of_the_agent_is_the_error_of_the_plugin() {
    let (dir, pod) = (Dir::new(), Pod::new());
    let agent = Agent::start(&dir);
    let error = CniError::new(Code::AddressesExhausted, "no free pod address in 10.0.0.0/24")
        .with_details("254 used");
    *agent.notes.failure.lock().unwrap() = Some(error);
    for (command, config) in [("ADD", dir.config()), ("DEL", dir.config()), ("STATUS", dir.config())] {
        let answer = Run::new(command, &pod.path(), &config).go();
        answer.is_error(101, "no free pod address in 10.0.0.0/24");
        assert_eq!(answer.json["details"], "254 used");
    }
    assert!(dir.queued().is_empty(), "an answered DEL is not queued");
}

#[test]
fn check_compares_with_what_add_had_answered() {
    let (dir, pod) = (Dir::new(), Pod::new());
    let agent = Agent::start(&dir);
    let mut config = dir.config();
    Run::new("CHECK", &pod.path(), &config).go().is_error(7, "CHECK needs prevResult");
    config["prevResult"] = Run::new("ADD", &pod.path(), &config).go().json;
    Run::new("CHECK", &pod.path(), &config).go().is_done();

    let mut changed = attached();
    changed.addresses[0].address = "10.0.0.6/32".parse().unwrap();
    *agent.notes.found.lock().unwrap() = Some(changed);
    let answer = Run::new("CHECK", &pod.path(), &config).go();
    answer.is_error(103, "eth0 is not as ADD had left it");
    assert!(answer.json["details"].as_str().unwrap().contains("10.0.0.5/32 is missing"));
}

#[test]
fn gc_tells_the_agent_what_is_in_use_under_either_name() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    let mut config = dir.config();
    config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    config["cni.dev/attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    Run::new("GC", "", &config).go().is_done();
    assert_eq!(agent.notes.calls(), ["GC pods a/eth0 b/eth0"]);
}

#[test]
fn status_is_what_the_agent_says() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    Run::new("STATUS", "", &dir.config()).go().is_done();
    *agent.notes.failure.lock().unwrap() = Some(CniError::new(Code::NotAvailable, "addresses exhausted"));
    Run::new("STATUS", "", &dir.config()).go().is_error(50, "addresses exhausted");
}

#[test]
fn without_an_agent_everything_but_del_fails_and_says_what_to_do() {
    let (dir, pod) = (Dir::new(), Pod::new());
    let mut config = dir.config();
    let add = Run::new("ADD", &pod.path(), &config).go();
    add.is_error(11, "agent is not running: start it");
    Run::new("STATUS", "", &config).go().is_error(50, "agent is not running: start it");
    config["prevResult"] = json!({});
    config["cni.dev/valid-attachments"] = json!([]);
    Run::new("CHECK", &pod.path(), &config).go().is_error(11, "agent is not running: start it");
    Run::new("GC", "", &config).go().is_error(11, "agent is not running: start it");
    assert!(!dir.path("state").exists());
}

#[test]
fn a_del_without_an_agent_succeeds_and_is_done_when_one_starts() {
    let (dir, pod) = (Dir::new(), Pod::new());
    Agent::start(&dir).kill();
    let del = |container: &str, netns: &str| {
        Run::new("DEL", netns, &dir.config()).with("CNI_CONTAINERID", container).go().is_done();
    };
    del("a", &pod.path());
    del("a", "");
    del("b", "");
    let queued = dir.queued();
    assert_eq!(queued.len(), 2, "a repeated DEL is one: {queued:?}");
    let safe = |name: &String| name.bytes().all(|byte| byte.is_ascii_hexdigit() || b"-.json".contains(&byte));
    assert!(queued.iter().all(safe), "{queued:?}");

    std::fs::remove_file(dir.path("agent.sock")).unwrap();
    let agent = Agent::start(&dir);
    let mut calls = agent.notes.calls();
    calls.sort();
    assert_eq!(calls, ["DEL a/eth0 without netns", "DEL b/eth0 without netns"]);
    assert!(dir.queued().is_empty());
}

#[test]
fn what_cannot_be_done_or_read_stays_in_the_queue() {
    let dir = Dir::new();
    for container in ["a", "b"] {
        Run::new("DEL", "", &dir.config()).with("CNI_CONTAINERID", container).go().is_done();
    }
    let state = dir.path("state");
    std::fs::write(state.join("cni-pending/junk.json"), "{}").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", state.join("cni-pending/link.json")).unwrap();
    let fail_b = |call: &Call| match call.attachment.container() {
        "b" => Err(CniError::new(Code::Io, "busy")),
        _ => Ok(()),
    };
    let drained = pending::drain(&state, fail_b).unwrap();
    assert_eq!((drained.done, drained.failed.len(), drained.unreadable.len()), (1, 1, 2));
    assert_eq!(pending::drain(&state, |_| Ok(())).unwrap().done, 1);
    assert_eq!(dir.queued().len(), 2);
}

#[test]
fn a_del_that_can_be_neither_done_nor_kept_fails() {
    let dir = Dir::new();
    std::fs::write(dir.path("state"), "a file where the directory should be").unwrap();
    Run::new("DEL", "", &dir.config()).go().is_error(5, "the agent is not running");
}

#[test]
fn an_agent_that_dies_during_a_request_fails_add_and_leaves_del_queued() {
    let (dir, pod) = (Dir::new(), Pod::new());
    let listener = UnixListener::bind(dir.path("agent.sock")).unwrap();
    // One connection of ADD, two of DEL: it tries again after it has queued.
    let agent = std::thread::spawn(move || (0..3).for_each(|_| drop(listener.accept().unwrap())));
    Run::new("ADD", &pod.path(), &dir.config()).go().is_error(11, "stopped during the request");
    Run::new("DEL", "", &dir.config()).go().is_done();
    agent.join().unwrap();
    assert_eq!(dir.queued().len(), 1);
}

#[test]
fn an_agent_that_answers_nonsense_is_an_error() {
    use std::io::Write;
    let (dir, pod) = (Dir::new(), Pod::new());
    let listener = UnixListener::bind(dir.path("agent.sock")).unwrap();
    let agent = std::thread::spawn(move || {
        for answer in ["HTTP/1.1 400\n", "{\"result\":null}\n"] {
            listener.accept().unwrap().0.write_all(answer.as_bytes()).unwrap();
        }
    });
    Run::new("ADD", &pod.path(), &dir.config()).go().is_error(5, "answered in another language");
    Run::new("ADD", &pod.path(), &dir.config()).go().is_error(5, "has no result");
    agent.join().unwrap();
}

#[test]
fn an_agent_that_hangs_is_given_up_after_ten_seconds() {
    let (dir, pod) = (Dir::new(), Pod::new());
    // Bound and never accepted from.
    let _listener = UnixListener::bind(dir.path("agent.sock")).unwrap();
    let start = Instant::now();
    Run::new("ADD", &pod.path(), &dir.config()).go().is_error(11, "does not answer");
    assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&start.elapsed()));
}

#[test]
fn a_hundred_pods_are_connected_at_once() {
    let (dir, pod) = (Dir::new(), Pod::new());
    let agent = Agent::start(&dir);
    let (config, netns) = (dir.config(), pod.path());
    std::thread::scope(|scope| {
        for n in 0..100 {
            let add = Run::new("ADD", &netns, &config).with("CNI_CONTAINERID", format!("c{n}"));
            scope.spawn(move || assert!(add.go().success));
        }
    });
    assert_eq!(agent.notes.calls().len(), 100);
}
