//! docs/benchmarks.md: one part for each section, replaced when it is measured again.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::report::Section;

/// What the file starts with when it is made.
const HEAD: &str = "# Benchmarks\n\n\
    Written by `cargo xtask bench --write`; `cargo xtask bench [packet|scale|net|cni] [--quick]` measures again.\n\
    Numbers of different machines do not compare, ratios do: what is named in the column \"beside\" was measured\n\
    in the same run, in turns. A goal counts for the median unless it says p99.\n";

/// Puts a section's results in the place of its old ones.
pub(crate) fn write(section: &Section) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
    let old = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => HEAD.to_owned(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let new = replace(&old, section.name, &part(section));
    std::fs::write(&path, new).with_context(|| format!("writing {}", path.display()))
}

fn part(section: &Section) -> String {
    format!("## {}\n\n{}\n\n{}\n\n{}", section.title, machine(), section.how, section.table())
}

fn replace(text: &str, name: &str, part: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
    let fresh = format!("{begin}{part}{end}");
    let Some((before, rest)) = text.split_once(&begin) else { return format!("{text}\n{fresh}") };
    let after = rest.split_once(&end).map_or("", |(_, after)| after);
    format!("{before}{fresh}{after}")
}

/// Where and when: kernel, processor, date, and how busy the machine was besides.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(": ")).map_or("unknown processor", |(_, name)| name);
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    let date = date.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().nth(1).unwrap_or("unknown");
    format!(
        "{}: Linux {}, {count} × {model}; load average of the last five minutes, this run included: {load}.",
        date.trim(),
        kernel.trim()
    )
}
