//! What the kernel of this node can do, and what is missing.
//!
//! Asked of the kernel itself where that is possible: distributions port features back to old versions and
//! leave others out of new ones. Only conclusive answers are kept.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Oldest kernel that everything here works on.
pub const KERNEL_FLOOR: KernelVersion = KernelVersion { major: 6, minor: 1 };

/// Where cgroup v2 is mounted: alone, or beside v1 on a hybrid host.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Bits of linux/capability.h.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (39, "CAP_BPF")];

/// `major.minor` of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of 6.1.
    pub major: u32,
    /// 1 of 6.1.
    pub minor: u32,
}

/// Where things are looked for.
#[derive(Clone, Debug)]
pub struct Places {
    /// Mount point of the bpffs, `/sys/fs/bpf` as a rule.
    pub bpffs: PathBuf,
    /// cgroup v2 mount; `None` looks in the usual places.
    pub cgroup_root: Option<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self { bpffs: "/sys/fs/bpf".into(), cgroup_root: None }
    }
}

/// What a node that can run everything has.
#[derive(Clone, Debug)]
pub struct Features {
    /// The running kernel.
    pub kernel: KernelVersion,
    /// Whether programs can be attached by tcx; if not, by clsact.
    pub tcx: bool,
    /// The cgroup v2 root.
    pub cgroup_root: PathBuf,
}

/// Something that is needed and not there. The text is one line: what is missing, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unmet {
    /// The kernel is too old.
    #[error("kernel {found} is too old: {KERNEL_FLOOR} or newer is needed; upgrade the node's kernel")]
    Kernel {
        /// What is running.
        found: KernelVersion,
    },
    /// The kernel's version could not be told.
    #[error("the kernel's version cannot be told from {text:?}: mount /proc")]
    KernelUnknown {
        /// What was there instead.
        text: String,
    },
    /// The kernel has no type information.
    #[error("the kernel has no BTF ({BTF} is missing): use a kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    Btf,
    /// No bpffs to pin to.
    #[error("no bpffs is mounted at {}: run `mount -t bpf bpf {}`", path.display(), path.display())]
    Bpffs {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// No cgroup v2.
    #[error("no cgroup v2 is mounted at {}: mount one, or say where it is", listed(tried))]
    Cgroup {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// Capabilities that the process lacks.
    #[error("the process lacks {}: run it as root, or add them to the container's securityContext", names.join(", "))]
    Capabilities {
        /// Their names.
        names: Vec<&'static str>,
    },
    /// The kernel would not say whether it has a feature.
    #[error("whether the kernel has {feature} cannot be told ({source}): run as root")]
    Inconclusive {
        /// The feature.
        feature: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Features {
    /// Looks at everything.
    ///
    /// # Errors
    /// All that is missing, not only the first.
    pub fn probe(places: &Places) -> Result<Self, Vec<Unmet>> {
        let mut unmet = Vec::new();
        let kernel = kept(kernel_version().and_then(supported), &mut unmet);
        let cgroup_root = kept(cgroup_root(places.cgroup_root.as_deref()), &mut unmet);
        let tcx = kept(tcx(), &mut unmet);
        kept(btf(), &mut unmet);
        kept(bpffs(&places.bpffs), &mut unmet);
        kept(capabilities(), &mut unmet);
        match (kernel, tcx, cgroup_root) {
            (Some(kernel), Some(tcx), Some(cgroup_root)) if unmet.is_empty() => {
                Ok(Self { kernel, tcx, cgroup_root })
            }
            _ => Err(unmet),
        }
    }
}

/// The running kernel's version.
///
/// # Errors
/// [`Unmet::KernelUnknown`].
pub fn kernel_version() -> Result<KernelVersion, Unmet> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    KernelVersion::parse(&text).ok_or(Unmet::KernelUnknown { text })
}

/// The cgroup v2 root: `configured`, or the first usual place that is one.
///
/// # Errors
/// [`Unmet::Cgroup`] with the places tried.
pub fn cgroup_root(configured: Option<&Path>) -> Result<PathBuf, Unmet> {
    let tried: Vec<PathBuf> = match configured {
        Some(path) => vec![path.into()],
        None => CGROUP_ROOTS.map(PathBuf::from).into(),
    };
    let found = tried.iter().find(|path| is_file_system(path, libc::CGROUP2_SUPER_MAGIC as u64)).cloned();
    found.ok_or(Unmet::Cgroup { tried })
}

/// Whether the kernel has tcx (6.6 and newer, if built in). Asks for the programs on `lo`, which a kernel
/// without it refuses as an unknown kind of attachment.
///
/// # Errors
/// [`Unmet::Inconclusive`] if the kernel refused for another reason, such as a missing capability.
pub fn tcx() -> Result<bool, Unmet> {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    if let Some(known) = ANSWER.get() {
        return Ok(*known);
    }
    let answer = match query_tcx_on_loopback() {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
        Err(source) => return Err(Unmet::Inconclusive { feature: "tcx", source }),
    };
    Ok(*ANSWER.get_or_init(|| answer))
}

/// Whether the calling thread has every capability that is needed.
///
/// # Errors
/// [`Unmet::Capabilities`] with those that it lacks.
pub fn capabilities() -> Result<(), Unmet> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let names = lacking(&status);
    if names.is_empty() { Ok(()) } else { Err(Unmet::Capabilities { names }) }
}

impl KernelVersion {
    /// From the text of `uname -r`: `6.1.0-18-amd64`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next()?.parse().ok();
        Some(Self { major: number()?, minor: number()? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

fn supported(found: KernelVersion) -> Result<KernelVersion, Unmet> {
    if found >= KERNEL_FLOOR { Ok(found) } else { Err(Unmet::Kernel { found }) }
}

fn btf() -> Result<(), Unmet> {
    if Path::new(BTF).exists() { Ok(()) } else { Err(Unmet::Btf) }
}

fn bpffs(path: &Path) -> Result<(), Unmet> {
    let mounted = is_file_system(path, libc::BPF_FS_MAGIC as u64);
    if mounted { Ok(()) } else { Err(Unmet::Bpffs { path: path.into() }) }
}

fn is_file_system(path: &Path, magic: u64) -> bool {
    // The field's sign and width differ between machines; the magic number is 32 bits wide.
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 & 0xffff_ffff == magic & 0xffff_ffff)
}

/// Names of the capabilities that the text of `/proc/PID/status` does not show as effective.
fn lacking(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES.iter().filter(|(bit, _)| effective >> bit & 1 == 0).map(|(_, name)| *name).collect()
}

/// `BPF_PROG_QUERY` of linux/bpf.h as tcx reads it.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

fn query_tcx_on_loopback() -> io::Result<()> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    const BPF_TCX_INGRESS: u32 = 46;
    const LOOPBACK: u32 = 1;
    let mut attr = QueryAttr { target_ifindex: LOOPBACK, attach_type: BPF_TCX_INGRESS, ..Default::default() };
    // SAFETY: bpf(2) reads and writes `size_of::<QueryAttr>()` bytes of `attr`, which lives through the call;
    // with null pointers and a count of 0 it writes nothing else.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size_of::<QueryAttr>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn kept<T>(result: Result<T, Unmet>, unmet: &mut Vec<Unmet>) -> Option<T> {
    result.map_err(|missing| unmet.push(missing)).ok()
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_gives_its_version() {
        for (release, version) in [
            ("6.1.0-18-amd64\n", Some((6, 1))),
            ("6.18.44", Some((6, 18))),
            ("5.10", Some((5, 10))),
            ("6", None),
            ("", None),
            ("linux", None),
        ] {
            let wanted = version.map(|(major, minor)| KernelVersion { major, minor });
            assert_eq!(KernelVersion::parse(release), wanted, "{release:?}");
        }
    }

    #[test]
    fn a_kernel_below_the_floor_is_named_with_what_to_do() {
        let error = supported(KernelVersion { major: 5, minor: 15 }).unwrap_err().to_string();
        assert!(error.contains("5.15") && error.contains("6.1") && error.contains("upgrade"), "{error}");
        assert!(supported(KERNEL_FLOOR).is_ok());
    }

    #[test]
    fn lacking_capabilities_are_named() {
        assert_eq!(lacking("Name:\tx\nCapEff:\t000001ffffffffff\n"), Vec::<&str>::new());
        assert_eq!(lacking("CapEff:\t0000000000001000\n"), ["CAP_SYS_ADMIN", "CAP_BPF"]);
        assert_eq!(lacking("").len(), CAPABILITIES.len());
    }

    #[test]
    fn a_directory_that_is_no_bpffs_or_cgroup_is_refused_with_its_path() {
        let directory = std::env::temp_dir();
        let error = bpffs(&directory).unwrap_err().to_string();
        assert!(error.contains(&format!("mount -t bpf bpf {}", directory.display())), "{error}");
        let error = cgroup_root(Some(&directory)).unwrap_err().to_string();
        assert!(error.contains(&directory.display().to_string()), "{error}");
    }

    #[test]
    fn tcx_is_found_from_6_6_on_and_not_before() {
        let has_it = kernel_version().unwrap() >= KernelVersion { major: 6, minor: 6 };
        assert_eq!(tcx().unwrap(), has_it, "needs root");
    }

    #[test]
    fn everything_missing_is_listed_not_only_the_first() {
        let nowhere = PathBuf::from("/nonexistent");
        let places = Places { bpffs: nowhere.clone(), cgroup_root: Some(nowhere) };
        let unmet = Features::probe(&places).unwrap_err();
        assert!(unmet.iter().any(|missing| matches!(missing, Unmet::Bpffs { .. })), "{unmet:?}");
        assert!(unmet.iter().any(|missing| matches!(missing, Unmet::Cgroup { .. })), "{unmet:?}");
        assert!(unmet.iter().all(|missing| !missing.to_string().contains('\n')), "{unmet:?}");
    }
}
