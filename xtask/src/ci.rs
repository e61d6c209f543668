//! `ci`: everything that has to be green, timed; green here is green everywhere.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{build, cmd::Cmd, edges, object, paths, setup};

/// How a step ended, other than by an error.
enum Outcome {
    Passed,
    /// Not run, and why.
    Skipped(&'static str),
}

use Outcome::{Passed, Skipped};

type Step = (&'static str, fn() -> Result<Outcome>);

const STEPS: &[Step] = &[
    ("dependency edges", || edges::run().map(|()| Passed)),
    ("format", || Cmd::cargo("fmt --all --check").run().map(|()| Passed)),
    ("format of ebpf/", format_ebpf),
    ("lints", || Cmd::cargo("clippy --workspace --all-targets -- -D warnings").run().map(|()| Passed)),
    ("lints of ebpf/", lint_ebpf),
    ("object", || object::check(false).map(|()| Passed)),
    // The command that the README gives.
    ("tests", || Cmd::cargo("xtask test").run().map(|()| Passed)),
];

/// Runs every step, also after one failed: one run tells all that is wrong.
pub(crate) fn run() -> Result<()> {
    let begin = Instant::now();
    setup::run()?;
    let mut report = vec![line("set-up", begin.elapsed(), &Ok(Passed))];
    let mut failed = Vec::new();
    for &(name, step) in STEPS {
        eprintln!("\n== {name}");
        let begin = Instant::now();
        let outcome = step();
        report.push(line(name, begin.elapsed(), &outcome));
        if let Err(error) = outcome {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    }
    report.push(format!("{:<18} {:>6.1} s", "all", begin.elapsed().as_secs_f64()));
    eprintln!("\n{}", report.join("\n"));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn format_ebpf() -> Result<Outcome> {
    Cmd::new("cargo").args(["fmt", "--check"]).directory(paths::ebpf()).run()?;
    Ok(Passed)
}

fn lint_ebpf() -> Result<Outcome> {
    let (_, version) =
        Cmd::new("rustup").args(["run", setup::TOOLCHAIN, "cargo-clippy", "--version"]).output()?;
    if !version.status.success() {
        return Ok(Skipped("the eBPF toolchain has no clippy"));
    }
    build::ebpf_cargo("clippy").args(["--", "-D", "warnings"]).run()?;
    Ok(Passed)
}

fn line(name: &str, took: Duration, outcome: &Result<Outcome>) -> String {
    let outcome = match outcome {
        Ok(Passed) => "ok".to_owned(),
        Ok(Skipped(why)) => format!("SKIPPED: {why}"),
        Err(_) => "FAILED".to_owned(),
    };
    format!("{name:<18} {:>6.1} s  {outcome}", took.as_secs_f64())
}
