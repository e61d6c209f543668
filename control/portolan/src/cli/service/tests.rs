use super::*;
use crate::api::{BackendView, LocalView, Why};
use crate::cli::text::plain;

/// As the agent says it of an SCTP port.
const CONDITION: &str = "Invalid: web.yaml:9: Service default/web: spec.ports[1].protocol: expected TCP or UDP (SCTP is not \
                         carried: this port is left out), found \"SCTP\" (the rest of it is served)";

/// Two services, the second with nobody behind it.
pub(in crate::cli) fn services() -> Vec<ServiceView> {
    let frontend = |kind: &str, address: Option<&str>, port| FrontendView {
        kind: kind.into(),
        address: address.map(|address| address.parse().unwrap()),
        port,
    };
    let backend = |address: &str, local, flows| BackendView {
        address: address.parse().unwrap(),
        port: 8080,
        local,
        flows,
    };
    let http = PortView {
        name: "http".into(),
        protocol: "TCP".into(),
        family: "IPv4".into(),
        frontends: vec![frontend("ClusterIP", Some("10.96.0.10"), 80), frontend("NodePort", None, 30_080)],
        backends: vec![
            backend("10.244.1.2", true, 900),
            backend("10.244.2.3", false, 99),
            backend("10.244.2.14", false, 1),
            backend("10.244.2.15", false, 0),
        ],
        flows: 1000,
        internal_local: false,
        external_local: true,
        affinity: Some(10_800),
        why: Why::SameZone,
        local: Some(LocalView { backends: vec!["10.244.1.2:8080".parse().unwrap()], why: Why::Ready }),
        sources: Some(vec!["203.0.113.0/24".into(), "198.51.100.7/32".into()]),
        direct: false,
        consistent: true,
    };
    let dns = PortView {
        name: String::new(),
        protocol: "UDP".into(),
        family: "IPv6".into(),
        frontends: vec![frontend("ClusterIP", Some("fd00:10:96::a"), 53)],
        backends: Vec::new(),
        flows: 0,
        internal_local: false,
        external_local: false,
        direct: true,
        local: Some(LocalView { backends: vec!["[fd00::9]:53".parse().unwrap()], why: Why::Terminating }),
        sources: Some(Vec::new()),
        ..PortView::default()
    };
    let service = |namespace: &str, name: &str, ports, conditions| ServiceView {
        namespace: namespace.into(),
        name: name.into(),
        ports,
        conditions,
        notes: Vec::new(),
    };
    vec![
        service("default", "web", vec![http], vec![CONDITION.into()]),
        service("kube-system", "dns", vec![dns], Vec::new()),
    ]
}

#[test]
fn services_are_listed_by_port_and_family() {
    assert_eq!(
        plain(&table(&services())),
        "\
NAMESPACE    NAME  PORT  PROTOCOL  FAMILY  FRONTENDS               BACKENDS     FLOWS  NOTE
default      web   http  TCP       IPv4    10.96.0.10:80, *:30080  4 (1 local)   1000  1 condition
kube-system  dns   -     UDP       IPv6    [fd00:10:96::a]:53      none             0
"
    );
    assert_eq!(table(&[]), "no services\n");
}

#[test]
fn a_service_without_a_served_port_still_has_a_row() {
    let mut all = services();
    all[0].ports.clear();
    let text = plain(&table(&all));
    assert!(text.contains("default      web   -     -"), "{text}");
    assert!(plain(&show::text(&all[0])).contains("no port of it is served"));
}

#[test]
fn showing_a_service_draws_how_its_flows_spread() {
    assert_eq!(
        plain(&show::text(&services()[0])).replace(CONDITION, "…"),
        "\
default/web

  http TCP IPv4  1000 flows, session affinity 3h 0m, externalTrafficPolicy Local, consistent hashing, same zone only: all hints name zones
    ClusterIP  10.96.0.10:80
    NodePort   *:30080
    load balancer addresses are open to 203.0.113.0/24, 198.51.100.7/32 only
      → 10.244.1.2:8080   local   900   90.0%  ██████████████████
      → 10.244.2.3:8080   remote   99    9.9%  ██
      → 10.244.2.14:8080  remote    1    0.1%  █
      → 10.244.2.15:8080  remote    0    0.0%
    Local set: the local backends above

Conditions
  …
"
    );
}

#[test]
fn showing_a_service_without_backends_says_what_clients_see() {
    assert_eq!(
        plain(&show::text(&services()[1])),
        "\
kube-system/dns

  UDP IPv6  0 flows, direct return
    ClusterIP  [fd00:10:96::a]:53
    load balancer addresses are closed: no source range is of this family
      → no backend: clients are rejected
    Local set: [fd00::9]:53 (terminating backends: none is ready)
"
    );
}

#[test]
fn backends_nobody_used_have_no_share() {
    let mut service = services().remove(0);
    service.ports[0].backends.iter_mut().for_each(|backend| backend.flows = 0);
    let text = plain(&show::text(&service));
    assert!(text.contains("10.244.1.2:8080   local   0       -\n"), "{text}");
}

#[test]
fn a_name_finds_its_service_and_an_ambiguous_one_lists_the_candidates() {
    let mut all = services();
    assert_eq!(find(&all, "dns").unwrap().namespace, "kube-system");
    all.push(ServiceView { namespace: "prod".into(), ..all[0].clone() });
    assert_eq!(find(&all, "prod/web").unwrap().namespace, "prod");
    let ambiguous = find(&all, "web").unwrap_err().to_string();
    assert!(ambiguous.ends_with("choose one of default/web, prod/web"), "{ambiguous}");
    let missing = find(&all, "prod/dns").unwrap_err().to_string();
    assert!(missing.contains("there is no service prod/dns"), "{missing}");
}
