//! Debian 12's kernel, the oldest that is supported: programs are attached by clsact there. Each test boots a
//! virtual machine without network.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use portolan_tests::lab::binary;
use serde_json::Value;

/// Another suite's binary, built now if it is not: a stale one would prove nothing.
fn suite(name: &str) -> Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--workspace", "--test", name, "--no-run", "--message-format=json"])
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("building suite {name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut executables = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let right = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| right).map(PathBuf::from)
    });
    executables.next_back().with_context(|| format!("cargo names no executable of suite {name}"))
}

/// Runs a program in the machine; what it printed, if it exited with 0.
fn machine(program: &Path, files: &[PathBuf], arguments: &[&str]) -> Result<String> {
    let xtask = std::env::var_os("PORTOLAN_XTASK").map_or_else(|| binary("xtask"), |path| Ok(path.into()))?;
    let mut command = Command::new(&xtask);
    // Two clusters of two agents, each of which has its programs verified by an emulated processor.
    command.args(["vm", "--deadline", "900", "--module", "bridge", "--binary"]).arg(program);
    for file in files {
        command.arg("--file").arg(file);
    }
    let output = command.arg("--").args(arguments).output();
    let output = output.with_context(|| format!("starting {} vm", xtask.display()))?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{} on the old kernel: {}\n{said}", program.display(), output.status);
    }
    Ok(said)
}

/// Runs a suite in the machine, with the files it needs.
fn run(name: &str, files: &[PathBuf]) -> Result<()> {
    let said = machine(&suite(name)?, files, &["--test-threads=1"])?;
    // The suite's own words: a machine that ran nothing would exit with 0 as well.
    if !said.contains("test result: ok. ") || said.contains("ok. 0 passed") {
        bail!("suite {name} on the old kernel passed nothing:\n{said}");
    }
    Ok(())
}

fn tool(name: &str) -> Result<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|place| PathBuf::from(place).join(name));
    let missing = || format!("{name} is not installed: run `cargo xtask setup`");
    places.into_iter().find(|path| path.is_file()).with_context(missing)
}

#[test]
fn the_kernel_is_older_than_tcx() -> Result<()> {
    let said = machine(&tool("uname")?, &[], &["-r"])?;
    ensure!(said.lines().any(|line| line.starts_with("6.1.")), "{said}");
    Ok(())
}

#[test]
fn every_program_loads_and_the_golden_packets_pass() -> Result<()> {
    run("packet_fixtures", &[tool("ip")?])
}

#[test]
fn a_cluster_attached_by_clsact_carries_all_traffic() -> Result<()> {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).with_file_name("examples");
    let files = [
        tool("ip")?,
        tool("nsenter")?,
        binary("portolan")?,
        binary("portolan-cni")?,
        examples.join("nodes.yaml"),
    ];
    run("net_cluster", &files)
}
