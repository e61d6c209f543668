use serde_json::json;

use super::*;

fn value(text: &str) -> Value {
    let document = parse(text).expect("the text is valid").expect("the document is not empty");
    document.value(&document.root).expect("the document is small")
}

fn error(text: &str) -> SyntaxError {
    match parse(text) {
        Ok(Some(document)) => document.value(&document.root).expect_err("it must be refused"),
        Ok(None) => panic!("an empty document"),
        Err(error) => error,
    }
}

#[test]
fn scalars_follow_the_core_schema_and_quotes_make_text() {
    let text = "a: 80\nb: '80'\nc: true\nd: \"true\"\ne: null\nf:\ng: ~\nh: 1.5\ni: 10.0.0.1\nj: -1\nk: 0x1f\n\
                l: !!str 80\nm: 2025-01-31T12:00:00Z\nn: 1e3\no: .inf\np: yes\nq: 0.0.0.0/0\n";
    let expected = json!({
        "a": 80, "b": "80", "c": true, "d": "true", "e": null, "f": null, "g": null, "h": 1.5, "i": "10.0.0.1",
        "j": -1, "k": 31, "l": "80", "m": "2025-01-31T12:00:00Z", "n": 1000.0, "o": ".inf", "p": "yes",
        "q": "0.0.0.0/0",
    });
    assert_eq!(value(text), expected);
}

#[test]
fn json_is_yaml_also_when_it_is_indented_with_tabs() {
    assert_eq!(
        value("{\n\t\"a\": [1, {\"b\": \"x\\ny\"}],\n\t\"c\": false\n}\n"),
        json!({"a": [1, {"b": "x\ny"}], "c": false})
    );
}

#[test]
fn aliases_and_merges_are_written_out() {
    let text = "x: &x {a: 1, b: 2}\ny: *x\nz:\n  <<: *x\n  b: 3\nw:\n  <<: [{a: 7}, *x]\n";
    let x = json!({"a": 1, "b": 2});
    assert_eq!(value(text), json!({"x": x, "y": x, "z": {"a": 1, "b": 3}, "w": {"a": 7, "b": 2}}));
}

#[test]
fn a_billion_laughs_are_refused_in_no_time() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..20 {
        let ten = vec![format!("*a{}", i - 1); 10].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{ten}]\n"));
    }
    assert!(error(&text).reason.contains("aliases"));
    let mut merges = "a0: &a0 {f0: 1, f1: 1, f2: 1}\n".to_owned();
    merges.push_str(&format!("b: {{<<: [{}]}}\n", vec!["*a0"; 50_000].join(", ")));
    assert!(error(&merges).reason.contains("aliases"));
}

#[test]
fn a_list_of_aliases_shares_one_budget_over_its_items() {
    let ten = vec!["x"; 1000].join(", ");
    let text = format!("a: &a [{ten}]\nitems: [{}]\n", vec!["*a"; 1000].join(", "));
    let document = parse(&text).unwrap().unwrap();
    let NodeKind::List(items) = &document.root.get("items").unwrap().kind else { panic!("not a list") };
    assert!(items.iter().any(|item| document.value(item).is_err()));
}

#[test]
fn nesting_is_bounded_also_through_aliases() {
    assert!(error(&"[".repeat(100)).reason.contains("deeper"));
    let mut block = String::new();
    for i in 0..100 {
        block.push_str(&format!("{}a:\n", " ".repeat(i)));
    }
    assert!(error(&block).reason.contains("deeper"));
    let mut chain = "a0: &a0 [x]\n".to_owned();
    for i in 1..1000 {
        chain.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
    }
    assert!(error(&chain).reason.contains("deeper"));
}

#[test]
fn a_wide_map_is_read_without_comparing_every_pair() {
    let mut text = String::new();
    for i in 0..200_000 {
        text.push_str(&format!("f{i}: 1\n"));
    }
    assert_eq!(value(&text).as_object().map(Map::len), Some(200_000));
}

#[test]
fn mistakes_are_told_with_their_line() {
    assert_eq!(error("a: 1\nb: [1, 2\nc: 3\n").line, 3);
    let twice = error("a: 1\nb: 2\na: 3\n");
    assert_eq!((twice.line, twice.reason.as_str()), (3, "field \"a\" is there twice, first in line 1"));
    assert_eq!(error("a: &a [*a]\n").line, 1);
    assert!(error("? [a]\n: 1\n").reason.contains("name"));
    assert!(error("<<: 1\n").reason.contains("<<"));
}

#[test]
fn the_line_of_a_field_is_found_by_its_path() {
    let text = "kind: X\nspec:\n  ports:\n  - name: a\n    port: 1\n  - name: b\n    port: 2\nmeta:\n  labels:\n    \
                example.com/app: x\n";
    let document = parse(text).unwrap().unwrap();
    let cases = [
        ("kind", 1),
        ("spec", 2),
        ("spec.ports", 3),
        ("spec.ports[1]", 6),
        ("spec.ports[1].port", 7),
        ("spec.ports[1].protocol", 6),
        ("spec.clusterIP", 2),
        ("meta.labels.example.com/app", 10),
        ("meta.labels[example.com/app]", 10),
        ("nothing", 1),
        ("", 1),
    ];
    for (path, line) in cases {
        assert_eq!(document.root.line_at(path), line, "{path}");
    }
}
