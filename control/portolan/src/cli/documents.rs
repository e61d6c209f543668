//! What documents for operators say exists.

use std::collections::BTreeSet;

use clap::CommandFactory;
use portolan_plan::Reason;

use super::Arguments;

const OPERATIONS: &str = include_str!("../../../../docs/operations.md");
const README: &str = include_str!("../../../../README.md");

/// Flags of other programs that these documents name, and whose they are.
const OTHERS: [(&str, &str); 9] = [
    ("--allocate-node-cidrs", "kube-controller-manager"),
    ("--delete-emptydir-data", "kubectl drain"),
    ("--ignore-daemonsets", "kubectl drain"),
    ("--keep", "cargo xtask demo"),
    ("--release", "cargo build"),
    ("--service-cluster-ip-range", "kube-apiserver"),
    ("--service-node-port-range", "kube-apiserver"),
    ("--set", "helm install"),
    ("--tier", "cargo xtask test"),
];

/// Long flags in a text.
fn flags(text: &str) -> BTreeSet<&str> {
    let is_part =
        |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-';
    let words = text.split(|character| !is_part(character));
    words.filter(|word| word.starts_with("--") && word.len() > 3 && !word.starts_with("---")).collect()
}

/// Long flags of a command; of those below it as well, if there are any.
fn known(command: &clap::Command) -> BTreeSet<String> {
    let own =
        command.get_arguments().filter_map(|argument| argument.get_long()).map(|long| format!("--{long}"));
    own.chain(command.get_subcommands().flat_map(known)).collect()
}

fn command() -> clap::Command {
    let mut command = Arguments::command();
    command.build();
    command
}

#[test]
fn flags_are_found_in_a_text() {
    let text = "`portolan agent --node-name=$(NAME) --mtu 9000`, not -- or --- ([--socket-cgroup])";
    assert_eq!(flags(text), ["--mtu", "--node-name", "--socket-cgroup"].into());
}

#[test]
fn every_flag_that_documents_name_exists() {
    let known = known(&command());
    let others: BTreeSet<&str> = OTHERS.iter().map(|(flag, _)| *flag).collect();
    for (name, text) in [("docs/operations.md", OPERATIONS), ("README.md", README)] {
        let unknown: Vec<_> =
            flags(text).into_iter().filter(|flag| !known.contains(*flag) && !others.contains(flag)).collect();
        assert!(unknown.is_empty(), "{name} names flags that no command has: {unknown:?}");
    }
    let named = flags(OPERATIONS).union(&flags(README)).copied().collect::<BTreeSet<_>>();
    let stale: Vec<_> = others.difference(&named).collect();
    assert!(stale.is_empty(), "nobody names these flags of others any more: {stale:?}");
}

/// Command lines that begin with `portolan`, from code spans and blocks.
fn command_lines(text: &str) -> Vec<&str> {
    let lines = text.lines().flat_map(|line| line.split('`'));
    let lines = lines.map(|line| line.split(" #").next().unwrap_or(line).trim());
    let own = |line: &&str| {
        line.split(' ').next().is_some_and(|word| word == "portolan" || word.ends_with("/portolan"))
    };
    lines.filter(|line| own(line) && line.contains(' ')).collect()
}

#[test]
fn every_command_line_in_documents_has_a_command_with_those_flags() {
    let root = command();
    for line in command_lines(OPERATIONS).into_iter().chain(command_lines(README)) {
        let mut command = &root;
        for word in line.split(' ').skip(1).take_while(|word| word.chars().all(|it| it.is_ascii_lowercase()))
        {
            match command.find_subcommand(word) {
                Some(found) => command = found,
                None => break,
            }
        }
        assert!(!command.has_subcommands(), "no such command: {line:?}");
        let known = known(command);
        for flag in flags(line) {
            assert!(known.contains(flag), "{} has no {flag}: {line:?}", command.get_name());
        }
    }
}

#[test]
fn every_flag_of_the_agent_is_explained_to_operators() {
    let root = command();
    let agent = root.find_subcommand("agent").unwrap();
    let named = flags(OPERATIONS);
    let common = ["--help", "--version"];
    let missing: Vec<_> =
        known(agent).into_iter().filter(|it| !named.contains(&**it) && !common.contains(&&**it)).collect();
    assert!(missing.is_empty(), "docs/operations.md says nothing of {missing:?}");
}

#[test]
fn every_condition_of_a_service_is_explained_to_operators() {
    use Reason::{
        AddressConflict, ExternalIpsOff, FamilyNotServed, HostPort, LeftToProxy, NoClusterIp, NobodyAdmitted,
        NodeAddress, NodePortRange, PodAddress,
    };
    // A reason that is not in the list makes this match incomplete.
    let listed = |reason: Reason| match reason {
        AddressConflict | NodeAddress | PodAddress | NodePortRange | NoClusterIp => reason.as_str(),
        NobodyAdmitted | ExternalIpsOff | FamilyNotServed | LeftToProxy | HostPort => reason.as_str(),
    };
    let reasons = [
        AddressConflict,
        NodeAddress,
        PodAddress,
        NodePortRange,
        NoClusterIp,
        NobodyAdmitted,
        ExternalIpsOff,
        FamilyNotServed,
        LeftToProxy,
        HostPort,
    ];
    for reason in reasons.map(listed).into_iter().chain(["TableFull", "HealthCheckPort"]) {
        assert!(OPERATIONS.contains(&format!("| `{reason}` |")), "{reason}");
    }
    let of_pools = [
        "NoPool",
        "PoolsExhausted",
        "RequestRefused",
        "RequestUnreadable",
        "NoFamily",
        "DocumentUnreadable",
        "NotInAPool",
        "NotSelected",
        "Reserved",
        "SharingConflict",
        "Overlap",
        "AllInUse",
    ];
    for reason in of_pools {
        assert!(OPERATIONS.contains(&format!("`{reason}`")), "{reason}");
    }
}
