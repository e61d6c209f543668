//! What kind of machine this is.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Result, bail};

/// What set-up may do here.
pub(super) struct Machine {
    root: bool,
    debian: bool,
    name: String,
}

impl Machine {
    pub(super) fn detect() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Self {
            // The kernel makes /proc/self the property of the process's effective user.
            root: fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0),
            debian: field(&release, "ID") == Some("debian"),
            name: field(&release, "PRETTY_NAME").unwrap_or("an unknown system").to_owned(),
        }
    }

    pub(super) fn is_debian(&self) -> bool {
        self.debian
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// `what` names the thing that only root can do.
    pub(super) fn require_root(&self, what: &str) -> Result<()> {
        if !self.root {
            bail!("{what} needs root: run `cargo xtask setup` as root, in a shell whose PATH has cargo");
        }
        Ok(())
    }
}

/// The value of `name` in the text of an os-release(5) file.
fn field<'a>(release: &'a str, name: &str) -> Option<&'a str> {
    let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name_and_without_its_quotes() {
        let release = "VERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n";
        assert_eq!(field(release, "ID"), Some("debian"));
        assert_eq!(field(release, "PRETTY_NAME"), Some("Debian GNU/Linux 12"));
        assert_eq!(field(release, "NAME"), None);
    }
}
