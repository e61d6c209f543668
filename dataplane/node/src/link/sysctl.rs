//! Sysctls of a namespace and of its interfaces.
//!
//! `/proc/sys/net` shows the namespace of the thread that opens the file, so every function here acts on
//! the calling thread's.

use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use super::{Error, Links, is_own_device};

/// A sysctl that had another value before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysctlChange {
    /// Path below `/proc/sys`.
    pub path: String,
    /// The old value.
    pub from: String,
    /// The new value.
    pub to: String,
}

impl Links {
    /// Sets the sysctls that a node needs, and says what changed:
    ///
    /// - `ip_forward` and IPv6 `all.forwarding` on. The latter makes the kernel ignore router
    ///   advertisements where `accept_ra` is 1, so that becomes 2 first: the node keeps its default route.
    /// - Reverse-path filtering: the kernel uses the larger of `all.rp_filter` and the interface's. A filter
    ///   in `all` would hit our devices, on which asymmetric paths are the rule. So its strictness moves to
    ///   every other interface (and to `default`) and `all` becomes 0: nothing else filters less.
    /// - `reserved` joins `ip_local_reserved_ports`, so that no local connection takes one as its source.
    ///
    /// # Errors
    /// [`Error::Sysctl`] with the path that could not be set.
    pub async fn prepare_node(&self, reserved: &[RangeInclusive<u16>]) -> Result<Vec<SysctlChange>, Error> {
        let reserved = reserved.to_vec();
        self.call(move |_| {
            let mut changes = Changes::default();
            keep_router_advertisements(&mut changes)?;
            changes.set("net/ipv4/ip_forward", "1")?;
            if has_ipv6() {
                changes.set("net/ipv6/conf/all/forwarding", "1")?;
            }
            move_reverse_path_filter(&mut changes)?;
            reserve_ports(&mut changes, &reserved)?;
            Ok(changes.0)
        })
        .await
    }
}

impl Links {
    /// Adds ports to those that no local connection takes as its source, and says what changed. None is taken out.
    ///
    /// # Errors
    /// [`Error::Sysctl`] with the path that could not be set.
    pub async fn reserve_ports(&self, ports: &[RangeInclusive<u16>]) -> Result<Vec<SysctlChange>, Error> {
        let ports = ports.to_vec();
        self.call(move |_| {
            let mut changes = Changes::default();
            reserve_ports(&mut changes, &ports)?;
            Ok(changes.0)
        })
        .await
    }
}

/// The sysctls of a device of ours in the node's namespace. Idempotent.
pub(super) fn set_host_device(name: &str) -> Result<(), Error> {
    let mut changes = Changes::default();
    for (key, value) in [
        ("rp_filter", "0"),
        // Packets whose source is an address of the node come back in through our devices.
        ("accept_local", "1"),
        ("forwarding", "1"),
        ("proxy_arp", "0"),
        ("send_redirects", "0"),
        ("accept_redirects", "0"),
        ("route_localnet", "0"),
    ] {
        changes.set(&format!("net/ipv4/conf/{name}/{key}"), value)?;
    }
    if has_ipv6() {
        // No link-local address: nobody on the link needs one, and none has to be verified.
        for (key, value) in [
            ("addr_gen_mode", "1"),
            ("accept_dad", "0"),
            ("accept_ra", "0"),
            ("accept_redirects", "0"),
            ("forwarding", "1"),
            ("disable_ipv6", "0"),
        ] {
            changes.set(&format!("net/ipv6/conf/{name}/{key}"), value)?;
        }
    }
    Ok(())
}

/// The sysctls of a pod's interface in the pod's namespace, which is the calling thread's.
pub(super) fn set_pod_device(name: &str, with_ipv6: bool) -> Result<(), Error> {
    if !has_ipv6() && !with_ipv6 {
        return Ok(());
    }
    let mut changes = Changes::default();
    for (key, value) in [("addr_gen_mode", "1"), ("accept_dad", "0"), ("accept_ra", "0")] {
        changes.set(&format!("net/ipv6/conf/{name}/{key}"), value)?;
    }
    if with_ipv6 {
        // Runtimes switch IPv6 off in new namespaces unless told otherwise.
        changes.set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    Ok(())
}

/// Adds `range` to a list as in `ip_local_reserved_ports` ("1,5-7"). Sorted and joined.
///
/// Entries that are not numbers are dropped: the kernel never lists any.
#[must_use]
pub fn with_reserved_ports(list: &str, range: &RangeInclusive<u16>) -> String {
    let entries = list.trim().split(',').filter_map(|entry| {
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        Some((first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?))
    });
    let mut ranges: Vec<(u16, u16)> = entries.chain([(*range.start(), *range.end())]).collect();
    ranges.retain(|(first, last)| first <= last);
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    let text =
        |(first, last): (u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    joined.into_iter().map(text).collect::<Vec<_>>().join(",")
}

#[derive(Default)]
struct Changes(Vec<SysctlChange>);

impl Changes {
    /// Writes only what differs: some writes take the routing lock even when nothing changes.
    fn set(&mut self, path: &str, value: &str) -> Result<(), Error> {
        let failed = |source| Error::Sysctl { path: full(path), value: value.into(), source };
        let from = get(path).map_err(failed)?;
        if from != value {
            fs::write(full(path), value).map_err(failed)?;
            self.0.push(SysctlChange { path: path.into(), from, to: value.into() });
        }
        Ok(())
    }
}

fn keep_router_advertisements(changes: &mut Changes) -> Result<(), Error> {
    if !has_ipv6() || get("net/ipv6/conf/all/forwarding").is_ok_and(|value| value != "0") {
        return Ok(());
    }
    for name in configurations("net/ipv6/conf").iter().filter(|name| *name != "all" && !is_own_device(name)) {
        let path = format!("net/ipv6/conf/{name}/accept_ra");
        if get(&path).is_ok_and(|value| value == "1") {
            unless_gone(changes.set(&path, "2"))?;
        }
    }
    Ok(())
}

fn move_reverse_path_filter(changes: &mut Changes) -> Result<(), Error> {
    let all = get("net/ipv4/conf/all/rp_filter").unwrap_or_default();
    if all == "0" {
        return Ok(());
    }
    for name in configurations("net/ipv4/conf").iter().filter(|name| *name != "all" && !is_own_device(name)) {
        let path = format!("net/ipv4/conf/{name}/rp_filter");
        // Both are a single digit: 0 none, 1 strict, 2 loose.
        if get(&path).is_ok_and(|own| own < all) {
            unless_gone(changes.set(&path, &all))?;
        }
    }
    changes.set("net/ipv4/conf/all/rp_filter", "0")
}

fn reserve_ports(changes: &mut Changes, ranges: &[RangeInclusive<u16>]) -> Result<(), Error> {
    const PATH: &str = "net/ipv4/ip_local_reserved_ports";
    let now = get(PATH).unwrap_or_default();
    let wanted = ranges.iter().fold(now, |list, range| with_reserved_ports(&list, range));
    changes.set(PATH, &wanted)
}

/// An interface may vanish while all of them are gone through.
fn unless_gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Names of the interfaces, and `all` and `default`, that have a configuration below `path`.
fn configurations(path: &str) -> Vec<String> {
    let entries = fs::read_dir(full(path)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn has_ipv6() -> bool {
    full("net/ipv6/conf").is_dir()
}

fn get(path: &str) -> io::Result<String> {
    fs::read_to_string(full(path)).map(|value| value.trim().to_owned())
}

fn full(path: &str) -> PathBuf {
    Path::new("/proc/sys").join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_join_the_reserved_ports_that_are_there() {
        for (list, wanted) in [
            ("", "30000-32767"),
            ("8080", "8080,30000-32767"),
            ("30000-32767", "30000-32767"),
            ("1,31000-31005,40000-40001", "1,30000-32767,40000-40001"),
            ("29999,32768", "29999-32768"),
            ("20000-65535\n", "20000-65535"),
        ] {
            assert_eq!(with_reserved_ports(list, &(30000..=32767)), wanted, "{list:?}");
        }
    }
}
