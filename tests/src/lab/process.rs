//! Running commands and waiting for things.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Runs a command; its standard output. The error names the command and what it said.
///
/// # Errors
/// It cannot be started, or does not exit with 0.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}{}", output.status, said.trim(), text.trim());
    }
    Ok(text)
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// There is none before the deadline; `what` says what was waited for.
pub fn poll<T>(deadline: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A binary of the workspace, from the directory that this process's own binary is in.
///
/// # Errors
/// It has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this process's binary")?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("the binary {name} is not built: run `cargo build` first"))
}
