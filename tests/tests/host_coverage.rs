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
    assert!(rows.len() > 80, "only {} lines were found", rows.len());
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
    assert_eq!(numbers.last().map(|last| last.0), Some(7), "sections 1 to 7");
}

#[test]
fn a_test_is_found_by_its_whole_name_and_its_attribute() {
    let text = "#[test]\nfn one() {}\nfn helper() {}\n    #[tokio::test]\n    async fn two() {}\n";
    assert!(has(text, "one") && has(text, "two"));
    assert!(!has(text, "on") && !has(text, "helper") && !has(text, "three"));
    let cases = "cases! {\n    fn three(site, s) { None } {}\n}\nfn other() {}\n";
    assert!(has(cases, "three") && !has(cases, "other"));
}
