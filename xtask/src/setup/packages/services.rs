//! Keeping services that packages bring from being started, now and at boot.
//!
//! Tests run their own containerd, BIRD and FRR inside node namespaces; one in the root namespace would be a
//! service that nobody asked for.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::cmd::{Cmd, find_program};

/// Debian's maintainer scripts ask this program before they start anything; 101 is "not allowed".
const POLICY: &str = "/usr/sbin/policy-rc.d";
const REFUSE: &str =
    "#!/bin/sh\n# Written by `cargo xtask setup` of Portolan while it installs packages.\nexit 101\n";

/// While this lives, no newly installed service starts.
pub(super) struct KeptOff<'a> {
    services: &'a [&'a str],
    _policy: Policy,
}

pub(super) fn keep_off<'a>(services: &'a [&'a str]) -> Result<KeptOff<'a>> {
    Ok(KeptOff { services, _policy: Policy::refuse(Path::new(POLICY))? })
}

impl KeptOff<'_> {
    /// Takes the services out of the boot sequence, into which their packages put them. A machine without
    /// systemd, such as a container, has no such sequence.
    pub(super) fn disable(self) -> Result<()> {
        if self.services.is_empty() || find_program("systemctl").is_none() {
            return Ok(());
        }
        Cmd::new("systemctl").arg("disable").args(self.services).run()
    }
}

/// A policy that refuses, in place of the machine's own, which returns on drop.
struct Policy {
    path: PathBuf,
    own: Option<PathBuf>,
}

impl Policy {
    fn refuse(path: &Path) -> Result<Self> {
        let aside = path.with_extension("d.before-portolan");
        let ours = fs::read_to_string(path).is_ok_and(|text| text == REFUSE);
        // Left by a set-up that was killed: the machine's own, if it has one, already is aside.
        if !ours {
            rename_if_there(path, &aside).context("setting the machine's policy-rc.d aside")?;
        }
        let policy = Self { path: path.to_owned(), own: aside.exists().then_some(aside) };
        fs::write(path, REFUSE).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", path.display()))?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        let restored = match &self.own {
            Some(own) => fs::rename(own, &self.path),
            None => fs::remove_file(&self.path),
        };
        if let Err(error) = restored {
            eprintln!("warning: {} still refuses to start services: {error}", self.path.display());
        }
    }
}

fn rename_if_there(from: &Path, to: &Path) -> std::io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("portolan-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a temporary directory can be made");
        directory.join("policy-rc.d")
    }

    fn text(path: &Path) -> Option<String> {
        fs::read_to_string(path).ok()
    }

    #[test]
    fn the_machines_own_policy_returns_after_an_installation() {
        let path = place("own-policy");
        fs::write(&path, "own").unwrap();
        let policy = Policy::refuse(&path).unwrap();
        assert_eq!(text(&path).as_deref(), Some(REFUSE));
        drop(policy);
        assert_eq!(text(&path).as_deref(), Some("own"));
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn no_policy_is_left_where_none_was() {
        let path = place("no-policy");
        drop(Policy::refuse(&path).unwrap());
        assert_eq!(text(&path), None);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_killed_installation_is_repaired_by_the_next() {
        let path = place("killed");
        fs::write(&path, "own").unwrap();
        std::mem::forget(Policy::refuse(&path).unwrap());
        drop(Policy::refuse(&path).unwrap());
        assert_eq!(text(&path).as_deref(), Some("own"));
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
