//! Network namespaces.

use std::fs::File;
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{cgroup, poll, run};

/// A named network namespace, removed with everything in it when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    /// The cgroup that everything inside belongs to from some time on, once that is said; or none.
    cgroup: OnceLock<Option<PathBuf>>,
}

impl Netns {
    /// Makes a namespace with loopback up. The name gets the process id and a number before it, so that no two
    /// tests meet.
    ///
    /// # Errors
    /// Not root, as a rule.
    pub fn new(label: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ptl-{}-{number}-{label}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name, cgroup: OnceLock::new() };
        // Until a link-local address has been probed for a second, the kernel solicits no neighbour for packets
        // that it did not send itself.
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name below `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has all that begins inside from now on join a cgroup. The first one counts.
    pub fn set_cgroup(&self, cgroup: &Path) {
        let _ = self.cgroup.set(Some(cgroup.to_owned()));
    }

    /// Keeps all that begins inside out of cgroups, whoever says otherwise later.
    pub fn keep_out_of_cgroups(&self) {
        let _ = self.cgroup.set(None);
    }

    /// Where it can be opened.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `ip` on it; the words of `arguments` are separated by spaces.
    ///
    /// # Errors
    /// As [`run`].
    pub fn ip(&self, arguments: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// A command that runs inside. Not by `ip netns exec`, which would hide cgroup and bpf file systems.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        if let Some(Some(path)) = self.cgroup.get() {
            cgroup::start_in(&mut command, path).expect("the cgroup lives longer than what is in it");
        }
        command
    }

    /// Runs a command line inside; the words are separated by spaces.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        run(self.command(words.next().unwrap_or_default()).args(words))
    }

    /// Sets a sysctl, `key` below `/proc/sys` with slashes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        let value = value.to_owned();
        self.enter(move || std::fs::write(&path, value).with_context(|| format!("setting {path}")))?
    }

    /// Runs `work` on a thread inside; sockets that it makes stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` panics.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.spawn(work)?.join().map_err(|_| anyhow::anyhow!("work in {} panicked", self.name))
    }

    /// A listener for TCP over both families, once the port is free: a child process that another test has just forked has
    /// the last listener for a moment, too.
    ///
    /// # Errors
    /// The port stays taken.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let bind = || self.enter(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).ok()?.ok();
        poll(Duration::from_secs(3), "the port is free", bind)
    }

    /// A socket for UDP over both families, once the port is free, as [`listen`](Self::listen).
    ///
    /// # Errors
    /// The port stays taken.
    pub fn bind_udp(&self, port: u16) -> Result<UdpSocket> {
        let bind = || self.enter(move || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))).ok()?.ok();
        poll(Duration::from_secs(3), "the port is free", bind)
    }

    /// As [`enter`](Self::enter), without waiting for the end.
    ///
    /// # Errors
    /// The namespace cannot be opened.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let file = File::open(self.path()).with_context(|| format!("opening {}", self.path()))?;
        let group = self.cgroup.get().cloned().flatten();
        Ok(thread::spawn(move || {
            if let Some(path) = group {
                cgroup::join(&path).expect("the cgroup lives longer than what is in it");
            }
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the descriptor is a network namespace, and tests run as root");
            work()
        }))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Processes in it keep it alive; whoever started them ends them first.
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("removing namespace {}: {error:#}", self.name);
        }
    }
}
