//! Removing everything that the agent made on a node.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use portolan_node::link::{Links, OVERLAY_DEVICE, SERVICE_DEVICE};
use portolan_node::{Attacher, Mode, Sockets};

use super::install::{CONFLIST, PLUGIN};
use super::options::Directories;
use crate::cli::Global;

/// Options of `portolan uninstall`. Give the same directories as to the agent.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  portolan uninstall")]
pub struct UninstallOptions {
    #[command(flatten)]
    directories: Directories,
    /// Keep the addresses given to pods
    #[arg(long)]
    pub keep_state: bool,
}

/// Removes configuration, programs, interfaces, routes, tables and state, in this order. Goes on after failures.
///
/// # Errors
/// An agent still runs, or something could not be removed; every failure is in the message.
pub fn uninstall(options: &UninstallOptions, global: &Global) -> anyhow::Result<ExitCode> {
    if std::os::unix::net::UnixStream::connect(&global.socket).is_ok() {
        anyhow::bail!("the agent is running: stop it first (it would make everything again)");
    }
    let mut failures: Vec<String> = Vec::new();
    let mut note = |what: &str, result: anyhow::Result<()>| {
        if let Err(err) = result {
            failures.push(format!("{what}: {err:#}"));
        }
    };
    // First of all no new pod may come.
    note("CNI configuration", remove_file(&options.directories.cni_conf_dir.join(CONFLIST)));
    note("CNI plugin", remove_file(&options.directories.cni_bin_dir.join(PLUGIN)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (what, result) in runtime.block_on(detach_and_remove(global)) {
        note(what, result);
    }
    note("pins", remove_directory(&global.pins));
    note("socket", remove_file(&global.socket));
    // The directories around them, unless others use them.
    for parent in [global.pins.parent(), global.socket.parent()].into_iter().flatten() {
        let _ = std::fs::remove_dir(parent);
    }
    if !options.keep_state {
        note("state", remove_directory(&options.directories.state_dir));
    }
    if failures.is_empty() {
        println!("removed: programs, tables, interfaces, routes, CNI configuration and state");
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("not everything could be removed; mend this and run it again:\n  {}", failures.join("\n  "))
}

/// Detaches from what stays (uplinks and loopback), removes what is ours; how each step went.
async fn detach_and_remove(global: &Global) -> Vec<(&'static str, anyhow::Result<()>)> {
    let links = match Links::new() {
        Ok(links) => links,
        Err(err) => return vec![("netlink", Err(err.into()))],
    };
    let removed = async { links.uninstall().await.context("removing interfaces and routes") };
    vec![
        ("socket programs", Sockets::new(&global.pins).detach().map(drop).map_err(Into::into)),
        ("programs attached by tcx", detach_tcx(global)),
        ("programs attached by clsact", detach_clsact(&links, global).await),
        ("interfaces", removed.await),
    ]
}

fn detach_tcx(global: &Global) -> anyhow::Result<()> {
    let tcx = Attacher::new(Mode::Tcx, &global.pins);
    for name in tcx.attached()? {
        tcx.detach(&name)?;
    }
    Ok(())
}

async fn detach_clsact(links: &Links, global: &Global) -> anyhow::Result<()> {
    let clsact = Attacher::new(Mode::Clsact, &global.pins);
    for interface in links.interfaces().await? {
        let ours = [SERVICE_DEVICE, OVERLAY_DEVICE].contains(&interface.name.as_str())
            || interface.name.starts_with("ptl");
        // Only filters with our priority and handle are removed.
        if !ours && clsact.detach(&interface.name)? {
            links.remove_empty_clsact(interface.ifindex).await?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    ignore_missing(std::fs::remove_file(path)).with_context(|| path.display().to_string())
}

fn remove_directory(path: &Path) -> anyhow::Result<()> {
    ignore_missing(std::fs::remove_dir_all(path)).with_context(|| path.display().to_string())
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
