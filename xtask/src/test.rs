//! `test`: set-up, build, then `cargo test` on the whole workspace or on one tier of it.
//!
//! A tier is the beginning of a test target's file name: `packet_*.rs`, `net_*.rs` and `vm_*.rs`. All else,
//! unit tests included, is of tier `host`.

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{build, cmd::Cmd, setup};

/// Which tests to run, and how.
#[derive(Args)]
pub(crate) struct Options {
    /// The tier to run
    #[arg(long, value_enum, default_value = "all")]
    tier: Tier,
    /// One test at a time in each suite, for reading the output of a suite in order
    #[arg(long)]
    serial: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Further arguments of the test binaries, such as --nocapture
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Pure code and files; runs anywhere
    Host,
    /// Single packets through the loaded programs
    Packet,
    /// Sockets and real tools in network namespaces
    Net,
    /// Debian's 6.1 kernel in a virtual machine
    Vm,
    All,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run()?;
    setup::for_tests()?;
    // Before the build, which may put another file in its place.
    let own = std::env::current_exe().context("finding the path of this program")?;
    // Binaries that tests start are not all dependencies of those tests.
    build::workspace(false)?;
    let selection = selection(options.tier)?;
    Cmd::cargo("test --workspace --no-fail-fast")
        .args(selection)
        .args(&options.filter)
        .args(test_arguments(options))
        // Tests that start a virtual machine ask this program for it.
        .env("PORTOLAN_XTASK", own)
        .run()?;
    if matches!(options.tier, Tier::Net | Tier::All) { with_sockets(options) } else { Ok(()) }
}

/// Suites that run a second time with every agent balancing sockets: services must not differ.
const WITH_SOCKETS: [&str; 12] = [
    "net_departed",
    "net_endpoints",
    "net_hostport",
    "net_lifecycle",
    "net_matrix",
    "net_mtu",
    "net_policies",
    "net_rollout",
    "net_service_kinds",
    "net_services",
    "net_system",
    "net_udp",
];

fn with_sockets(options: &Options) -> Result<()> {
    Cmd::cargo("test --workspace --no-fail-fast")
        .args(WITH_SOCKETS.into_iter().flat_map(|suite| ["--test", suite]))
        .args(&options.filter)
        .args(test_arguments(options))
        .env("PORTOLAN_TEST_SOCKETS", "1")
        .run()
}

/// The arguments that make cargo run only the targets of `tier`.
fn selection(tier: Tier) -> Result<Vec<String>> {
    if tier == Tier::All {
        return Ok(Vec::new());
    }
    let metadata = Cmd::cargo("metadata --format-version 1 --no-deps").read()?;
    let metadata = serde_json::from_str(&metadata).context("parsing the output of cargo metadata")?;
    let targets = test_targets(&metadata);
    let chosen: Vec<String> = targets.into_iter().filter(|target| tier_of(target) == tier).collect();
    if chosen.is_empty() && tier != Tier::Host {
        bail!("no test target of this tier: their names begin with packet_, net_ or vm_");
    }
    let units = (tier == Tier::Host).then(|| ["--lib", "--bins"].map(str::to_owned));
    let targets = chosen.into_iter().flat_map(|target| ["--test".to_owned(), target]);
    Ok(units.into_iter().flatten().chain(targets).collect())
}

/// The names of all integration test targets in the output of `cargo metadata --no-deps`.
fn test_targets(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    targets
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect()
}

fn tier_of(target: &str) -> Tier {
    match target.split('_').next() {
        Some("packet") => Tier::Packet,
        Some("net") => Tier::Net,
        Some("vm") => Tier::Vm,
        _ => Tier::Host,
    }
}

/// What follows `--` on cargo's command line.
fn test_arguments(options: &Options) -> Vec<String> {
    let serial = options.serial.then(|| "--test-threads=1".to_owned());
    let arguments: Vec<String> = serial.into_iter().chain(options.arguments.iter().cloned()).collect();
    match arguments.is_empty() {
        true => Vec::new(),
        false => std::iter::once("--".to_owned()).chain(arguments).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_target_belongs_to_the_tier_its_name_begins_with() {
        assert!(tier_of("packet_golden") == Tier::Packet);
        assert!(tier_of("net") == Tier::Net);
        assert!(tier_of("vm_old_kernel") == Tier::Vm);
        assert!(tier_of("network_policy") == Tier::Host);
    }

    #[test]
    fn only_integration_tests_are_targets_by_name() {
        let target = |kind, name| json!({"kind": [kind], "name": name});
        let package = json!({"targets": [target("lib", "portolan"), target("test", "net_services")]});
        assert_eq!(test_targets(&json!({"packages": [package]})), ["net_services"]);
    }

    #[test]
    fn serial_and_further_arguments_reach_the_test_binaries() {
        let options = |serial, arguments: &[&str]| Options {
            tier: Tier::All,
            serial,
            filter: None,
            arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
        };
        assert_eq!(
            test_arguments(&options(true, &["--nocapture"])),
            ["--", "--test-threads=1", "--nocapture"]
        );
        assert!(test_arguments(&options(false, &[])).is_empty());
    }
}
