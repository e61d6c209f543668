//! `check-object`: what can be known about the eBPF object before a packet reaches it.
//!
//! - Nothing can panic.
//! - Everything is inlined into its program but for the functions listed here, and nothing copies memory byte
//!   by byte.
//! - Every program passes this kernel's verifier with stack to spare and no more work than recorded.

mod elf;
mod verifier;

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{build, paths, setup};
use elf::Contents;
use verifier::Verified;

/// The steps of a decision, which stay functions on purpose: global ones, which the verifier looks at once each, for whatever
/// arguments their types allow.
///
/// The kernel's 512 bytes of stack do not hold both families and all steps of a decision at once, so each step has a
/// frame of its own; they are called one after the other and never call each other.
const STEPS: &[&str] = &[
    "short",
    "known",
    "mend",
    "new",
    "open",
    "depart",
    "echo",
    "error",
    "other",
    "later",
    "stray",
    "note",
    "note_fate",
    "first",
    "mend_first",
    "new_first",
    "open_first",
    "depart_first",
    "wait",
    "release",
    "refuse",
    "unpack",
    "pack",
    "complain",
];

/// Prefixes of the steps' names: there is one for each family.
const FAMILIES: [&str; 2] = ["v4_", "v6_"];

/// Functions of the trace and of the overlay, which stay functions for the same reason.
const OTHERS: &[&str] = &["overlay_admit", "portolan_ebpf::trace::remember", "portolan_ebpf::trace::show"];

/// Functions of the flow tables, which every step may call. They are global to the verifier, and need little stack.
const LEAVES: &[&str] =
    &["find_slot_v4", "find_slot_v6", "choose_slot_v4", "choose_slot_v6", "write_slot_v4", "write_slot_v6"];

/// What the compiler's runtime always leaves in the object. Harmless as long as nobody calls it.
const RUNTIME: &[&str] = &["memcpy", "memmove", "memset"];

/// Sections of entry points, as aya names them: the whole name, or what comes before its first `/`.
const PROGRAM_SECTIONS: &[&str] = &[
    "cgroup",
    "cgroup_skb",
    "classifier",
    "fentry",
    "fexit",
    "iter",
    "sk_lookup",
    "sockops",
    "tc",
    "xdp",
    "xdp.frags",
];

/// Bytes of stack that the kernel counts for the leaf that the deepest steps call; Linux 6.1 counts in units of as many.
const LEAF_STACK: u64 = 32;

/// Bytes of stack that a program and what it calls may use: the kernel's own limit. ICMP errors over IPv6 take all of it.
const MAX_STACK: u64 = 512;

/// By how much the verified instructions may exceed the recorded ones, in percent.
const MAX_GROWTH: u64 = 10;

/// How to check.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the verified instructions to docs/verifier.json instead of comparing with it
    #[arg(long)]
    record: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run()?;
    check(options.record)
}

/// Builds the object and checks it.
pub(crate) fn check(record: bool) -> Result<()> {
    build::ebpf()?;
    let object = paths::ebpf_object();
    let bytes = fs::read(&object).with_context(|| format!("reading {}", object.display()))?;
    let contents = Contents::parse(&bytes).with_context(|| format!("parsing {}", object.display()))?;
    let mut problems = contents_problems(&contents);
    // What is wrong with the file is often why it does not load: both are told.
    let verified = match verifier::load(&object) {
        Ok(verified) => verified,
        Err(error) => {
            problems.push(format!("{error:#}"));
            return fail_on(&problems);
        }
    };
    let recorded = if record { instructions(&verified) } else { read_record()? };
    println!("{}", table(&verified, &recorded));
    problems.extend(unseen(&contents, &verified));
    problems.extend(verified.iter().filter_map(|(program, verified)| stack_problem(program, verified)));
    problems.extend(growth_problems(&instructions(&verified), &recorded));
    fail_on(&problems)?;
    if record { write_record(&recorded) } else { Ok(()) }
}

fn fail_on(problems: &[String]) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    bail!("the eBPF object is not fit:\n  {}", problems.join("\n  "))
}

/// What the file itself tells, a line for each finding.
fn contents_problems(contents: &Contents) -> Vec<String> {
    let panics = contents.symbols.iter().filter(|name| name.contains("panicking"));
    let panics = panics.map(|name| format!("{name}: something can panic; find the index or the arithmetic"));
    let functions = contents
        .functions
        .iter()
        .filter(|f| !is_program(&f.section) && !is_listed(&f.name) && !f.name.contains("panicking"));
    let functions = functions.map(|function| {
        format!(
            "{} was not inlined (section {}): mark it #[inline(always)], \
             or list it in STEPS in xtask/src/object.rs if it is outlined on purpose",
            function.name, function.section
        )
    });
    let calls = contents.calls.iter().filter(|call| is_runtime(&call.to) && !is_runtime(&call.from));
    let calls = calls.map(|call| format!("{} calls {}: copy words, not bytes", call.from, call.to));
    let nested = contents.calls.iter().filter(|call| {
        is_subprogram(&call.to) && (is_subprogram(&call.from) || is_leaf(&call.from))
            || is_leaf(&call.to) && is_leaf(&call.from)
    });
    let nested = nested.map(|call| {
        format!("{} calls {}: their stacks add up; call one after the other", call.from, call.to)
    });
    panics.chain(functions).chain(calls).chain(nested).collect()
}

fn is_program(section: &str) -> bool {
    PROGRAM_SECTIONS.contains(&section.split('/').next().unwrap_or_default())
}

fn is_runtime(function: &str) -> bool {
    RUNTIME.contains(&function)
}

fn is_subprogram(function: &str) -> bool {
    let step = FAMILIES.iter().find_map(|family| function.strip_prefix(family));
    step.is_some_and(|step| STEPS.contains(&step)) || OTHERS.contains(&function)
}

fn is_leaf(function: &str) -> bool {
    LEAVES.contains(&function)
}

fn is_listed(function: &str) -> bool {
    is_runtime(function) || is_subprogram(function) || is_leaf(function)
}

/// Programs of the object that the verifier's log does not tell of: they would pass unchecked.
fn unseen(contents: &Contents, verified: &BTreeMap<String, Verified>) -> Vec<String> {
    let programs = contents.functions.iter().filter(|function| is_program(&function.section));
    let unseen = programs.filter(|program| !verified.contains_key(&program.name));
    unseen.map(|program| format!("{}: the verifier's log has no figures for it", program.name)).collect()
}

fn stack_problem(program: &str, verified: &Verified) -> Option<String> {
    let used = verified.stack() + LEAF_STACK;
    (used > MAX_STACK).then(|| format!("{program} uses {used} bytes of stack, more than {MAX_STACK}"))
}

/// Compares instructions, program by program; both maps must name the same programs.
fn growth_problems(now: &BTreeMap<String, u64>, recorded: &BTreeMap<String, u64>) -> Vec<String> {
    const HOW: &str = "run `cargo xtask check-object --record` and commit docs/verifier.json";
    let gone = recorded.keys().filter(|program| !now.contains_key(*program));
    let gone = gone.map(|program| format!("{program} is recorded but gone: {HOW}"));
    let grown = now.iter().filter_map(|(program, &now)| match recorded.get(program) {
        None => Some(format!("{program} is not recorded: {HOW}")),
        Some(&then) if now * 100 > then * (100 + MAX_GROWTH) => Some(format!(
            "{program} grew from {then} to {now} verified instructions, more than {MAX_GROWTH} %: \
             make it smaller, or {HOW}"
        )),
        Some(_) => None,
    });
    gone.chain(grown).collect()
}

fn instructions(verified: &BTreeMap<String, Verified>) -> BTreeMap<String, u64> {
    verified.iter().map(|(program, verified)| (program.clone(), verified.instructions)).collect()
}

fn table(verified: &BTreeMap<String, Verified>, recorded: &BTreeMap<String, u64>) -> String {
    let width = verified.keys().map(String::len).max().unwrap_or_default().max("program".len());
    let head = format!("{:<width$} {:>12} {:>9} {:>6}", "program", "instructions", "recorded", "stack");
    let rows = verified.iter().map(|(program, verified)| {
        let recorded = recorded.get(program).map_or("-".to_owned(), u64::to_string);
        format!("{program:<width$} {:>12} {recorded:>9} {:>6}", verified.instructions, verified.stack())
    });
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}

fn record_path() -> PathBuf {
    paths::root().join("docs/verifier.json")
}

/// Program → verified instructions; empty when nothing was recorded yet.
fn read_record() -> Result<BTreeMap<String, u64>> {
    let path = record_path();
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        result => result.with_context(|| format!("reading {}", path.display()))?,
    };
    let record: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("parsing {}", path.display()))?;
    let entries = record.as_object().with_context(|| format!("{} is no object", path.display()))?;
    let entry = |(program, count): (&String, &serde_json::Value)| {
        let count =
            count.as_u64().with_context(|| format!("{program} in {} is no number", path.display()))?;
        Ok((program.clone(), count))
    };
    entries.iter().map(entry).collect()
}

fn write_record(record: &BTreeMap<String, u64>) -> Result<()> {
    let path = record_path();
    let text = serde_json::to_string_pretty(record).context("formatting the record")? + "\n";
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("recorded in {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        elf::{Call, Function},
        *,
    };

    fn function(name: &str, section: &str) -> Function {
        Function { name: name.to_owned(), section: section.to_owned() }
    }

    fn call(from: &str, to: &str) -> Call {
        Call { from: from.to_owned(), to: to.to_owned() }
    }

    fn fit() -> Contents {
        Contents {
            symbols: vec!["from_pod".to_owned(), "memcpy".to_owned(), "FLOW4".to_owned()],
            functions: vec![function("from_pod", "classifier"), function("memcpy", ".text")],
            calls: vec![call("memmove", "memcpy")],
        }
    }

    fn counts(entries: &[(&str, u64)]) -> BTreeMap<String, u64> {
        entries.iter().map(|&(name, count)| (name.to_owned(), count)).collect()
    }

    #[test]
    fn programs_and_the_uncalled_runtime_pass() {
        assert!(contents_problems(&fit()).is_empty());
    }

    #[test]
    fn a_panic_is_found_by_its_symbol() {
        let mut contents = fit();
        contents.symbols.push("core::panicking::panic_bounds_check".to_owned());
        assert_eq!(contents_problems(&contents).len(), 1);
    }

    #[test]
    fn a_function_that_was_not_inlined_is_found() {
        let mut contents = fit();
        contents.functions.push(function("portolan_core::decide", ".text"));
        let problems = contents_problems(&contents);
        assert!(
            problems[0].starts_with("portolan_core::decide was not inlined (section .text)"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_program_that_calls_the_runtime_is_found() {
        let mut contents = fit();
        contents.calls.push(call("from_pod", "memset"));
        assert_eq!(contents_problems(&contents), ["from_pod calls memset: copy words, not bytes"]);
    }

    #[test]
    fn sections_of_entry_points_are_told_by_their_beginning() {
        assert!(is_program("cgroup/connect4"));
        assert!(is_program("xdp"));
        assert!(!is_program(".text"));
        assert!(!is_program("classifiers"));
    }

    #[test]
    fn a_program_without_figures_is_found() {
        assert_eq!(unseen(&fit(), &BTreeMap::new()), ["from_pod: the verifier's log has no figures for it"]);
    }

    #[test]
    fn ten_percent_more_instructions_pass_and_one_more_fails() {
        let recorded = counts(&[("from_pod", 1000)]);
        assert!(growth_problems(&counts(&[("from_pod", 1100)]), &recorded).is_empty());
        assert_eq!(growth_problems(&counts(&[("from_pod", 1101)]), &recorded).len(), 1);
    }

    #[test]
    fn the_record_names_exactly_the_programs_there_are() {
        let problems = growth_problems(&counts(&[("new", 1)]), &counts(&[("old", 1)]));
        assert!(problems[0].starts_with("old is recorded but gone"), "{problems:?}");
        assert!(problems[1].starts_with("new is not recorded"), "{problems:?}");
    }

    #[test]
    fn the_stack_of_a_call_chain_counts_as_a_whole() {
        let verified = |stack: &[u64]| Verified { instructions: 1, stack: stack.to_vec() };
        assert_eq!(stack_problem("from_pod", &verified(&[64, 400])), None);
        let problem = stack_problem("from_pod", &verified(&[65, 416]));
        assert_eq!(problem.as_deref(), Some("from_pod uses 544 bytes of stack, more than 512"));
    }
}
