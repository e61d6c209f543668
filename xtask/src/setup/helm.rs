//! Helm's own engine, as a library, for the test of the chart.
//!
//! Debian has no package of Helm. The Python package contains Helm's Go library (4.2), which loads, lints and renders charts
//! as the command does. The file's hash is pinned. Only the test loads it, and without a network.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{cmd::Cmd, paths};

/// What pip is told to install: one line, with its hash.
const REQUIREMENTS: &str = "xtask/src/setup/helm.txt";

/// Installs it below the directory of build results, where the test looks for it.
pub(super) fn ensure() -> Result<()> {
    let place = paths::target().join("helm");
    let record = place.join(record_of(include_str!("helm.txt")).context("reading helm.txt")?);
    if record.is_dir() {
        return Ok(());
    }
    Cmd::new("pip3")
        .args(["install", "--quiet", "--disable-pip-version-check", "--root-user-action", "ignore"])
        .args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "--upgrade", "--requirement"])
        .arg(paths::root().join(REQUIREMENTS))
        .arg("--target")
        .arg(&place)
        .run()
        .context("Helm's engine for the test of the chart could not be installed")?;
    if !Path::new(&record).is_dir() {
        bail!("{} is not there after pip installed {REQUIREMENTS}", record.display());
    }
    Ok(())
}

/// The directory that pip leaves beside an installed package of this version.
fn record_of(requirement: &str) -> Option<String> {
    let (name, version) = requirement.split_whitespace().next()?.split_once("==")?;
    Some(format!("{}-{version}.dist-info", name.replace('-', "_")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_installed_anew() {
        assert_eq!(record_of("a-b-c==1.2.3 --hash=sha256:00\n").as_deref(), Some("a_b_c-1.2.3.dist-info"));
        assert_eq!(record_of("a-b-c\n"), None);
    }
}
