//! `docs/kubernetes.md` tells the truth about which tests there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The page.
fn page() -> String {
    read(&root().join("docs/kubernetes.md")).expect("the page is part of the checkout")
}

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the crate is a directory of the checkout").to_owned()
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Names of upstream's conformance tests that concern the data plane. The page has a row for each, and for no other.
const CONFORMANCE: [&str; 12] = [
    "Serve a basic endpoint from pods",
    "Serve multiport endpoints from pods",
    "Serve endpoints on the same port and different protocols",
    "Create a functioning NodePort service",
    "Change the type from ExternalName to ClusterIP and NodePort, and back",
    "Session affinity, and switching it, for ClusterIP and NodePort",
    "Several addresses and ports in several EndpointSlices",
    "Host ports without conflict",
    "Intra-pod and node-pod communication",
    "DNS for services and the cluster, over UDP and TCP",
    "Endpoints latency",
    "`kubernetes.default` with endpoints in the host network",
];

/// Names of its other end-to-end tests. The same.
const END_TO_END: [&str; 26] = [
    "Update after adding and deleting ports",
    "Preserve the source pod's address",
    "Hairpin",
    "Up and down services",
    "A service that is made again",
    "After a restart of the proxy",
    "After a restart of the API server",
    "Terminating and unready endpoints, with and without `publishNotReadyAddresses`",
    "Affinity timeout",
    "The label `service-proxy-name`",
    "The label `headless`",
    "Rejected without endpoints",
    "Internal policy Local, from a pod and from the host's network",
    "External policy Local with NodePort",
    "Health check node port fails with only terminating endpoints while traffic flows",
    "Fallback to terminating endpoints, internal and external, Cluster and Local",
    "UDP preserved when the server pod cycles: ClusterIP, NodePort, load balancer, client in the host's network",
    "UDP target port change",
    "No disruption in a rolling update",
    "`trafficDistribution`: same zone, same node, fallback",
    "Two services with one selector",
    "Large requests",
    "SCTP host ports",
    "Dual stack for all of it",
    "Pod to pod without translation",
    "Connections to terminating pods",
];

/// Everything on a line that has the form of a test's name: `` `file::test` ``.
fn named(line: &str) -> impl Iterator<Item = (&str, &str)> {
    // Every other piece between backticks is inside of them.
    line.split('`').skip(1).step_by(2).filter_map(|word| word.rsplit_once("::"))
}

/// The file that the page means.
fn file(name: &str) -> PathBuf {
    let path = match name.split_once('/') {
        None => format!("tests/tests/{name}.rs"),
        Some(("fixture", _)) => format!("tests/src/packet/{name}.rs"),
        Some(_) => format!("{}.rs", name.replace("::", "/")),
    };
    root().join(path)
}

/// Whether a source file has a test, or a case of a table, of that name.
fn has(text: &str, test: &str) -> bool {
    let begins = |line: &str, before: &str| {
        let name = line.trim_start().strip_prefix(before).and_then(|it| it.strip_prefix(test));
        name.is_some_and(|rest| rest.starts_with('('))
    };
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().enumerate().any(|(at, line)| {
        let attributes = lines[..at].iter().rev().take_while(|line| line.trim_start().starts_with("#["));
        let is_test = attributes.into_iter().any(|line| line.contains("test]") || line.contains("::test("));
        (is_test && (begins(line, "fn ") || begins(line, "async fn ")))
            || (text.contains("cases! {") && begins(line, "fn ") && line.contains("(site, s)"))
    })
}

/// The rows of all tables, without their heads.
fn rows(page: &str) -> Vec<&str> {
    let is_head = |line: &str| line.contains("| Shown by |") || line.starts_with("|---");
    page.lines().filter(|line| line.starts_with('|') && !is_head(line)).collect()
}

#[test]
fn every_test_that_the_page_names_exists() {
    let page = page();
    let missing: BTreeSet<String> = page
        .lines()
        .flat_map(named)
        // The introduction explains the form with names of no test.
        .filter(|(file, _)| !["suite", "fixture/file"].contains(file))
        .filter(|(name, test)| !read(&file(name)).is_some_and(|text| has(&text, test)))
        .map(|(name, test)| format!("{name}::{test}"))
        .collect();
    assert!(missing.is_empty(), "docs/kubernetes.md names tests that are not there: {missing:#?}");
}

#[test]
fn every_line_of_the_page_names_a_test_or_says_not_yet_and_why() {
    let page = page();
    let rows = rows(&page);
    let bare: Vec<_> = rows
        .into_iter()
        .filter(|row| {
            let shown = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
            let excuse = shown.strip_prefix("not yet: ").is_some_and(|why| !why.is_empty());
            !excuse && named(shown).next().is_none()
        })
        .collect();
    assert!(bare.is_empty(), "{bare:#?}");
}

/// The first cells of the table whose head begins so.
fn table<'a>(page: &'a str, head: &str) -> Vec<&'a str> {
    let rest = page.lines().skip_while(|line| !line.starts_with(&format!("| {head} |")));
    let rows = rest.skip(2).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| row.split(" | ").next()?.strip_prefix("| ")).collect()
}

#[test]
fn every_name_of_the_upstream_suites_has_its_row() {
    let page = page();
    assert_eq!(table(&page, "Conformance"), CONFORMANCE);
    assert_eq!(table(&page, "End to end"), END_TO_END);
}

#[test]
fn lines_are_numbered_without_gaps() {
    let page = page();
    let numbers: Vec<(u32, u32)> = rows(&page)
        .into_iter()
        .filter_map(|row| row.trim_start_matches("| ").split(' ').next()?.split_once('.'))
        .filter_map(|(section, line)| Some((section.parse().ok()?, line.parse().ok()?)))
        .collect();
    for pair in numbers.windows(2) {
        let [(section, line), next] = [pair[0], pair[1]];
        assert!(
            next == (section, line + 1) || next == (section + 1, 1),
            "{section}.{line} is followed by {next:?}"
        );
    }
    assert_eq!(numbers.last().map(|last| last.0), Some(9), "sections 1 to 9");
}

#[test]
fn a_test_is_found_by_its_whole_name_and_its_attribute() {
    let text = "#[test]\nfn one() {}\nfn helper() {}\n    #[tokio::test]\n    async fn two() {}\n";
    assert!(has(text, "one") && has(text, "two"));
    assert!(!has(text, "on") && !has(text, "helper") && !has(text, "three"));
    let cases = "cases! {\n    fn three(site, s) { None } {}\n}\nfn other() {}\n";
    assert!(has(cases, "three") && !has(cases, "other"));
}
