//! Whatever a runtime or an attacker feeds the plugin gets the specification's error code and changes nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::support::{Agent, Dir, Pod, Run};
use serde_json::{Value, json};

/// What is wrong, how, and the answer.
struct Case {
    name: &'static str,
    change: Box<dyn Fn(Run) -> Run>,
    code: u32,
    msg: &'static str,
}

fn case(name: &'static str, code: u32, msg: &'static str, change: impl Fn(Run) -> Run + 'static) -> Case {
    Case { name, change: Box::new(change), code, msg }
}

fn variable(name: &'static str, value: impl Into<OsString>, code: u32, msg: &'static str) -> Case {
    let value = value.into();
    case(name, code, msg, move |run| run.with(name, value.clone()))
}

fn input(name: &'static str, stdin: impl Into<Vec<u8>>, code: u32, msg: &'static str) -> Case {
    let stdin = stdin.into();
    case(name, code, msg, move |run| run.stdin(stdin.clone()))
}

fn names() -> Vec<Case> {
    let container = |value: &str| variable("CNI_CONTAINERID", value, 4, "container id");
    let ifname = |value: &str| variable("CNI_IFNAME", value, 4, "interface name");
    vec![
        variable("CNI_COMMAND", "", 4, "CNI_COMMAND is not set"),
        variable("CNI_COMMAND", "FORMAT", 4, "CNI_COMMAND \"FORMAT\" is not"),
        variable("CNI_COMMAND", "add", 4, "CNI_COMMAND \"add\" is not"),
        variable("CNI_CONTAINERID", "", 4, "CNI_CONTAINERID is not set"),
        variable("CNI_CONTAINERID", OsString::from_vec(vec![b'a', 0xff]), 4, "CNI_CONTAINERID is not UTF-8"),
        container("../../../../etc/cron.d/x"),
        container("/etc/passwd"),
        container(".."),
        container("-rf"),
        container("a\nb"),
        container("a;reboot"),
        container(&"a".repeat(100_000)),
        variable("CNI_IFNAME", "", 4, "CNI_IFNAME is not set"),
        ifname("sixteencharacter"),
        ifname(".."),
        ifname("."),
        ifname("../eth0"),
        ifname("eth0:1"),
        ifname("eth 0"),
        ifname("eth%d"),
        variable("CNI_ARGS", "K8S_POD_NAME=../../web;IgnoreUnknown=1", 4, "K8S_POD_NAME in CNI_ARGS"),
        variable("CNI_ARGS", "no pairs here", 4, "CNI_ARGS is not"),
    ]
}

fn namespaces(dir: &Dir) -> Vec<Case> {
    let file = dir.path("regular");
    std::fs::write(&file, "").unwrap();
    let fifo = dir.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let netns = |value: OsString, msg| variable("CNI_NETNS", value, 4, msg);
    vec![
        netns("".into(), "CNI_NETNS is not set"),
        netns("run/netns/x".into(), "CNI_NETNS is not an absolute path"),
        netns(file.into(), "is not a network namespace"),
        netns(fifo.into(), "is not a network namespace"),
        netns("/".into(), "is not a network namespace"),
        netns("/dev/null".into(), "is not a network namespace"),
        netns("/proc/self/ns/mnt".into(), "is not a network namespace"),
        netns("/proc/self/ns/net".into(), "namespace of the host"),
        netns("/nonexistent".into(), "opening network namespace"),
    ]
}

fn configurations(config: &Value) -> Vec<Case> {
    let changed = |key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        config.to_string()
    };
    let mut unversioned = config.clone();
    unversioned.as_object_mut().unwrap().remove("cniVersion");
    let huge = changed("padding", "x".repeat(2 << 20).into());
    let endless = format!("{}{}", config, " ".repeat(64 << 20));
    let ports = json!({"portMappings": [{"hostPort": -1, "containerPort": 80}]});
    vec![
        input("empty", "", 6, "is not JSON"),
        input("cut", "{\"cniVersion\": \"1.1.0\"", 6, "is not JSON"),
        input("not UTF-8", vec![b'"', 0xff, b'"'], 6, "is not JSON"),
        input("no object", "[]", 6, "is not a JSON object"),
        input("deep", "[".repeat(500_000), 6, "is not JSON"),
        input("huge", huge, 6, "larger than"),
        input("endless", endless, 6, "larger than"),
        input("unknown version", changed("cniVersion", "9.9.9".into()), 1, "\"9.9.9\" is not supported"),
        input("old version", changed("cniVersion", "0.2.0".into()), 1, "\"0.2.0\" is not supported"),
        input("no version", unversioned.to_string(), 1, "\"0.1.0\" is not supported"),
        input("numeric version", changed("cniVersion", 1.into()), 1, "1 is not supported"),
        input("climbing name", changed("name", "../pods".into()), 7, "not valid"),
        input("no name", changed("name", Value::Null), 7, "not valid"),
        input("relative socket", changed("portolan", json!({"socket": "x"})), 7, "not valid"),
        input("climbing state", changed("portolan", json!({"stateDir": "/a/../etc"})), 7, "not valid"),
        input("negative port", changed("runtimeConfig", ports), 7, "not valid"),
        input("text for fields", changed("runtimeConfig", "x".into()), 7, "not valid"),
        input("chained", changed("prevResult", json!({})), 7, "must be the first"),
    ]
}

#[test]
fn hostile_add_gets_its_code_and_reaches_neither_agent_nor_disk() {
    let pod = Pod::new();
    for with_agent in [false, true] {
        let dir = Dir::new();
        let agent = with_agent.then(|| Agent::start(&dir));
        let config = dir.config();
        let cases = names().into_iter().chain(namespaces(&dir)).chain(configurations(&config));
        for case in cases {
            let answer = (case.change)(Run::new("ADD", &pod.path(), &config)).go();
            println!("{} (agent: {with_agent}): {}", case.name, answer.json);
            answer.is_error(case.code, case.msg);
            assert!(!dir.path("state").exists(), "{} left something behind", case.name);
        }
        let calls = agent.map(|agent| agent.notes.calls()).unwrap_or_default();
        assert_eq!(calls, Vec::<String>::new());
    }
}

#[test]
fn hostile_del_is_refused_and_not_queued() {
    let dir = Dir::new();
    for case in names().into_iter().filter(|case| !case.name.starts_with("CNI_ARGS")) {
        let answer = (case.change)(Run::new("DEL", "", &dir.config())).go();
        answer.is_error(case.code, case.msg);
        assert!(!dir.path("state").exists(), "{}", case.name);
    }
}

#[test]
fn del_does_not_stumble_over_a_namespace_that_is_none() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    for case in namespaces(&dir) {
        (case.change)(Run::new("DEL", "", &dir.config())).go().is_done();
        assert_eq!(agent.notes.calls(), ["DEL 4f2a/eth0 without netns"]);
    }
}

#[test]
fn gc_without_a_usable_list_deletes_nothing() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    let run = |list: Value| {
        let mut config = dir.config();
        config["cni.dev/valid-attachments"] = list;
        Run::new("GC", "", &config).go()
    };
    run(Value::Null).is_error(7, "GC needs cni.dev/valid-attachments");
    run(json!([{"containerID": "../x", "ifname": "eth0"}])).is_error(7, "not valid");
    run(json!("all")).is_error(7, "not valid");
    assert_eq!(agent.notes.calls(), Vec::<String>::new());
}

#[test]
fn operations_that_a_version_lacks_are_incompatible() {
    let dir = Dir::new();
    for (command, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "0.4.0")] {
        let mut config = dir.config();
        config["cniVersion"] = version.into();
        let answer = Run::new(command, "", &config).go();
        answer.is_error(1, command);
        assert_eq!(answer.json["cniVersion"], version);
    }
}
