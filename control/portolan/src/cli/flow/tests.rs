use portolan_abi::{Flow, FlowKey, Frontend, FrontendKey, Words, exit, frontend_flag, state};

use super::*;
use crate::cli::Format;
use crate::cli::service::tests::services;
use crate::cli::text::plain;

fn v4(address: [u8; 4]) -> Words<1> {
    Words::<1>::from_octets(address)
}

/// Two ports in packet order.
fn ports(source: u16, destination: u16) -> u32 {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

const NOW: u32 = 10_000;

/// A masqueraded TCP flow as both of its entries, and a UDP flow of another service that nobody answered.
fn fabricated() -> Vec<FlowView> {
    let (client, vip, node, backend) = ([10, 244, 1, 9], [10, 96, 0, 10], [192, 0, 2, 1], [10, 244, 2, 3]);
    let request = (
        FlowKey { src: v4(client), dst: v4(vip), ports: ports(40_000, 80), proto: 6 },
        Flow {
            src: v4(node),
            dst: v4(backend),
            ports: ports(10_240, 8080),
            ifindex: 2,
            mac: [0; 3],
            exit: exit::UPLINK,
            state: state::ESTABLISHED | state::MASQUERADE,
            seen: NOW - 14,
            service: 1,
            backend: 5,
            from_ifindex: 12,
            from_mac: [0; 3],
            from: exit::POD,
            beat: 0,
        },
    );
    let reply = (
        FlowKey { src: v4(backend), dst: v4(node), ports: ports(8080, 10_240), proto: 6 },
        Flow {
            src: v4(vip),
            dst: v4(client),
            ports: ports(80, 40_000),
            ifindex: 12,
            exit: exit::POD,
            state: state::ESTABLISHED | state::MASQUERADE | state::REPLY,
            ..request.1
        },
    );
    let six =
        |last: u8| Words::<4>::from_octets([0xfd, 0, 0, 0x10, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    let silent = (
        FlowKey { src: six(1), dst: six(10), ports: ports(5353, 53), proto: 17 },
        Flow {
            src: six(1),
            dst: six(3),
            ports: ports(5353, 5300),
            ifindex: 0,
            mac: [0; 3],
            exit: exit::STACK,
            state: 0,
            seen: NOW,
            service: 70,
            backend: 0,
            from_ifindex: 0,
            from_mac: [0; 3],
            from: exit::STACK,
            beat: 0,
        },
    );
    let mut flows = view::all::<V4>(&[request, reply], NOW);
    flows.extend(view::all::<V6>(&[silent], NOW));
    flows
}

/// The frontends of [`services`] as the agent writes them: `default/web` is 1.
fn names() -> Names {
    let key = |addr, port: u16, proto| FrontendKey { addr, port: port.to_be(), proto, zero: 0 };
    let at = |service| Frontend { service, flags: 0 };
    let mark = Frontend { service: 0, flags: frontend_flag::VIP };
    let v4 = [
        (key(v4([10, 96, 0, 10]), 0, 0), mark),
        (key(v4([10, 96, 0, 10]), 80, 6), at(1)),
        (key(Words::ZERO, 30_080, 6), at(1)),
        (key(v4([10, 96, 0, 10]), 80, 17), at(9)),
    ];
    Names::new(&services(), &v4, &[])
}

#[test]
fn flows_are_told_in_words_with_the_most_recent_first() {
    let mut flows = fabricated();
    select(&mut flows, 0);
    for flow in &mut flows {
        flow.service = names().get(flow.service_index).map(str::to_owned);
    }
    assert_eq!(
        plain(&table(&flows)),
        "\
PROTOCOL  ORIGINAL                                   TRANSLATED                                   DIRECTION  STATE        IDLE  EXIT                  SERVICE
UDP       [fd00:10:96::1]:5353 → [fd00:10:96::a]:53  [fd00:10:96::1]:5353 → [fd00:10:96::3]:5300  request    opening        0s  host stack            #70
TCP       10.244.1.9:40000 → 10.96.0.10:80           192.0.2.1:10240 → 10.244.2.3:8080            request    established   15s  uplink (interface 2)  default/web:http
TCP       10.244.2.3:8080 → 192.0.2.1:10240          10.96.0.10:80 → 10.244.1.9:40000             reply      established   15s  pod (interface 12)    default/web:http
"
    );
    assert_eq!(table(&[]), "no flows\n");
}

#[test]
fn every_set_of_bits_is_one_of_four_states() {
    let of = |bits| {
        let (key, flow) = (
            FlowKey { src: v4([0; 4]), dst: v4([0; 4]), ports: 0, proto: 6 },
            Flow {
                src: v4([0; 4]),
                dst: v4([0; 4]),
                ports: 0,
                ifindex: 0,
                mac: [0; 3],
                exit: exit::HOST,
                state: bits,
                seen: NOW + 1,
                service: 0,
                backend: 0,
                from_ifindex: 0,
                from_mac: [0; 3],
                from: exit::STACK,
                beat: 0,
            },
        );
        let view = FlowView::new::<V4>(&key, &flow, NOW);
        assert_eq!(view.idle_seconds, 0, "a packet seen after the clock was read");
        view.state
    };
    use state::{BACKEND_FIN, CLIENT_FIN, ESTABLISHED, REPLY, RESET};
    assert_eq!(of(REPLY), State::Opening);
    assert_eq!(of(ESTABLISHED | REPLY), State::Established);
    assert_eq!(of(ESTABLISHED | CLIENT_FIN), State::Closing);
    assert_eq!(of(ESTABLISHED | BACKEND_FIN), State::Closing);
    assert_eq!(of(ESTABLISHED | CLIENT_FIN | BACKEND_FIN), State::Closed);
    assert_eq!(of(RESET), State::Closed);
}

#[test]
fn both_directions_of_a_flow_stand_together_with_the_request_first() {
    let mut flows = fabricated();
    // A second flow of the same age, whose client would stand between the two entries of the first.
    let mut other = flows[0].clone();
    other.original.source.address = "10.244.1.10".parse().unwrap();
    flows.push(other);
    flows.reverse();
    select(&mut flows, 0);
    let order: Vec<_> =
        flows[1..].iter().map(|flow| (flow.as_client_sees().source, flow.direction)).collect();
    use view::Direction::{Reply, Request};
    assert_eq!((order[0].0, order[2].0.address), (order[1].0, "10.244.1.10".parse().unwrap()));
    assert_eq!(order.iter().map(|(_, direction)| *direction).collect::<Vec<_>>(), [Request, Reply, Request]);
}

#[test]
fn a_limit_keeps_the_most_recent() {
    let mut flows = fabricated();
    select(&mut flows, 1);
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0].protocol, "UDP");
}

fn list(service: Option<&str>, address: Option<&str>) -> List {
    List {
        limit: 0,
        service: service.map(str::to_owned),
        address: address.map(|address| address.parse().unwrap()),
        output: Output { format: Format::Table },
    }
}

fn admitted(list: &List, services: Result<&[ServiceView], &str>) -> anyhow::Result<usize> {
    let filter = Filter::new(list, services, &names())?;
    Ok(fabricated().iter().filter(|flow| filter.admits(flow)).count())
}

#[test]
fn flows_are_filtered_by_service_name_or_index() {
    let services = services();
    let count = |name| admitted(&list(Some(name), None), Ok(&services));
    assert_eq!(count("web").unwrap(), 2);
    assert_eq!(count("default/web").unwrap(), 2);
    assert_eq!(count("dns").unwrap(), 0, "it has no frontend in the tables");
    assert_eq!(count("70").unwrap(), 1);
    assert!(count("nosuch").unwrap_err().to_string().contains("no service nosuch"));
}

#[test]
fn without_the_agent_a_service_is_found_by_index_only() {
    assert_eq!(admitted(&list(Some("70"), None), Err("it is not there")).unwrap(), 1);
    let error = admitted(&list(Some("web"), None), Err("it is not there")).unwrap_err().to_string();
    assert!(error.contains("it is not there") && error.contains("index"), "{error}");
}

#[test]
fn an_address_finds_flows_before_and_after_translation() {
    let count = |address| admitted(&list(None, Some(address)), Err("no need")).unwrap();
    assert_eq!(count("10.96.0.10"), 2);
    assert_eq!(count("10.244.2.3"), 2);
    assert_eq!(count("192.0.2.1"), 2);
    assert_eq!(count("fd00:10:96::3"), 1);
    assert_eq!(count("10.96.0.11"), 0);
}

#[test]
fn scripts_get_addresses_and_ports_apart() {
    let value = serde_json::to_value(&fabricated()[0]).unwrap();
    assert_eq!(
        value,
        serde_json::json!({
            "protocol": "TCP",
            "original": {
                "source": {"address": "10.244.1.9", "port": 40_000},
                "destination": {"address": "10.96.0.10", "port": 80},
            },
            "translated": {
                "source": {"address": "192.0.2.1", "port": 10_240},
                "destination": {"address": "10.244.2.3", "port": 8080},
            },
            "direction": "request",
            "state": "established",
            "masqueraded": true,
            "idleSeconds": 15,
            "exit": "uplink",
            "interfaceIndex": 2,
            "service": null,
            "serviceIndex": 1,
            "backendIndex": 5,
        })
    );
}
