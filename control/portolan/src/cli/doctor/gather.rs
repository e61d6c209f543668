//! Reading the node. Changes nothing; what cannot be read is noted, and the rest is read all the same.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;

use portolan_node::attach::tcx_programs;
use portolan_node::features::{self, Features, Places};
use portolan_node::link::{Filter, Links, SERVICE_DEVICE, overhead};
use portolan_node::netfilter::{self, Hook as Netfilter};
use portolan_node::sockets::{Sockets, Transport};
use portolan_node::{Attacher, Direction, Mode};

use super::Doctor;
use super::facts::{Chain, DefaultRoute, Expected, Facts, Gate, Hook, Keeper, Link, Mount, Program, Socket};
use super::legacy;
use crate::agent::mount_above;
use crate::cli::{Global, client};

const AS_ROOT: &str = "run it as root in the node's own network and PID namespaces";
/// Files of these kinds are CNI configurations (libcni's `ConfFiles`).
const CONFIGURATIONS: [&str; 3] = ["conf", "conflist", "json"];

/// All facts of the node that this process runs on.
///
/// # Errors
/// No runtime can be made.
pub(super) fn facts(doctor: &Doctor, global: &Global) -> anyhow::Result<Facts> {
    let status = client::status(&global.socket).ok();
    let mut facts = Facts { expected: expected(doctor), running: status.is_some(), ..Facts::default() };
    if let (Some(status), true) = (&status, facts.expected.pod_cidrs.is_empty()) {
        facts.expected.pod_cidrs =
            status.pod_cidrs.iter().filter_map(|view| view.cidr.parse().ok()).collect();
    }
    let addresses = status.map(|status| status.addresses).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let read = runtime.block_on(interfaces(&mut facts, &addresses, global));
    noted(&mut facts, "interfaces", read);
    chains(&mut facts);
    let read = sockets(&mut facts);
    noted(&mut facts, "sockets", read);
    sysctls(&mut facts);
    facts.ipvs = ipvs(&fs::read_to_string("/proc/net/ip_vs").unwrap_or_default());
    facts.conflists = conflists(&doctor.cni_conf_dir);
    facts.netns_mount =
        fs::read_to_string("/proc/self/mountinfo").ok().and_then(|it| mount(&it, "/run/netns"));
    let bpffs = doctor.bpffs.clone().unwrap_or_else(|| mount_above(&global.pins));
    let places = Places { bpffs, cgroup_root: doctor.cgroup_root.clone() };
    if let Err(unmet) = Features::probe(&places) {
        facts.lacking = unmet.iter().map(ToString::to_string).collect();
    }
    Ok(facts)
}

fn expected(doctor: &Doctor) -> Expected {
    let family = doctor.overlay.planned();
    Expected {
        node_ports: doctor.node_port_range,
        masquerade: doctor.masquerade_range,
        metrics_port: doctor.metrics.port(),
        health_port: doctor.healthz_bind_address.port(),
        overlay: family
            .map(|family| (doctor.overlay.overlay_port, overhead(family == portolan_model::Family::V4))),
        mtu: doctor.mtu,
        service_cidrs: doctor.service_cidrs.clone(),
        pod_cidrs: doctor.pod_cidrs.clone(),
        cni_conf_dir: doctor.cni_conf_dir.clone(),
    }
}

fn noted(facts: &mut Facts, what: &str, read: anyhow::Result<()>) {
    if let Err(error) = read {
        facts.unread.push((format!("{what} could not be read: {error:#}"), AS_ROOT.to_owned()));
    }
}

async fn interfaces(
    facts: &mut Facts,
    addresses: &[std::net::IpAddr],
    global: &Global,
) -> anyhow::Result<()> {
    let links = Links::new()?;
    let all = links.interfaces().await?;
    let uplinks = links.uplinks(addresses).await?;
    let details: HashMap<u32, _> = links.details().await?.into_iter().map(|it| (it.ifindex, it)).collect();
    let names: HashMap<u32, &str> = all.iter().map(|it| (it.ifindex, it.name.as_str())).collect();
    facts.prepared = all.iter().any(|link| link.name == SERVICE_DEVICE);
    for link in &all {
        let details = details.get(&link.ifindex);
        facts.links.push(Link {
            name: link.name.clone(),
            kind: link.kind.clone(),
            mtu: link.mtu,
            uplink: uplinks.iter().any(|uplink| uplink.ifindex == link.ifindex),
            xdp: details.and_then(|it| it.xdp),
            vxlan_port: details.and_then(|it| it.vxlan_port),
            addresses: link.addresses.clone(),
        });
    }
    for route in links.default_routes().await? {
        facts.default_routes.push(DefaultRoute {
            v4: route.v4,
            device: names.get(&route.ifindex).map_or_else(|| route.ifindex.to_string(), ToString::to_string),
            gateway: route.gateway,
            metric: route.metric,
        });
    }
    let attacher = Attacher::new(Mode::Tcx, &global.pins);
    for uplink in &uplinks {
        let filters = links.filters(uplink.ifindex).await?;
        for (direction, filters) in [Direction::Ingress, Direction::Egress].into_iter().zip(filters) {
            let mut programs = at_tcx(&attacher, &uplink.name, direction)?;
            // The kernel asks clsact after tcx.
            programs.extend(filters.iter().map(at_clsact));
            facts.hooks.push(Hook { device: uplink.name.clone(), direction: direction.name(), programs });
        }
    }
    Ok(())
}

fn at_tcx(attacher: &Attacher, device: &str, direction: Direction) -> anyhow::Result<Vec<Program>> {
    // A kernel that does not say is one for the rule about the kernel.
    if !features::tcx().unwrap_or(false) {
        return Ok(Vec::new());
    }
    let own = attacher.program(device, direction)?;
    let programs = tcx_programs(device, direction)?.into_iter();
    let program = |it: portolan_node::attach::Attached| Program {
        how: "tcx",
        own: own == Some(it.id),
        name: format!("program {} (id {})", it.name, it.id),
    };
    Ok(programs.map(program).collect())
}

fn at_clsact(filter: &Filter) -> Program {
    let what =
        filter.program.as_ref().map_or_else(|| filter.kind.clone(), |name| format!("{} {name}", filter.kind));
    Program { how: "clsact", name: format!("filter {what} (priority {})", filter.priority), own: filter.own }
}

fn chains(facts: &mut Facts) {
    match netfilter::chains() {
        Ok(chains) => facts.chains.extend(chains.into_iter().map(of_nftables)),
        Err(error) => noted(facts, "nftables' chains", Err(error.into())),
    }
    for (tool, family, tables) in [
        ("iptables-legacy-save", "ip", "/proc/net/ip_tables_names"),
        ("ip6tables-legacy-save", "ip6", "/proc/net/ip6_tables_names"),
    ] {
        // Without tables there is nothing to be saved, and the tool might make the kernel load its module.
        let tables = fs::read_to_string(tables).unwrap_or_default();
        if tables.trim().is_empty() {
            continue;
        }
        match Command::new(tool).output() {
            Ok(output) if output.status.success() => {
                facts.chains.extend(legacy::chains(&String::from_utf8_lossy(&output.stdout), family));
            }
            answer => {
                let why = answer.map_or_else(
                    |error| error.to_string(),
                    |output| String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                );
                facts.unread.push((
                    format!(
                        "the kernel has tables of the older iptables ({family}: {}), and {tool} did not run: {why}",
                        tables.split_whitespace().collect::<Vec<_>>().join(", ")
                    ),
                    "install iptables where the doctor runs, or run the doctor on the node itself".to_owned(),
                ));
            }
        }
    }
}

fn of_nftables(chain: netfilter::Chain) -> Chain {
    let gate = chain.base.and_then(|base| match base.hook {
        Netfilter::Input => Some(Gate::Input),
        Netfilter::Forward => Some(Gate::Forward),
        _ => None,
    });
    Chain {
        keeper: Keeper::Nft,
        family: chain.family,
        table: chain.table,
        name: chain.name,
        gate,
        drops: chain.base.is_some_and(|base| base.drops),
        // Nobody jumps to a chain that has a hook, so what uses it is its rules.
        rules: chain.uses,
    }
}

fn sockets(facts: &mut Facts) -> anyhow::Result<()> {
    let bound = Sockets::open()?.bound()?;
    let processes = processes();
    facts.sockets.extend(bound.into_iter().map(|socket| Socket {
        protocol: if socket.transport == Transport::Tcp { "TCP" } else { "UDP" },
        address: socket.address,
        port: socket.port,
        open: socket.open,
        process: processes.get(&socket.inode).cloned(),
    }));
    Ok(())
}

/// Which process has which socket, by inode. Processes that may not be looked at, or just ended, have none.
fn processes() -> HashMap<u32, (String, u32)> {
    let mut found = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let mut name = None;
        for file in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Some(inode) = fs::read_link(file.path()).ok().and_then(|link| inode(&link)) else { continue };
            let name = name.get_or_insert_with(|| {
                fs::read_to_string(process.path().join("comm")).unwrap_or_default().trim().to_owned()
            });
            found.insert(inode, (name.clone(), id));
        }
    }
    found
}

/// 4711 of `socket:[4711]`.
fn inode(link: &Path) -> Option<u32> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The values that rules look at. What the kernel does not have is left out.
fn sysctls(facts: &mut Facts) {
    let mut paths: Vec<String> = [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/ip_local_reserved_ports",
        "net/core/bpf_jit_enable",
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-ip6tables",
        "net/netfilter/nf_conntrack_count",
        "net/netfilter/nf_conntrack_max",
    ]
    .map(String::from)
    .into();
    let names = facts.links.iter().map(|link| link.name.as_str());
    for name in names.chain(["all", "default"]) {
        paths.extend(
            ["rp_filter", "route_localnet", "forwarding"].map(|key| format!("net/ipv4/conf/{name}/{key}")),
        );
        paths.extend(["accept_ra", "forwarding"].map(|key| format!("net/ipv6/conf/{name}/{key}")));
    }
    let value = |path: String| Some((fs::read_to_string(Path::new("/proc/sys").join(&path)).ok()?, path));
    let values = paths.into_iter().filter_map(value).map(|(value, path)| (path, value.trim().to_owned()));
    facts.sysctls = values.collect::<BTreeMap<_, _>>();
}

/// Virtual services in the text of `/proc/net/ip_vs`.
fn ipvs(text: &str) -> usize {
    let is_service =
        |line: &&str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind));
    text.lines().filter(is_service).count()
}

/// Names of CNI configurations, in order.
fn conflists(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_one = |name: &String| {
        Path::new(name).extension().and_then(|it| it.to_str()).is_some_and(|it| CONFIGURATIONS.contains(&it))
    };
    let mut names: Vec<String> = names.filter(is_one).collect();
    names.sort();
    names
}

/// The mount that a path belongs to, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn mount(text: &str, path: &str) -> Option<Mount> {
    let mounts = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let point = words.nth(4)?;
        let options = words.skip(1).take_while(|word| *word != "-");
        let propagates = options.into_iter().any(|it| it.starts_with("shared:") || it.starts_with("master:"));
        Path::new(path).starts_with(point).then(|| Mount { point: point.to_owned(), propagates })
    });
    // Of several at one point, the last one covers the others.
    mounts.max_by_key(|mount| mount.point.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_services_are_counted_and_headings_are_not() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> \
                    RemoteAddress:Port Forward Weight ActiveConn InActConn\nTCP  0A600001:01BB rr\n  -> \
                    C000020B:192B      Masq    1      0          0\nUDP  0A60000A:0035 rr\n";
        assert_eq!((ipvs(text), ipvs("")), (2, 0));
    }

    #[test]
    fn the_mount_of_a_directory_is_the_innermost_and_last_one() {
        let text = "\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /run rw,nosuid - tmpfs tmpfs rw
24 22 0:22 / /runner rw shared:9 - tmpfs tmpfs rw
";
        assert_eq!(mount(text, "/run/netns"), Some(Mount { point: "/run".into(), propagates: false }));
        let text = format!("{text}25 23 0:21 /netns /run/netns rw master:3 - tmpfs tmpfs rw\n");
        assert_eq!(mount(&text, "/run/netns"), Some(Mount { point: "/run/netns".into(), propagates: true }));
        assert_eq!(mount("", "/run/netns"), None);
    }

    #[test]
    fn only_files_that_runtimes_read_are_configurations() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["10-b.conflist", "05-a.conf", "nsswitch.txt", "99-c.json", "10-b.conflist.off"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(conflists(directory.path()), ["05-a.conf", "10-b.conflist", "99-c.json"]);
        assert_eq!(conflists(Path::new("/nonexistent")), Vec::<String>::new());
    }

    #[test]
    fn sockets_are_told_by_their_inode() {
        assert_eq!(inode(Path::new("socket:[4711]")), Some(4711));
        assert_eq!(inode(Path::new("pipe:[4711]")), None);
    }
}
