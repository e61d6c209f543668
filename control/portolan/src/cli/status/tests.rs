use std::path::{Path, PathBuf};

use super::*;
use crate::api::CidrView;
use crate::cli::Format;
use crate::cli::client::tests::answer_once;
use crate::cli::text::plain;

fn healthy() -> Status {
    let interfaces = [("eth0", "uplink"), ("lo", "loopback"), ("portolan0", "service")];
    Status {
        version: "0.1.0".into(),
        node: "node1".into(),
        ready: true,
        uptime_seconds: 11_530,
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        pod_cidrs: vec![CidrView { cidr: "10.244.1.0/24".into(), used: "3".into(), capacity: "254".into() }],
        attach_mode: "tcx".into(),
        external_mode: "snat".into(),
        interfaces: interfaces.map(|(name, role)| (name.into(), role.into())).into(),
        services: 12,
        pods: 3,
        routes: 1,
        tables: [("services".into(), (95, 100)), ("slots".into(), (16, 16_384))].into(),
        last_sync_microseconds: 1_240,
        syncs: 17,
        ..Status::default()
    }
}

#[test]
fn a_healthy_node_fits_on_one_screen() {
    assert_eq!(
        plain(&text(&healthy())),
        "\
Agent        0.1.0 on node node1, ready, up 3h 12m
Addresses    192.0.2.1, 2001:db8::1
podCIDRs     10.244.1.0/24 (3 of 254 used)
Programs     tcx at eth0 (uplink), lo (loopback), portolan0 (service) and every pod
Sockets      left alone (--socket-cgroup)
Outside      snat (clients of backends elsewhere are masqueraded)
Services     12
Pods         3
Routes       1
Last change  took 1.2 ms (17 so far)

TABLE     USED  CAPACITY  FULL
services    95       100   95%
slots       16     16384    0%
"
    );
}

#[test]
fn what_is_wrong_is_listed_below() {
    let status = Status {
        ready: false,
        not_ready: vec!["node node1 has no podCIDR".into()],
        refused_documents: vec!["web.yaml:3: Service default/web: spec.ports: \u{1b}[31mred".into()],
        conditions: vec!["default/web: TableFull: no room".into()],
        warnings: vec!["uplinks: none".into()],
        ..Status::default()
    };
    let text = plain(&text(&status));
    assert!(text.starts_with("Agent         on node , not ready, up 0s\n"), "{text}");
    assert!(
        text.ends_with(
            "
Not ready
  node node1 has no podCIDR

Warnings
  uplinks: none

Conditions of services
  default/web: TableFull: no room

Refused documents
  web.yaml:3: Service default/web: spec.ports: \\u{1b}[31mred
"
        ),
        "{text}"
    );
}

#[test]
fn a_full_table_is_red_and_one_that_is_almost_full_yellow() {
    let style = |used| {
        let status = Status { tables: [("t".into(), (used, 100))].into(), ..Status::default() };
        let text = tables(&status);
        (text.contains(&WARN.to_string()), text.contains(&BAD.to_string()))
    };
    assert_eq!([89, 90, 100].map(style), [(false, false), (true, false), (false, true)]);
}

fn not_running() -> AskError {
    AskError::NotRunning { path: "/run/a.sock".into() }
}

#[test]
fn with_the_agent_down_the_data_plane_is_told_of() {
    let mut packets = vec![0; portolan_abi::counter::ALL.len()];
    packets[portolan_abi::counter::TO_POD as usize] = 41;
    packets[portolan_abi::counter::PASSED as usize] = 1;
    packets[portolan_abi::counter::DROP_TTL as usize] = 7;
    let mut view = DataPlane {
        agent_answers: false,
        reason: not_running().to_string(),
        pins: "/pins".into(),
        links: vec!["eth0-egress".into(), "eth0-ingress".into()],
        tables: vec!["CONFIG".into(), "SLAB".into()],
        missing_tables: Vec::new(),
        forwarded: 0,
        dropped: 0,
        packets: Default::default(),
        errors: Vec::new(),
    };
    view.count(&packets);
    assert_eq!(
        plain(&view.text()),
        "\
Agent        the agent does not run on this node (nothing answers at /run/a.sock): start it, or name its socket with --socket
Data plane   in place: what is set up goes on without the agent
Links        2 links of programs pinned: eth0-egress, eth0-ingress
Tables       2 of 2 pinned in /pins
Packets      42 went on, 7 dropped (`portolan drop list` says why)
"
    );
}

#[test]
fn a_node_without_any_pin_says_so() {
    let view = DataPlane::read(Path::new("/nonexistent/pins"), &not_running());
    assert_eq!(view.tables, Vec::<String>::new());
    assert_eq!(view.missing_tables.len(), portolan_node::maps::name::all().count());
    let text = plain(&view.text());
    assert!(text.contains("Data plane   not there"), "{text}");
    let none = format!("Tables       0 of {} pinned in /nonexistent/pins\n", view.missing_tables.len());
    assert!(text.contains(&none), "{text}");
}

#[test]
fn a_missing_table_is_named() {
    let pins = tempfile::tempdir().unwrap();
    for name in portolan_node::maps::name::all().filter(|name| name != "SLAB") {
        std::fs::write(pins.path().join(name), "").unwrap();
    }
    let view = DataPlane::read(pins.path(), &not_running());
    assert_eq!(view.missing_tables, ["SLAB"]);
    let text = plain(&view.text());
    assert!(text.contains("incomplete") && text.contains("missing: SLAB"), "{text}");
}

#[test]
fn status_succeeds_if_the_agent_answers_and_fails_if_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket: PathBuf = directory.path().join("agent.sock");
    let global = Global { socket: socket.clone(), pins: directory.path().join("pins") };
    let output = Output { format: Format::Json };
    assert_eq!(run(output, &global).unwrap(), ExitCode::FAILURE);
    let reply = serde_json::to_string(&crate::api::Reply::Status(Box::new(healthy()))).unwrap() + "\n";
    let agent = answer_once(&socket, reply.into_bytes());
    assert_eq!(run(output, &global).unwrap(), ExitCode::SUCCESS);
    agent.join().unwrap();
}
