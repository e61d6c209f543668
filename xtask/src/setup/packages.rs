//! Debian packages: what is missing, and installing it without starting a service.

mod services;

use std::{fs, path::Path};

use anyhow::{Result, bail};

use super::machine::Machine;
use crate::cmd::{Cmd, find_program};

/// A Debian package and how to see that what it brings is there, whoever brought it.
pub(super) struct Package {
    name: &'static str,
    probe: Probe,
    /// The service that Debian starts at installation and at every boot.
    service: Option<&'static str>,
}

enum Probe {
    Program(&'static str),
    /// Runs where no shared library is: in an image made of one file.
    StaticProgram(&'static str),
    File(&'static str),
}

/// What tests, demo and benchmarks run.
pub(super) const TOOLS: &[Package] = &[
    program("arping", "arping"),
    Package { service: Some("bird"), ..program("bird2", "bird") },
    program("bpftool", "bpftool"),
    Package { name: "busybox-static", probe: Probe::StaticProgram("busybox"), service: None },
    program("conntrack", "conntrack"),
    Package { service: Some("containerd"), ..program("containerd", "containerd") },
    program("cpio", "cpio"),
    program("curl", "curl"),
    program("ethtool", "ethtool"),
    // Its daemons are not in the search path.
    Package { service: Some("frr"), ..file("frr", "/usr/lib/frr/bgpd") },
    program("iperf3", "iperf3"),
    program("iproute2", "ip"),
    program("iptables", "iptables"),
    program("iputils-ping", "ping"),
    program("nftables", "nft"),
    program("procps", "sysctl"),
    // For promtool, which reads and tests the alerts.
    Package { service: Some("prometheus"), ..program("prometheus", "promtool") },
    program("python3-pip", "pip3"),
    program("qemu-system-x86", "qemu-system-x86_64"),
    program("runc", "runc"),
    program("socat", "socat"),
    program("tcpdump", "tcpdump"),
    program("util-linux", "unshare"),
    program("wrk", "wrk"),
];

/// A compiler that brings the sources of `core`, its lints, and LLVM for the linker.
pub(super) const TOOLCHAIN: &[Package] = &[
    file("cargo-web", "/usr/bin/cargo"),
    file("g++", "/usr/bin/g++"),
    file("libzstd-dev", "/usr/include/zstd.h"),
    file("llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
    file("rust-web-clippy", "/usr/bin/cargo-clippy"),
    file("rust-web-src", "/usr/lib/rustlib/src/rust/library/core/Cargo.toml"),
    file("rustc-web", "/usr/bin/rustc"),
    file("zlib1g-dev", "/usr/include/zlib.h"),
];

const fn program(name: &'static str, program: &'static str) -> Package {
    Package { name, probe: Probe::Program(program), service: None }
}

const fn file(name: &'static str, path: &'static str) -> Package {
    Package { name, probe: Probe::File(path), service: None }
}

/// Those of `packages` that this machine lacks.
pub(super) fn missing(packages: &'static [Package]) -> Vec<&'static Package> {
    packages.iter().filter(|package| !package.probe.succeeds()).collect()
}

/// Whether apt offers every one of `packages`. Fetches apt's lists first: a fresh machine has none.
pub(super) fn are_offered(packages: &[Package]) -> Result<bool> {
    apt_get(&["update", "-qq"]).run()?;
    let names = packages.iter().map(|package| package.name);
    let policy = Cmd::new("apt-cache").arg("policy").args(names).read()?;
    Ok(count_candidates(&policy) == packages.len())
}

/// Installs `packages`; does nothing for none.
pub(super) fn install(machine: &Machine, packages: &[&Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    if !machine.is_debian() {
        bail!(
            "this is {}, and set-up installs packages on Debian only: \
             install what Debian calls {} by hand, then run this again",
            machine.name(),
            names.join(" ")
        );
    }
    machine.require_root(&format!("installing {}", names.join(" ")))?;
    let started: Vec<&str> = packages.iter().filter_map(|package| package.service).collect();
    apt_get(&["update", "-qq"]).run()?;
    let kept_off = services::keep_off(&started)?;
    apt_get(&["install", "-y", "-qq", "--no-install-recommends"]).args(&names).run()?;
    kept_off.disable()?;
    verify(packages)
}

/// A package whose name stayed but whose content moved is noticed here rather than in some build.
fn verify(packages: &[&Package]) -> Result<()> {
    match packages.iter().find(|package| !package.probe.succeeds()) {
        None => Ok(()),
        Some(Package { name, probe, .. }) => {
            bail!("{name} is installed, but {} is still not there; reinstall it", probe.subject())
        }
    }
}

fn apt_get(arguments: &[&str]) -> Cmd {
    Cmd::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive")
}

impl Probe {
    fn succeeds(&self) -> bool {
        match self {
            Probe::Program(name) => find_program(name).is_some(),
            Probe::StaticProgram(name) => find_program(name).is_some_and(|path| is_static(&path)),
            Probe::File(path) => Path::new(path).exists(),
        }
    }

    fn subject(&self) -> &'static str {
        match self {
            Probe::Program(name) | Probe::File(name) => name,
            Probe::StaticProgram(name) => name,
        }
    }
}

/// Whether the ELF file names no interpreter.
fn is_static(path: &Path) -> bool {
    use object::{elf, read::elf::FileHeader, read::elf::ProgramHeader};
    let Ok(bytes) = fs::read(path) else { return false };
    let Ok(header) = elf::FileHeader64::<object::Endianness>::parse(&*bytes) else { return false };
    let endian = header.endian().unwrap_or_default();
    let segments = header.program_headers(endian, &*bytes).unwrap_or_default();
    segments.iter().all(|segment| segment.p_type(endian) != elf::PT_INTERP)
}

/// How many packages in the output of `apt-cache policy` can be installed.
fn count_candidates(policy: &str) -> usize {
    let candidates = policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate: "));
    candidates.filter(|version| *version != "(none)").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_apt_knows_but_cannot_install_is_no_candidate() {
        let policy =
            "a:\n  Installed: (none)\n  Candidate: 1.96.0\nb:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(count_candidates(policy), 1);
    }

    #[test]
    fn only_a_program_without_interpreter_is_static() {
        let shell = fs::canonicalize("/bin/sh").expect("every Linux has a shell");
        assert!(!is_static(&shell));
        assert!(!is_static(Path::new("/etc/passwd")));
    }
}
