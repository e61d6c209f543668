//! Loading the object into this kernel, and what the verifier says about each program.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cmd::{Cmd, find_program},
    paths,
};

/// Mounts a bpffs at $1 and pins the programs of $2 in it. The mount namespace, which is the shell's own, goes
/// with it however it ends, and with the namespace the bpffs and every pin.
const LOAD: &str = r#"mount -t bpf bpf "$1" && exec "$3" -d prog loadall "$2" "$1/programs""#;

/// Lines of a failed load to show: the verifier says last what it refused.
const TAIL: usize = 60;

/// Linux 6.1 counts the stack of each function in units of as many bytes.
const UNIT: u64 = 32;

/// What the verifier found out about a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) instructions: u64,
    /// Bytes, of the program and of each function it calls.
    pub(super) stack: Vec<u64>,
}

impl Verified {
    /// Bytes of the longest call chain: the program and the deepest function it calls, none of which may call
    /// another (`object::defects` sees to that).
    pub(super) fn stack(&self) -> u64 {
        let (program, called) = self.stack.split_first().unwrap_or((&0, &[]));
        let counted = |depth: &u64| depth.next_multiple_of(UNIT);
        counted(program) + counted(called.iter().max().unwrap_or(&0))
    }
}

/// Loads every program of `object` and unloads it again.
pub(super) fn load(object: &Path) -> Result<BTreeMap<String, Verified>> {
    let bpftool = find_program("bpftool").context("bpftool is missing: run `cargo xtask setup`")?;
    let place = paths::ebpf_target().join("bpffs");
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    let load =
        Cmd::new("unshare").args(["--mount", "sh", "-c", LOAD, "load"]).arg(place).arg(object).arg(bpftool);
    eprintln!("+ {load}");
    let (shown, output) = load.output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let lines: Vec<&str> = log.lines().collect();
        bail!(
            "`{shown}` failed ({}):\n{}",
            output.status,
            lines[lines.len().saturating_sub(TAIL)..].join("\n")
        );
    }
    parse(&log)
}

/// Reads what bpftool prints with `-d`: libbpf's own lines and, between two marks, the verifier's log of each
/// program.
fn parse(log: &str) -> Result<BTreeMap<String, Verified>> {
    let mut found = BTreeMap::new();
    let mut lines = log.lines();
    while let Some(line) = lines.next() {
        let Some(program) = begun(line) else { continue };
        let of_program = lines.by_ref().take_while(|line| !line.contains("-- END PROG LOAD LOG --"));
        let verified = parse_program(of_program).with_context(|| format!("reading the log of {program}"))?;
        found.insert(program.to_owned(), verified);
    }
    ensure!(!found.is_empty(), "bpftool printed no verifier log");
    Ok(found)
}

/// The program whose log begins at `line`.
fn begun(line: &str) -> Option<&str> {
    line.strip_prefix("libbpf: prog '")?.strip_suffix("': -- BEGIN PROG LOAD LOG --")
}

fn parse_program<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Verified> {
    let (mut instructions, mut stack) = (None, None);
    for line in lines {
        if let Some(rest) = line.strip_prefix("processed ") {
            instructions = rest.split(' ').next().and_then(|count| count.parse().ok());
        } else if let Some(rest) = line.strip_prefix("stack depth ") {
            stack = rest.split('+').map(|depth| depth.trim().parse().ok()).collect();
        }
    }
    Ok(Verified {
        instructions: instructions.context("no line `processed N insns`")?,
        stack: stack.context("no line `stack depth N`")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shortened from what bpftool 7.1 printed on kernel 6.18.
    const LOG: &str = "\
libbpf: loading object 'portolan-ebpf' from \"portolan-ebpf\"
libbpf: prog 'from_pod': -- BEGIN PROG LOAD LOG --
func#0 @0
0: R1=ctx() R10=fp0
0: (b7) r0 = 2                        ; R0_w=2
processed 1080 insns (limit 1000000) max_states_per_insn 4 total_states 70 peak_states 70 mark_read 10
verification time 1216 usec
stack depth 64+336+200
processed 1080 insns (limit 1000000) max_states_per_insn 4 total_states 70 peak_states 70 mark_read 10
-- END PROG LOAD LOG --
libbpf: prog 'to_pod': -- BEGIN PROG LOAD LOG --
stack depth 0
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: pinned '/sys/fs/bpf/x/from_pod'
";

    #[test]
    fn instructions_and_stack_are_read_for_each_program() {
        let found = parse(LOG).unwrap();
        assert_eq!(found["from_pod"], Verified { instructions: 1080, stack: vec![64, 336, 200] });
        assert_eq!(found["from_pod"].stack(), 64 + 352);
        assert_eq!(found["to_pod"], Verified { instructions: 2, stack: vec![0] });
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_log_without_figures_is_an_error_and_not_a_pass() {
        let cut = LOG.replace("stack depth 0\n", "");
        assert_eq!(parse(&cut).unwrap_err().to_string(), "reading the log of to_pod");
        assert!(parse("libbpf: loading object\n").is_err());
    }
}
