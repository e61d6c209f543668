//! Debian's kernel: fetching it, and the order its modules load in.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, read::File};

use crate::cmd::Cmd;

/// The package that depends on Debian's current kernel, and how the kernel's own package has to begin.
const META_PACKAGE: &str = "linux-image-amd64";
const SERIES: &str = "linux-image-6.1.";

/// What the tests use of a kernel that builds nearly all as modules.
const MODULES: &[&str] = &["cls_bpf", "dummy", "sch_fq", "sch_ingress", "veth", "vxlan"];

/// An unpacked kernel package.
pub(super) struct Kernel {
    image: PathBuf,
    /// Holds `modules.order`, `modules.builtin` and the modules.
    modules: PathBuf,
}

impl Kernel {
    /// A kernel that was fetched once is used from then on, also without network.
    pub(super) fn cached_or_downloaded() -> Result<Self> {
        let directory = super::directory();
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        match entry_beginning_with(&directory, SERIES) {
            Some(unpacked) => Self::open(&unpacked),
            None => Self::open(&download(&directory)?),
        }
    }

    fn open(unpacked: &Path) -> Result<Self> {
        let found = |place: &str, beginning| {
            let directory = unpacked.join(place);
            let missing =
                || format!("{} has no {beginning}*: remove it to fetch it again", directory.display());
            entry_beginning_with(&directory, beginning).with_context(missing)
        };
        Ok(Self { image: found("boot", "vmlinuz-")?, modules: found("lib/modules", "6.1.")? })
    }

    pub(super) fn image(&self) -> &Path {
        &self.image
    }

    /// The files of the tests' modules and `more`, each after those it depends on.
    pub(super) fn modules(&self, more: &[String]) -> Result<Vec<PathBuf>> {
        let files = by_name(&self.list("modules.order")?);
        let builtin = by_name(&self.list("modules.builtin")?);
        let wanted = MODULES.iter().copied().chain(more.iter().map(String::as_str));
        let wanted: Vec<String> =
            wanted.map(module_name).filter(|name| !builtin.contains_key(name)).collect();
        let order = load_order(&wanted, |name| {
            let file = files.get(name).with_context(|| format!("this kernel has no module {name}"))?;
            depends_of(&self.modules.join(file))
        })?;
        Ok(order.iter().filter_map(|name| files.get(name)).map(|file| self.modules.join(file)).collect())
    }

    fn list(&self, name: &str) -> Result<String> {
        let path = self.modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }
}

/// Fetches and unpacks the package under `directory`; returns where it is. Nothing is installed.
fn download(directory: &Path) -> Result<PathBuf> {
    let package = current_package()?;
    // Another run may fetch at the same time: each has its own place until all is there.
    let scratch = super::Scratch::make()?;
    Cmd::new("apt-get").args(["download", "-qq", &package]).directory(&scratch.0).run()?;
    let archive = entry_beginning_with(&scratch.0, &package).context("apt-get download left no file")?;
    let unpacked = scratch.0.join("unpacked");
    Cmd::new("dpkg").arg("-x").args([&archive, &unpacked]).run()?;
    let place = directory.join(&package);
    match fs::rename(&unpacked, &place) {
        Err(_) if place.is_dir() => Ok(place),
        result => result.map(|()| place).context("moving the unpacked kernel to its place"),
    }
}

fn current_package() -> Result<String> {
    let depends = |text: &str| dependency(text).map(str::to_owned);
    let known = Cmd::new("apt-cache").args(["depends", META_PACKAGE]).read().ok();
    if let Some(package) = known.as_deref().and_then(depends) {
        return Ok(package);
    }
    Cmd::new("apt-get").args(["update", "-qq"]).run()?;
    let text = Cmd::new("apt-cache").args(["depends", META_PACKAGE]).read()?;
    match depends(&text) {
        Some(package) => Ok(package),
        None => bail!("apt offers no kernel 6.1 here: the virtual machine's kernel comes from Debian 12"),
    }
}

/// The kernel package in the output of `apt-cache depends`.
fn dependency(text: &str) -> Option<&str> {
    let packages = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages.into_iter().find(|package| package.starts_with(SERIES))
}

fn entry_beginning_with(directory: &Path, beginning: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let mut names = entries.map(|entry| entry.file_name()).filter_map(|name| name.into_string().ok());
    names.find(|name| name.starts_with(beginning)).map(|name| directory.join(name))
}

/// Module name → file, from lines such as `kernel/net/sched/cls_bpf.ko`.
fn by_name(list: &str) -> HashMap<String, PathBuf> {
    let entry = |line: &str| {
        let stem = Path::new(line).file_stem()?.to_str()?;
        Some((module_name(stem), PathBuf::from(line)))
    };
    list.lines().filter_map(entry).collect()
}

/// Modules are named with `_` where their files may have `-`.
fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

/// `wanted` and all they depend on, each after what it depends on, none twice.
fn load_order(wanted: &[String], depends: impl Fn(&str) -> Result<Vec<String>>) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        depends: &dyn Fn(&str) -> Result<Vec<String>>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if order.iter().any(|loaded| loaded == name) {
            return Ok(());
        }
        for dependency in depends(name)? {
            visit(&dependency, depends, order)?;
        }
        order.push(name.to_owned());
        Ok(())
    }
    let mut order = Vec::new();
    wanted.iter().try_for_each(|name| visit(name, &depends, &mut order))?;
    Ok(order)
}

/// The modules that the module in `file` says it depends on.
fn depends_of(file: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let elf = File::parse(&*bytes).with_context(|| format!("parsing {}", file.display()))?;
    let info = elf.section_by_name(".modinfo").with_context(|| format!("{} is no module", file.display()))?;
    Ok(depends_in(info.data().context("reading .modinfo")?))
}

/// `info` is a list of `name=value`, each ended by a zero byte.
fn depends_in(info: &[u8]) -> Vec<String> {
    let mut fields = info.split(|&byte| byte == 0).filter_map(|field| str::from_utf8(field).ok());
    let names = fields.find_map(|field| field.strip_prefix("depends=")).unwrap_or_default();
    names.split(',').filter(|name| !name.is_empty()).map(module_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_of_the_series_is_found_among_the_dependencies() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Suggests: x\n";
        assert_eq!(dependency(text), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(dependency("linux-image-amd64\n  Depends: linux-image-6.12.1-amd64\n"), None);
    }

    #[test]
    fn dependencies_are_read_from_the_modules_own_description() {
        assert_eq!(
            depends_in(b"license=GPL\0depends=udp_tunnel,ip6-udp-tunnel\0"),
            ["udp_tunnel", "ip6_udp_tunnel"]
        );
        assert!(depends_in(b"license=GPL\0depends=\0").is_empty());
    }

    #[test]
    fn a_module_loads_once_and_after_all_it_depends_on() {
        let depends = |name: &str| {
            let names: &[&str] = match name {
                "vxlan" => &["ip6_udp_tunnel", "udp_tunnel"],
                "udp_tunnel" => &["tunnel_core"],
                "ip6_udp_tunnel" => &["tunnel_core"],
                _ => &[],
            };
            Ok(names.iter().map(|&name| name.to_owned()).collect())
        };
        let wanted = ["vxlan".to_owned(), "udp_tunnel".to_owned()];
        assert_eq!(
            load_order(&wanted, depends).unwrap(),
            ["tunnel_core", "ip6_udp_tunnel", "udp_tunnel", "vxlan"]
        );
    }
}
