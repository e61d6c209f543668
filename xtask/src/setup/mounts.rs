//! The two file systems that eBPF programs are pinned and attached in.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use crate::cmd::Cmd;

const BPFFS: &str = "/sys/fs/bpf";

pub(super) fn ensure(machine: &Machine) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the table of mounts")?;
    if !is_mounted(&mounts, "bpf", Some(BPFFS)) {
        machine.require_root(&format!("mounting bpffs at {BPFFS}"))?;
        if !Path::new(BPFFS).is_dir() {
            bail!("this kernel has no {BPFFS}: it was built without BPF; use a kernel of 6.1 or later");
        }
        Cmd::new("mount").args(["-t", "bpf", "bpf", BPFFS]).run()?;
    }
    if !is_mounted(&mounts, "cgroup2", None) {
        bail!(
            "no cgroup v2 is mounted: boot with systemd.unified_cgroup_hierarchy=1, \
             or run `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`"
        );
    }
    Ok(())
}

/// Whether `mounts`, as in /proc/self/mounts, has a file system of `kind`, at `place` if that matters.
fn is_mounted(mounts: &str, kind: &str, place: Option<&str>) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        let (at, of) = (fields.next(), fields.next());
        of == Some(kind) && (place.is_none() || at == place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "none /run/bpf bpf rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";

    #[test]
    fn a_bpffs_elsewhere_does_not_count() {
        assert!(!is_mounted(MOUNTS, "bpf", Some(BPFFS)));
        assert!(is_mounted(MOUNTS, "bpf", Some("/run/bpf")));
    }

    #[test]
    fn cgroup_v2_counts_wherever_it_is_mounted() {
        assert!(is_mounted(MOUNTS, "cgroup2", None));
        assert!(!is_mounted("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n", "cgroup2", None));
    }
}
