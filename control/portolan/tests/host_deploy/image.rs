//! The Dockerfile: no image is built here, but what it names has to be there.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::files::{read, root};

/// The instructions of the Dockerfile, each on one line.
fn instructions() -> Vec<String> {
    let text = read("deploy/Dockerfile").replace("\\\n", "");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(str::to_owned).collect()
}

/// The words of every COPY from the checkout, or from the stage that builds.
fn copied(from_build: bool) -> Vec<Vec<String>> {
    let lines = instructions();
    let copies = lines.iter().filter_map(|line| line.strip_prefix("COPY "));
    let words = copies.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    words.filter(|words| words[0].starts_with("--from=build") == from_build).collect()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names of the binaries that are not for development.
fn binaries(metadata: &Value) -> BTreeSet<String> {
    let packages = metadata["packages"].as_array().unwrap().iter();
    let products = packages.filter(|it| !["portolan-tests", "xtask"].contains(&it["name"].as_str().unwrap()));
    let targets = products.flat_map(|package| package["targets"].as_array().unwrap());
    let binaries = targets.filter(|target| target["kind"][0] == "bin");
    binaries.map(|target| target["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_image_has_every_binary_and_starts_the_agents() {
    let binaries = binaries(&metadata());
    let built: Vec<String> =
        instructions().into_iter().filter(|line| line.contains("cargo build ")).collect();
    let [line] = &built[..] else { panic!("one build: {built:?}") };
    let words: Vec<&str> = line.split_whitespace().collect();
    let named = words.windows(2).filter(|pair| pair[0] == "--bin").map(|pair| pair[1].to_owned());
    assert_eq!(named.collect::<BTreeSet<_>>(), binaries);
    for word in ["--release", "--locked"] {
        assert!(words.contains(&word), "{line}");
    }

    let [copy] = &copied(true)[..] else { panic!("one COPY of what was built") };
    let [_, sources @ .., to] = &copy[..] else { unreachable!() };
    let expected = binaries.iter().map(|name| format!("/src/target/release/{name}"));
    assert_eq!(sources.iter().cloned().collect::<BTreeSet<_>>(), expected.collect());
    let start = format!("ENTRYPOINT [\"{to}portolan\"]");
    assert!(instructions().contains(&start), "{start}");
}

#[test]
fn what_the_build_reads_is_copied_and_not_ignored() {
    let sources: BTreeSet<String> = copied(false)
        .into_iter()
        .flat_map(|mut words| {
            words.pop();
            words
        })
        .collect();
    for source in &sources {
        assert!(root().join(source).exists(), "COPY {source}: not there");
    }
    let metadata = metadata();
    let members =
        metadata["packages"].as_array().unwrap().iter().map(|it| it["manifest_path"].as_str().unwrap());
    let mut needed: BTreeSet<String> = members.map(first_part).collect();
    // Not a member; the build script of `dataplane/node` builds it.
    needed.extend(["ebpf", "Cargo.toml", "Cargo.lock", ".cargo"].map(str::to_owned));
    assert!(needed.is_subset(&sources), "missing: {:?}", needed.difference(&sources));

    let ignored = read(".dockerignore");
    for line in ignored.lines().filter(|line| !line.starts_with('#')) {
        assert!(!sources.contains(line), "{line} is copied and ignored");
    }
    for large in ["target", "ebpf/target", ".git"] {
        assert!(ignored.lines().any(|line| line == large), "{large} would be sent to the builder");
    }
}

/// The directory right below the root of the checkout that a file is in.
fn first_part(path: &str) -> String {
    let path = std::path::Path::new(path).canonicalize().unwrap();
    let below = path.strip_prefix(root()).unwrap();
    below.iter().next().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn the_image_is_built_by_the_compiler_of_the_workspace_and_bears_its_version() {
    let manifest = read("Cargo.toml");
    let version =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    let lines = instructions();
    let image = lines.iter().find_map(|line| line.strip_prefix("ARG BUILD_IMAGE=")).unwrap();
    assert!(image.starts_with(&format!("rust:{version}-")), "{image}: the workspace wants {version}");
    assert!(lines.contains(&concat!("ARG VERSION=", env!("CARGO_PKG_VERSION")).to_owned()));
    // The binaries need the C library of the release that they were built on.
    let base = lines.iter().find_map(|line| line.strip_prefix("ARG BASE_IMAGE=")).unwrap();
    assert!(image.ends_with("-bookworm") && base.starts_with("debian:12"), "{image}, {base}");
}
