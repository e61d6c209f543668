//! The dashboard and the alerts: only series that agents have, in queries that Prometheus' own tool reads.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, SystemTime};

use portolan::api::{CidrView, PortView, ServiceView, Status};
use portolan::metrics::Metrics;
use portolan_abi::counter;
use serde_json::{Value, json};

use crate::files::{documents, read, root};

/// Every series of an agent that has something of everything: names, and their labels with the values that occur.
fn series() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let metrics = Metrics::new();
    metrics.observe_sync(Duration::from_millis(1));
    metrics.observe_network_programming(SystemTime::now());
    metrics.count_healthz(200);
    metrics.count_livez(200);
    let status = Status {
        pod_cidrs: vec![CidrView { cidr: "10.244.0.0/24".into(), used: "1".into(), capacity: "253".into() }],
        tables: [("slots".into(), (1, 2))].into(),
        bgp_sessions: [("tor".into(), true)].into(),
        ..Status::default()
    };
    let service = ServiceView { ports: vec![PortView::default()], ..ServiceView::default() };
    let text = metrics.render(&status, &[service], &vec![0; counter::ALL.len()]);
    let mut series = BTreeMap::<String, BTreeMap<String, BTreeSet<String>>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = series.entry(name.to_owned()).or_default();
        let pairs = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
        for pair in pairs.split("\",").filter(|pair| !pair.is_empty()) {
            let (label, value) = pair.split_once("=\"").unwrap();
            labels.entry(label.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
        }
    }
    series
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/grafana/portolan.json")).unwrap()
}

fn panels() -> Vec<Value> {
    dashboard()["panels"].as_array().unwrap().clone()
}

/// Where each query is, and its text, in which Grafana's variables have values.
fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query =
                query.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$instance", ".*");
            queries.push((format!("panel {}", panel["title"]), query));
        }
    }
    queries
}

fn alerts() -> Vec<Value> {
    let groups = documents(&read("deploy/prometheus/alerts.yaml"));
    let rules = groups[0]["groups"].as_array().unwrap().iter().flat_map(|it| it["rules"].as_array().unwrap());
    rules.cloned().collect()
}

fn all_queries() -> Vec<(String, String)> {
    let alerts = alerts();
    let alerts =
        alerts.iter().map(|it| (format!("alert {}", it["alert"]), it["expr"].as_str().unwrap().to_owned()));
    let queries: Vec<_> = queries().into_iter().chain(alerts).collect();
    assert!(queries.len() > 30, "{queries:?}");
    queries
}

/// The names of series in a query, each with what stands in the braces after it.
fn selectors(query: &str) -> Vec<(&str, &str)> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = query.char_indices().filter(|(at, _)| {
        let before = query[..*at].chars().next_back();
        let rest = &query[*at..];
        !before.is_some_and(of_name) && (rest.starts_with("portolan_") || rest.starts_with("kubeproxy_"))
    });
    let selectors = starts.map(|(at, _)| {
        let rest = &query[at..];
        let (name, rest) = rest.split_at(rest.find(|c| !of_name(c)).unwrap_or(rest.len()));
        let inside =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
        (name, inside)
    });
    selectors.collect()
}

/// Label, operator and value of each matcher.
fn matchers(inside: &str) -> Vec<(&str, &str)> {
    let parts = inside.split("\",").filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (label, value) = part.split_once('"').unwrap();
            (label.trim_end_matches(['=', '~', '!']), value.trim_end_matches('"'))
        })
        .collect()
}

/// What Prometheus adds to each series.
const ADDED: [&str; 2] = ["instance", "job"];

#[test]
fn queries_ask_for_series_labels_and_values_that_agents_have() {
    let series = series();
    for (place, query) in all_queries() {
        let selectors = selectors(&query);
        assert!(!selectors.is_empty() || query.starts_with("up{"), "{place}: {query}");
        for (name, inside) in selectors {
            let Some(labels) = series.get(name) else { panic!("{place}: no agent has {name}") };
            for (label, value) in matchers(inside) {
                let known = labels.contains_key(label) || ADDED.contains(&label);
                assert!(known, "{place}: {name} has no label {label}");
                if ["reason", "outcome"].contains(&label) {
                    let unknown = value.split('|').find(|value| !labels[label].contains(*value));
                    assert_eq!(unknown, None, "{place}: no such {label}");
                }
            }
        }
    }
}

#[test]
fn queries_group_by_labels_that_their_series_have() {
    let series = series();
    for (place, query) in all_queries() {
        let has: BTreeSet<&str> = selectors(&query)
            .into_iter()
            .flat_map(|(name, _)| series[name].keys().map(String::as_str))
            .chain(ADDED)
            .collect();
        for part in query.split(" by (").skip(1) {
            for label in part.split_once(')').unwrap().0.split(", ") {
                assert!(has.contains(label), "{place}: nothing in {query} has a label {label}");
            }
        }
    }
}

#[test]
fn legends_name_labels_that_are_left() {
    for panel in panels() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let (query, legend) =
                (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap());
            for part in legend.split("{{").skip(1) {
                let label = part.split_once("}}").unwrap().0;
                let kept = match query.split_once(" by (") {
                    Some((_, rest)) => rest.split_once(')').unwrap().0.split(", ").any(|it| it == label),
                    None => ADDED.contains(&label) || series_of(query).contains(label),
                };
                assert!(kept, "{}: {legend} of {query}", panel["title"]);
            }
        }
    }
}

fn series_of(query: &str) -> BTreeSet<String> {
    let series = series();
    selectors(query)
        .into_iter()
        .flat_map(|(name, _)| series[name].keys().cloned().collect::<Vec<_>>())
        .collect()
}

#[test]
fn what_an_operator_needs_most_is_on_the_dashboard() {
    let asked: BTreeSet<String> =
        queries().iter().flat_map(|(_, query)| selectors(query)).map(|(name, _)| name.to_owned()).collect();
    for name in [
        "portolan_packets_total",
        "portolan_drops_total",
        "portolan_table_entries",
        "portolan_service_flows_total",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
        "kubeproxy_network_programming_duration_seconds_bucket",
        "portolan_pod_addresses_used",
        "portolan_bgp_session_up",
        "portolan_l2_owned",
    ] {
        assert!(asked.contains(name), "{name}");
    }
}

#[test]
fn panels_have_their_own_place_and_number_and_say_what_they_show() {
    let mut taken = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for panel in panels() {
        let title = panel["title"].as_str().unwrap();
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{title}: its number is another's");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{title}: Grafana has 24 columns");
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(place), "{title} covers another at {place:?}");
        }
        if panel["type"] != "row" {
            assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(
                !targets.is_empty() && targets.iter().all(|it| it["datasource"]["uid"] == "${datasource}")
            );
        }
    }
}

#[test]
fn every_alert_says_what_is_so_and_what_to_do() {
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(names.insert(name.to_owned()), "{name} is there twice");
        assert!(
            ["critical", "warning", "info"].contains(&alert["labels"]["severity"].as_str().unwrap()),
            "{name}"
        );
        for part in ["summary", "description", "runbook"] {
            let text = alert["annotations"][part].as_str().unwrap_or_else(|| panic!("{name} has no {part}"));
            assert!(text.len() > 15 && text.ends_with('.'), "{name}: {part}: {text}");
        }
    }
}

/// What alerts tell operators to run.
#[test]
fn runbooks_name_commands_that_there_are() {
    use clap::CommandFactory;
    let mut command = portolan::cli::Arguments::command();
    command.build();
    let mut named = 0;
    for alert in alerts() {
        let text = alert["annotations"]["runbook"].as_str().unwrap();
        for part in text.split("`portolan ").skip(1) {
            let mut at = &command;
            for word in part.split_once('`').unwrap().0.split(' ') {
                match word.strip_prefix("--") {
                    Some(option) => {
                        let known = at.get_arguments().any(|it| it.get_long() == Some(option));
                        assert!(known, "{}: {text}: no option --{option}", alert["alert"]);
                    }
                    // An example's argument.
                    None if word.chars().all(char::is_uppercase) => {}
                    None => {
                        at = at.find_subcommand(word).unwrap_or_else(|| {
                            panic!("{}: {text}: no command {word}", alert["alert"]);
                        });
                    }
                }
            }
            named += 1;
        }
    }
    assert!(named > 10, "only {named} commands were found");
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(root().join("deploy/prometheus"))
        .output()
        .expect("promtool is there: `cargo xtask setup` installs it");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
fn every_alert_fires_for_its_reason_and_for_no_other() {
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["test", "rules", "alerts.test.yaml"]);
    let tests = &documents(&read("deploy/prometheus/alerts.test.yaml"))[0]["tests"];
    let expected = tests[0]["promql_expr_test"][0]["exp_samples"].as_array().unwrap();
    for alert in alerts() {
        let label = format!("alertname={}", alert["alert"]);
        let tested = expected.iter().any(|sample| sample["labels"].as_str().unwrap().contains(&label));
        assert!(tested, "{label}: not in alerts.test.yaml");
    }
}

#[test]
fn prometheus_reads_every_query_of_the_dashboard() {
    let rules = queries().into_iter().enumerate();
    let rules = rules.map(|(at, (_, query))| json!({"record": format!("query:{at}"), "expr": query}));
    let file = tempfile::NamedTempFile::new().unwrap();
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules.collect::<Vec<_>>()}]});
    std::fs::write(file.path(), groups.to_string()).unwrap();
    promtool(&["check", "rules", file.path().to_str().unwrap()]);
}
