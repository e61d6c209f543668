//! The CNI plugin and its configuration: there when pods can be added, gone when the agent is uninstalled.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;

use super::Options;
use crate::cli::Global;

/// Runtimes take the first file in order of names.
pub(crate) const CONFLIST: &str = "05-portolan.conflist";
/// Name of the plugin's binary.
pub(super) const PLUGIN: &str = "portolan-cni";

/// Installs the plugin, then its configuration: a runtime that sees the latter can use it at once.
pub(super) fn install(options: &Options, global: &Global) -> anyhow::Result<()> {
    if options.no_cni_install {
        return Ok(());
    }
    let plugin = std::fs::read(plugin_path()?).context("reading the CNI plugin beside the agent's binary")?;
    replace(&options.directories.cni_bin_dir.join(PLUGIN), &plugin, 0o755)?;
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "portolan",
        "plugins": [{
            "type": PLUGIN,
            "capabilities": { "portMappings": true, "bandwidth": true, "ips": true, "mac": true },
            "portolan": { "socket": global.socket, "stateDir": options.directories.state_dir },
        }],
    });
    let text = serde_json::to_vec_pretty(&config)?;
    replace(&options.directories.cni_conf_dir.join(CONFLIST), &text, 0o600)
}

/// The plugin lies beside the binary that runs.
fn plugin_path() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding the agent's binary")?;
    let path = own.with_file_name(PLUGIN);
    if !path.is_file() {
        bail!("{} is missing: install both binaries, or use --no-cni-install", path.display());
    }
    Ok(path)
}

/// Writes beside, then renames: nobody ever sees half a file.
fn replace(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let fresh = path.with_extension("portolan-new");
        std::fs::write(&fresh, contents)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&fresh, path)
    };
    write().with_context(|| format!("installing {}", path.display()))
}
