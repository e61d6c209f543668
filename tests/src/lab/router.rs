//! Real routers that speak BGP: BIRD and FRR, as processes in a namespace. They write into their own directory only.

mod bird;
mod frr;

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Netns, poll, run};

/// Which router it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brand {
    /// BIRD 2.
    Bird,
    /// FRR's bgpd, with zebra for the kernel.
    Frr,
}

/// Makes of each claim, a function of a [`Brand`], a test for either router.
#[macro_export]
macro_rules! with_both_routers {
    ($($claim:ident)*) => {
        mod bird {
            $(#[test]
            fn $claim() -> anyhow::Result<()> {
                super::$claim($crate::lab::Brand::Bird)
            })*
        }
        mod frr {
            $(#[test]
            fn $claim() -> anyhow::Result<()> {
                super::$claim($crate::lab::Brand::Frr)
            })*
        }
    };
}

/// A neighbor in a router's configuration.
#[derive(Clone, Debug)]
pub struct Neighbor {
    /// Its address.
    pub address: IpAddr,
    /// Its AS number.
    pub asn: u32,
    /// The router's own address, from which it speaks.
    pub local: IpAddr,
    /// Hold time in seconds.
    pub hold: u16,
    /// Key of TCP MD5 signatures.
    pub password: Option<String>,
    /// Hops that packets may make.
    pub multihop: Option<u8>,
    /// Takes packets of directly connected neighbors only (RFC 5082).
    pub ttl_security: bool,
    /// The router waits for the neighbor's connection.
    pub passive: bool,
}

impl Neighbor {
    /// A neighbor that connects, with a hold time of 9 s.
    #[must_use]
    pub fn new(address: &str, asn: u32, local: &str) -> Self {
        let parse = |text: &str| text.parse().expect("a test writes an address");
        let (address, local) = (parse(address), parse(local));
        Self {
            address,
            asn,
            local,
            hold: 9,
            password: None,
            multihop: None,
            ttl_security: false,
            passive: true,
        }
    }
}

/// A way to a prefix, as a router sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Where packets go.
    pub next_hop: Option<IpAddr>,
    /// AS numbers, with spaces between them.
    pub as_path: String,
    /// LOCAL_PREF.
    pub preference: Option<u32>,
    /// As `64512:100`, with spaces between them.
    pub communities: String,
    /// As `64512:1:2`, with spaces between them.
    pub large_communities: String,
}

/// A running router. Dropping it ends its processes.
#[derive(Debug)]
pub struct Router {
    brand: Brand,
    netns: String,
    directory: PathBuf,
    children: Vec<Child>,
}

impl Router {
    /// Starts a router that keeps sessions with `neighbors` and puts routes into the kernel; `directory` is its own.
    ///
    /// # Errors
    /// It does not run or does not answer.
    pub fn start(
        brand: Brand,
        netns: &Netns,
        directory: &Path,
        asn: u32,
        neighbors: &[Neighbor],
    ) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut router =
            Self { brand, netns: netns.path(), directory: directory.to_owned(), children: Vec::new() };
        match brand {
            Brand::Bird => bird::start(&mut router, asn, neighbors),
            Brand::Frr => frr::start(&mut router, asn, neighbors),
        }
        .with_context(|| format!("starting {brand:?}"))?;
        router.wait().with_context(|| router.log())?;
        Ok(router)
    }

    fn wait(&mut self) -> Result<()> {
        poll(READY, "the router answers", || {
            self.children.iter_mut().all(|child| matches!(child.try_wait(), Ok(None))).then_some(())?;
            match self.brand {
                Brand::Bird => bird::ask(self, "show status").ok()?.contains("Daemon is up").then_some(()),
                Brand::Frr => frr::is_ready(self).then_some(()),
            }
        })
    }

    /// Ways to a prefix; empty: there is none.
    ///
    /// # Errors
    /// The router does not answer.
    pub fn paths(&self, prefix: &str) -> Result<Vec<Way>> {
        match self.brand {
            Brand::Bird => bird::paths(self, prefix),
            Brand::Frr => frr::paths(self, prefix),
        }
    }

    /// Whether there is a way to a prefix.
    ///
    /// # Errors
    /// The router does not answer.
    pub fn has(&self, prefix: &str) -> Result<bool> {
        Ok(!self.paths(prefix)?.is_empty())
    }

    /// Waits until there is a way to a prefix or there is none.
    ///
    /// # Errors
    /// It is not so in time; the error has the router's log.
    pub fn until(&self, prefix: &str, there: bool) -> Result<()> {
        let what = format!("{prefix} is {} at {:?}", if there { "there" } else { "gone" }, self.brand);
        poll(PATIENCE, &what, || (self.has(prefix).ok()? == there).then_some(())).with_context(|| self.log())
    }

    /// What it says about its sessions and their ends.
    #[must_use]
    pub fn sessions(&self) -> String {
        let said = match self.brand {
            Brand::Bird => bird::ask(self, "show protocols all"),
            Brand::Frr => frr::ask(self, "show bgp neighbors"),
        };
        said.unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Everything it logged.
    #[must_use]
    pub fn log(&self) -> String {
        let files = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let logs = files.filter(|file| file.path().extension().is_some_and(|end| end == "log"));
        logs.map(|file| {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            format!("--- {} ---\n{text}", file.file_name().to_string_lossy())
        })
        .collect()
    }

    /// Starts a process whose `/var/tmp` is in the router's directory.
    fn spawn(&mut self, program: &str, arguments: &[&str]) -> Result<()> {
        let own = self.directory.join("var-tmp");
        std::fs::create_dir_all(&own)?;
        if self.brand == Brand::Frr {
            // It gives up root.
            run(Command::new("chown").arg("-R").arg("frr:frr").arg(&self.directory))?;
        }
        let output = File::create(self.directory.join(format!("{}.out.log", self.children.len())))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns)).args(["unshare", "--mount", "sh", "-c"]);
        command.arg("mount --bind \"$0\" /var/tmp && exec \"$@\"").arg(own).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        self.children.push(command.spawn().with_context(|| format!("starting {program}"))?);
        Ok(())
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(Command::new("nsenter").arg(format!("--net={}", self.netns)).arg(program).args(arguments))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}{}", self.log(), self.sessions());
        }
        for mut child in self.children.drain(..) {
            // One that ended by itself is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Time for a router to get ready.
const READY: Duration = Duration::from_secs(20);
/// Time for routes to come or go.
const PATIENCE: Duration = Duration::from_secs(30);
