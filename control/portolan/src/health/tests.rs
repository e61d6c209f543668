use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

use http_body_util::BodyExt;

use super::ports::answer;
use super::*;
use crate::http::Answer;
use crate::metrics::Metrics;

fn web() -> ServiceKey {
    ServiceKey::new("shop", "web")
}

fn check(service: &ServiceKey, port: u16, endpoints: usize) -> HealthCheck {
    HealthCheck { service: service.clone(), port, endpoints }
}

async fn body(answer: Answer) -> String {
    let bytes = answer.into_body().collect().await.expect("a whole body").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("JSON")
}

#[test]
fn a_change_may_wait_for_two_minutes_and_no_longer() {
    let (health, start) = (Health::new(false), Instant::now());
    let after = |seconds| start + Duration::from_secs(seconds);
    assert!(health.is_live(after(1000)), "nothing is known to wait");
    health.queued(start);
    health.queued(after(100));
    assert!(health.is_live(after(120)));
    assert!(!health.is_live(after(121)), "the first one waits");
    assert_eq!(health.overdue(after(150)), Some(Duration::from_secs(150)));
    health.taken(true, true);
    assert!(health.is_live(after(220)), "the second one came later");
    assert!(!health.is_live(after(221)));
    health.taken(true, false);
    assert!(health.is_live(after(1000)));
}

#[test]
fn what_could_not_be_written_waits_until_the_tables_are_as_wanted() {
    let (health, start) = (Health::new(true), Instant::now());
    let after = |seconds| start + Duration::from_secs(seconds);
    health.queued(start);
    assert!(!health.taken(false, false));
    health.queued(after(60));
    assert!(!health.taken(true, false), "this one was written, that one was not");
    assert!(health.is_live(after(120)) && !health.is_live(after(121)));
    health.compared();
    assert!(health.is_live(after(121)));
}

#[test]
fn a_node_is_healthy_once_it_serves_and_until_it_is_about_to_go() {
    let now = Instant::now();
    let fresh = Health::new(false);
    assert!(fresh.is_live(now) && !fresh.is_healthy(now), "it has no tables yet");
    fresh.queued(now);
    fresh.taken(true, false);
    assert!(!fresh.is_healthy(now), "it has not read all objects");
    fresh.queued(now);
    fresh.taken(true, true);
    assert!(fresh.is_healthy(now));

    let unlucky = Health::new(false);
    unlucky.queued(now);
    unlucky.taken(false, true);
    assert!(!unlucky.is_healthy(now), "it could not write them");
    unlucky.compared();
    assert!(unlucky.is_healthy(now), "it could in the end");

    let restarted = Health::new(true);
    assert!(restarted.is_healthy(now), "an earlier agent's tables serve");
    restarted.set_eligible(false);
    assert!(restarted.is_live(now) && !restarted.is_healthy(now));
}

#[tokio::test]
async fn healthz_tells_when_the_tables_were_last_as_wanted() {
    let (health, start) = (Health::new(false), Instant::now());
    let read = async |now| -> serde_json::Value {
        serde_json::from_str(&body(healthz(&health, now)).await).expect("JSON")
    };
    assert_eq!(read(start).await["lastUpdated"], serde_json::Value::Null);
    health.queued(start);
    health.taken(true, true);
    let report = read(start).await;
    assert_eq!((&report["lastUpdated"], &report["nodeEligible"]), (&report["currentTime"], &true.into()));
    health.queued(start);
    let late = start + Duration::from_secs(121);
    assert_eq!(healthz(&health, late).status(), 503);
    let report = read(late).await;
    let time = |name: &str| report[name].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    assert!(time("lastUpdated").is_some() && time("lastUpdated") < time("currentTime"), "{report}");
}

#[tokio::test]
async fn a_health_check_says_what_load_balancers_read() {
    let (health, start) = (Health::new(true), Instant::now());
    health.set_checks([check(&web(), 30_100, 2)]);
    let good = answer(&health, &web(), start);
    assert_eq!(good.status(), 200);
    let header = |name: &str| good.headers().get(name).and_then(|value| value.to_str().ok());
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("x-content-type-options"), Some("nosniff"));
    assert_eq!(header("x-load-balancing-endpoint-weight"), Some("2"));
    assert_eq!(good.headers().len(), 3);
    assert_eq!(
        body(good).await,
        r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#
    );

    health.set_eligible(false);
    assert_eq!(
        answer(&health, &web(), start).status(),
        200,
        "a node that is about to go still has endpoints"
    );
    health.queued(start);
    let stuck = answer(&health, &web(), start + Duration::from_secs(121));
    assert_eq!(stuck.status(), 503);
    assert!(body(stuck).await.ends_with(r#""localEndpoints":2,"serviceProxyHealthy":false}"#));
    health.set_check(&web(), Some(check(&web(), 30_100, 0)));
    assert_eq!(answer(&health, &web(), start).status(), 503);
}

/// The head of the answer; `None` if nobody listens.
fn ask(port: u16, line: &str) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).ok()?;
    stream.write_all(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    Some(reply)
}

/// Ports that are free now.
fn free_ports() -> [u16; 2] {
    let listeners = [0, 0].map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("bound").port())
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..600 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 6 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_follow_services_and_two_may_change_theirs_for_each_others() {
    let [one, two] = free_ports();
    let (health, dns) = (std::sync::Arc::new(Health::new(true)), ServiceKey::new("shop", "dns"));
    let keeper = tokio::spawn(keep(std::sync::Arc::clone(&health)));
    let names = |port, name: &str| ask(port, "POST /any/path").is_some_and(|reply| reply.contains(name));
    health.set_checks([check(&web(), one, 1), check(&dns, two, 1)]);
    until("both are answered", || names(one, "web") && names(two, "dns")).await;
    health.set_checks([check(&web(), two, 1), check(&dns, one, 1)]);
    until("both have moved", || names(two, "web") && names(one, "dns")).await;
    health.set_check(&dns, None);
    until("one is closed", || ask(one, "GET /").is_none()).await;
    // A port that another service has.
    health.set_check(&dns, Some(check(&dns, two, 1)));
    until("it is noted", || health.failures().get(&dns).is_some_and(|it| it.contains("shop/web alone")))
        .await;
    assert!(names(two, "web"));
    health.set_check(&web(), None);
    until("the other has it", || names(two, "dns") && health.failures().is_empty()).await;
    keeper.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_somebody_has_is_taken_when_it_is_free() {
    let somebody = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    let port = somebody.local_addr().expect("bound").port();
    let health = std::sync::Arc::new(Health::new(true));
    let keeper = tokio::spawn(keep(std::sync::Arc::clone(&health)));
    health.set_checks([check(&web(), port, 1)]);
    until("it is noted", || {
        health
            .failures()
            .get(&web())
            .is_some_and(|it| it.contains("in use") && it.contains(&port.to_string()))
    })
    .await;
    drop(somebody);
    until("it is answered", || ask(port, "GET /").is_some()).await;
    until("all is well", || health.failures().is_empty()).await;
    keeper.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_probes_are_counted_by_what_they_were() {
    let listener = crate::http::listen("[::1]:0".parse().expect("an address")).await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (health, metrics) = (std::sync::Arc::new(Health::new(true)), std::sync::Arc::new(Metrics::new()));
    let server =
        tokio::spawn(serve(listener, std::sync::Arc::clone(&health), std::sync::Arc::clone(&metrics)));
    let asked = async |line: &'static str| {
        let reply = tokio::task::spawn_blocking(move || ask(port, line)).await.expect("no panic");
        reply.expect("an answer")
    };
    assert!(asked("GET /healthz").await.contains("Content-Type: application/json\r\n"));
    health.set_eligible(false);
    for _ in 0..2 {
        let reply = asked("GET /healthz").await;
        assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("\"nodeEligible\":false"), "{reply}");
    }
    let reply = asked("GET /livez").await;
    assert!(reply.starts_with("HTTP/1.1 200 ") && !reply.contains("nodeEligible"), "{reply}");
    assert!(asked("POST /livez").await.starts_with("HTTP/1.1 405 "));
    assert!(asked("GET /").await.starts_with("HTTP/1.1 404 "));
    let text = metrics.render(&crate::api::Status::default(), &[], &[]);
    for sample in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1\n",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 2\n",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1\n",
    ] {
        assert!(text.contains(sample), "{sample} is not in {text}");
    }
    server.abort();
}
