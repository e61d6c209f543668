//! Which crate may depend on which: the architecture's list, checked against `cargo metadata`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cmd::Cmd, paths};

/// What a crate of the checkout may depend on, as normal, build or development dependency.
enum Allowed {
    Only(&'static [&'static str]),
    Anything,
}

use Allowed::{Anything, Only};

/// Every crate of the checkout. A new crate, like a new edge, is a decision about the architecture: it is
/// made here and in ARCHITECTURE.md.
const EDGES: &[(&str, Allowed)] = &[
    ("portolan-abi", Only(&[])),
    ("portolan-core", Only(&["portolan-abi"])),
    ("portolan-ebpf", Only(&["portolan-abi", "portolan-core"])),
    ("portolan-node", Only(&["portolan-abi", "portolan-core"])),
    ("portolan-model", Only(&[])),
    ("portolan-source", Only(&["portolan-model"])),
    ("portolan-kubernetes", Only(&["portolan-model", "portolan-source"])),
    ("portolan-plan", Only(&["portolan-model"])),
    (
        "portolan-apply",
        Only(&["portolan-abi", "portolan-core", "portolan-model", "portolan-node", "portolan-plan"]),
    ),
    ("portolan-ipam", Only(&[])),
    ("portolan-cni", Only(&["portolan-ipam"])),
    ("portolan-bgp", Only(&[])),
    ("portolan-pool", Only(&["portolan-model"])),
    ("portolan-l2", Only(&[])),
    (
        "portolan",
        Only(&[
            "portolan-abi",
            "portolan-apply",
            "portolan-bgp",
            "portolan-cni",
            "portolan-core",
            "portolan-ipam",
            "portolan-kubernetes",
            "portolan-l2",
            "portolan-model",
            "portolan-node",
            "portolan-plan",
            "portolan-pool",
            "portolan-source",
        ]),
    ),
    ("portolan-tests", Anything),
    ("xtask", Only(&[])),
];

/// Crates that touch the kernel (a trailing `*` stands for any ending), which only these may name directly.
const KERNEL_CRATES: &[&str] = &["aya", "rtnetlink", "netlink-*"];
/// `portolan-abi` names aya for its feature `user` only: one marker trait on its types.
const KERNEL_USERS: &[&str] = &["portolan-abi", "portolan-node", "portolan-tests"];

pub(crate) fn run() -> Result<()> {
    let mut dependencies = read("Cargo.toml")?;
    if paths::ebpf().join("Cargo.toml").is_file() {
        dependencies.extend(read("ebpf/Cargo.toml")?);
    }
    let violations = violations(&dependencies);
    if !violations.is_empty() {
        bail!(
            "{} not in the architecture:\n  {}\nRemove it, or, if the architecture changes, \
             list it in xtask/src/edges.rs and ARCHITECTURE.md",
            if violations.len() == 1 { "a dependency is" } else { "dependencies are" },
            violations.join("\n  ")
        );
    }
    eprintln!("{} direct dependencies, all as the architecture lists them", dependencies.len());
    Ok(())
}

/// One direct dependency of a crate of the checkout.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Dependency {
    from: String,
    to: String,
    /// `to` is a crate of the checkout.
    own: bool,
}

fn read(manifest: &str) -> Result<BTreeSet<Dependency>> {
    let metadata =
        Cmd::cargo("metadata --format-version 1 --no-deps --manifest-path").arg(manifest).read()?;
    let metadata = serde_json::from_str(&metadata).context("parsing the output of cargo metadata")?;
    parse(&metadata).with_context(|| format!("reading the dependencies in {manifest}"))
}

/// The direct dependencies of every package in `metadata`, the output of `cargo metadata --no-deps`.
/// A crate that has none is not in it; a path dependency is a crate of the checkout.
fn parse(metadata: &Value) -> Result<BTreeSet<Dependency>> {
    let mut found = BTreeSet::new();
    for package in array(metadata, "packages")? {
        let from = string(package, "name")?;
        for dependency in array(package, "dependencies")? {
            let own = dependency.get("path").is_some_and(Value::is_string);
            found.insert(Dependency { from: from.clone(), to: string(dependency, "name")?, own });
        }
    }
    Ok(found)
}

fn array<'a>(value: &'a Value, field: &str) -> Result<&'a Vec<Value>> {
    value[field].as_array().with_context(|| format!("cargo metadata has no list `{field}`"))
}

fn string(value: &Value, field: &str) -> Result<String> {
    let text = value[field].as_str().with_context(|| format!("cargo metadata has no text `{field}`"))?;
    Ok(text.to_owned())
}

/// Each violation as a line of text.
fn violations(dependencies: &BTreeSet<Dependency>) -> Vec<String> {
    dependencies.iter().filter_map(violation).collect()
}

fn violation(Dependency { from, to, own }: &Dependency) -> Option<String> {
    let Some((_, allowed)) = EDGES.iter().find(|(name, _)| name == from) else {
        return Some(format!("{from} -> {to} ({from} is not listed at all)"));
    };
    if is_kernel_crate(to) && !KERNEL_USERS.contains(&from.as_str()) {
        return Some(format!("{from} -> {to} (only {} may use it directly)", KERNEL_USERS.join(" and ")));
    }
    match allowed {
        // A crate's tests may name the crate itself, to have more of its features.
        Only(list) if *own && from != to && !list.contains(&to.as_str()) => Some(format!("{from} -> {to}")),
        _ => None,
    }
}

fn is_kernel_crate(name: &str) -> bool {
    KERNEL_CRATES.iter().any(|listed| match listed.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == *listed,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is said about one crate with one dependency.
    fn said(from: &str, to: &str, own: bool) -> Vec<String> {
        let path = own.then_some("/somewhere");
        let package = json!({"name": from, "dependencies": [{"name": to, "kind": "dev", "path": path}]});
        violations(&parse(&json!({"packages": [package]})).unwrap())
    }

    #[test]
    fn a_listed_edge_passes() {
        assert!(said("portolan-core", "portolan-abi", true).is_empty());
        assert!(said("portolan-tests", "portolan-apply", true).is_empty());
    }

    #[test]
    fn a_crate_may_name_itself() {
        assert!(said("portolan-cni", "portolan-cni", true).is_empty());
    }

    #[test]
    fn an_edge_that_is_not_listed_is_named() {
        assert_eq!(said("portolan-plan", "portolan-node", true), ["portolan-plan -> portolan-node"]);
        assert_eq!(said("xtask", "portolan-abi", true), ["xtask -> portolan-abi"]);
    }

    #[test]
    fn a_crate_that_is_not_listed_is_named() {
        let said = said("portolan-new", "serde", false);
        assert_eq!(said, ["portolan-new -> serde (portolan-new is not listed at all)"]);
    }

    #[test]
    fn only_the_node_and_the_tests_name_kernel_crates() {
        for kernel_crate in ["aya", "rtnetlink", "netlink-packet-route"] {
            assert_eq!(said("portolan-apply", kernel_crate, false).len(), 1, "{kernel_crate}");
            assert!(said("portolan-node", kernel_crate, false).is_empty(), "{kernel_crate}");
            assert!(said("portolan-tests", kernel_crate, false).is_empty(), "{kernel_crate}");
        }
        assert!(said("portolan-ebpf", "aya-ebpf", false).is_empty());
    }

    #[test]
    fn metadata_of_another_shape_is_an_error_and_not_an_empty_pass() {
        assert!(parse(&json!({})).is_err());
        assert!(parse(&json!({"packages": [{"name": "xtask"}]})).is_err());
    }
}
