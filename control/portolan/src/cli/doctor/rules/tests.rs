//! Each rule on small facts.

use super::*;
use crate::cli::doctor::facts::{
    Chain, DefaultRoute, Expected, Gate, Hook, Keeper, Link, Mount, Program, Socket,
};

/// A node with one uplink, an agent that runs and two pods, on which all is well.
fn healthy() -> Facts {
    let link = |name: &str, mtu, uplink| Link { name: name.into(), mtu, uplink, ..Link::default() };
    let mut eth0 = link("eth0", 1500, true);
    eth0.addresses = vec!["192.0.2.11/24".parse().unwrap(), "2001:db8:1::11/64".parse().unwrap()];
    let sysctls = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/eth0/rp_filter", "1"),
        ("net/ipv4/conf/eth0/forwarding", "1"),
        ("net/ipv4/conf/eth0/route_localnet", "0"),
        ("net/ipv6/conf/eth0/forwarding", "1"),
        ("net/ipv6/conf/eth0/accept_ra", "2"),
        ("net/ipv4/conf/portolan0/rp_filter", "0"),
        ("net/ipv4/ip_local_reserved_ports", "8080,10240-32767"),
        ("net/core/bpf_jit_enable", "1"),
    ];
    Facts {
        expected: Expected {
            node_ports: (30_000, 32_767),
            masquerade: (10_240, 29_999),
            metrics_port: 10_249,
            health_port: 10_256,
            overlay: None,
            mtu: 0,
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            cni_conf_dir: "/etc/cni/net.d".into(),
        },
        prepared: true,
        running: true,
        links: vec![
            link("lo", 65_536, false),
            eth0,
            link("portolan0", 1500, false),
            link("ptl0123456789", 1500, false),
        ],
        default_routes: vec![route("eth0", 0)],
        conflists: vec!["05-portolan.conflist".into()],
        sysctls: sysctls.map(|(path, value)| (path.to_owned(), value.to_owned())).into(),
        hooks: vec![hook(vec![program("tcx", "program from_uplink (id 7)", true)])],
        netns_mount: Some(Mount { point: "/run".into(), propagates: true }),
        sockets: vec![
            socket("TCP", 10_249, true, Some("portolan")),
            socket("TCP", 10_256, true, None),
            socket("TCP", 10_250, true, Some("kubelet")),
            socket("TCP", 10_250, false, Some("kubelet")),
            socket("TCP", 40_000, false, Some("kubelet")),
        ],
        ..Facts::default()
    }
}

fn route(device: &str, metric: u32) -> DefaultRoute {
    DefaultRoute { v4: true, device: device.into(), gateway: None, metric }
}

fn hook(programs: Vec<Program>) -> Hook {
    Hook { device: "eth0".into(), direction: "ingress", programs }
}

fn program(how: &'static str, name: &str, own: bool) -> Program {
    Program { how, name: name.into(), own }
}

fn socket(protocol: &'static str, port: u16, open: bool, process: Option<&str>) -> Socket {
    let process = process.map(|name| (name.to_owned(), 731));
    Socket { protocol, address: [0; 4].into(), port, open, process }
}

fn chain(keeper: Keeper, family: &'static str, table: &str, name: &str) -> Chain {
    let (table, name) = (table.to_owned(), name.to_owned());
    Chain { keeper, family, table, name, gate: None, drops: false, rules: 3 }
}

fn set(facts: &mut Facts, path: &str, value: &str) {
    facts.sysctls.insert(path.into(), value.into());
}

/// What is not well after a change of the healthy node, as `severity check: found` with the remedy behind.
fn told(change: impl FnOnce(&mut Facts)) -> Vec<String> {
    let mut facts = healthy();
    change(&mut facts);
    let bad = examine(&facts).into_iter().filter(|finding| finding.severity != Severity::Ok);
    bad.map(|it| {
        assert!(!it.why.is_empty() && !it.remedy.is_empty(), "{it:?}");
        format!("{:?} {}: {} => {}", it.severity, it.check, it.found, it.remedy)
    })
    .collect()
}

/// Exactly one finding, which begins like this and has these words in it.
fn one(beginning: &str, words: &[&str], change: impl FnOnce(&mut Facts)) {
    let told = told(change);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].starts_with(beginning), "{told:#?}");
    for word in words {
        assert!(told[0].contains(word), "{word} is not in {told:#?}");
    }
}

#[test]
fn a_healthy_node_has_a_line_for_each_rule_and_no_fault() {
    let findings = examine(&healthy());
    assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:#?}");
    for rule in RULES {
        assert!(findings.iter().any(|finding| finding.check == rule.name), "{}", rule.name);
    }
}

#[test]
fn the_worst_comes_first() {
    let mut facts = healthy();
    facts.ipvs = 3;
    set(&mut facts, "net/core/bpf_jit_enable", "0");
    let severities: Vec<_> = examine(&facts).iter().map(|finding| finding.severity).collect();
    assert_eq!(severities[..2], [Severity::Error, Severity::Warning]);
    assert!(severities.is_sorted());
}

#[test]
fn kube_proxys_chains_are_told_by_who_keeps_them() {
    one(
        "Error kube-proxy: kube-proxy's rules in nftables, table ip nat: KUBE-SERVICES, KUBE-SVC-ABC",
        &["`iptables-nft-save | grep -v KUBE- | iptables-nft-restore`"],
        |facts| {
            facts.chains = ["KUBE-SERVICES", "KUBE-SVC-ABC", "PREROUTING"]
                .map(|it| chain(Keeper::Nft, "ip", "nat", it))
                .into();
        },
    );
    one(
        "Error kube-proxy: kube-proxy's rules in iptables-legacy (ip6), table nat",
        &["`ip6tables-legacy-save", "delete daemonset kube-proxy"],
        |facts| {
            facts.chains = vec![chain(Keeper::Legacy, "ip6", "nat", "KUBE-NODEPORTS")];
        },
    );
    one(
        "Error kube-proxy: kube-proxy's rules in nftables, table ip6 kube-proxy: services",
        &["`nft delete table ip6 kube-proxy`"],
        |facts| {
            facts.chains = vec![chain(Keeper::Nft, "ip6", "kube-proxy", "services")];
        },
    );
    one("Error kube-proxy: 3 virtual services", &["`ipvsadm --clear`"], |facts| facts.ipvs = 3);
    one("Error kube-proxy: device kube-ipvs0", &["`ip link delete kube-ipvs0`"], |facts| {
        // Its addresses are single ones, which no route leads to.
        let addresses = vec!["10.96.0.1/32".parse().unwrap()];
        facts.links.push(Link { name: "kube-ipvs0".into(), addresses, ..Link::default() });
    });
}

#[test]
fn the_kubelets_own_chains_are_no_fault() {
    let own = [
        "KUBE-FIREWALL",
        "KUBE-KUBELET-CANARY",
        "KUBE-IPTABLES-HINT",
        "KUBE-MARK-DROP",
        "KUBE-MARK-MASQ",
        "KUBE-POSTROUTING",
    ];
    let told = told(|facts| facts.chains = own.map(|it| chain(Keeper::Nft, "ip", "mangle", it)).into());
    assert!(told.is_empty(), "{told:#?}");
}

#[test]
fn what_other_plugins_left_is_told_with_whose_it_is() {
    one(
        "Warning other-cni: rules of flannel in nftables, table ip nat: FLANNEL-POSTRTG",
        &["grep -v FLANNEL-"],
        |facts| {
            facts.chains = vec![chain(Keeper::Nft, "ip", "nat", "FLANNEL-POSTRTG")];
        },
    );
    one(
        "Warning other-cni: rules of kube-router in iptables-legacy (ip), table filter",
        &["grep -v KUBE-ROUTER-"],
        |facts| {
            facts.chains = vec![chain(Keeper::Legacy, "ip", "filter", "KUBE-ROUTER-FORWARD")];
        },
    );
    one(
        "Warning other-cni: devices of Cilium: cilium_host => ",
        &["`ip link delete cilium_host`"],
        |facts| {
            facts.links.push(Link { name: "cilium_host".into(), ..Link::default() });
        },
    );
    let pods = ["cali1", "cali2", "cali3", "cali4", "cali5"];
    one(
        "Warning other-cni: devices of Calico: cali1, cali2, cali3, cali4 and 1 more",
        &["restart the machine"],
        |facts| {
            facts.links.extend(pods.map(|name| Link { name: name.into(), ..Link::default() }));
        },
    );
}

#[test]
fn a_configuration_before_ours_is_an_error_and_one_behind_is_none() {
    one(
        "Error cni-config: /etc/cni/net.d/00-other.conflist comes before",
        &["`mv /etc/cni/net.d/00-other.conflist "],
        |facts| {
            facts.conflists.insert(0, "00-other.conflist".into());
        },
    );
    assert!(told(|facts| facts.conflists.push("10-other.conflist".into())).is_empty());
    one(
        "Warning cni-config: 10-other.conflist in /etc/cni/net.d, and no 05-portolan.conflist",
        &["move it out"],
        |facts| {
            facts.conflists = vec!["10-other.conflist".into()];
        },
    );
}

#[test]
fn forwarding_is_a_fault_only_once_the_agent_has_set_it() {
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/eth0/forwarding"] {
        one(&format!("Error forwarding: {} is 0", dotted(path)), &["sysctl -w"], |facts| {
            set(facts, path, "0")
        });
        let before = told(|facts| {
            facts.prepared = false;
            set(facts, path, "0");
        });
        assert!(before.is_empty(), "{before:#?}");
    }
}

#[test]
fn a_reverse_path_filter_is_judged_by_where_it_is() {
    let all = "net/ipv4/conf/all/rp_filter";
    one(
        "Error rp-filter: net.ipv4.conf.all.rp_filter is 1",
        &["`sysctl -w net.ipv4.conf.all.rp_filter=0`"],
        |facts| set(facts, all, "1"),
    );
    one("Warning rp-filter: net.ipv4.conf.all.rp_filter is 1", &["/etc/sysctl.d"], |facts| {
        facts.prepared = false;
        set(facts, all, "1");
    });
    one("Error rp-filter: net.ipv4.conf.portolan0.rp_filter is 2", &["portolan0.rp_filter=0"], |facts| {
        set(facts, "net/ipv4/conf/portolan0/rp_filter", "2");
    });
    // The healthy node's only uplink is strict, which is fine.
    one("Warning rp-filter: net.ipv4.conf.eth0.rp_filter is 1 (strict)", &["eth0.rp_filter=2"], |facts| {
        facts.links.push(Link { name: "eth1".into(), mtu: 1500, uplink: true, ..Link::default() });
    });
}

#[test]
fn other_sysctls_are_told_with_the_value_to_set() {
    one("Warning accept-ra: net.ipv6.conf.eth0.accept_ra is 1", &["accept_ra=2"], |facts| {
        set(facts, "net/ipv6/conf/eth0/accept_ra", "1")
    });
    one("Warning route-localnet: net.ipv4.conf.all.route_localnet is 1", &["route_localnet=0"], |facts| {
        set(facts, "net/ipv4/conf/all/route_localnet", "1");
    });
    one("Warning bpf-jit", &["net.core.bpf_jit_enable=1"], |facts| {
        set(facts, "net/core/bpf_jit_enable", "0")
    });
    one(
        "Warning bridge-netfilter: net.bridge.bridge-nf-call-iptables is 1, and uplink eth0 is a bridge",
        &["=0"],
        |facts| {
            set(facts, "net/bridge/bridge-nf-call-iptables", "1");
            facts.links[1].kind = Some("bridge".into());
        },
    );
    assert!(told(|facts| set(facts, "net/bridge/bridge-nf-call-iptables", "1")).is_empty());
}

#[test]
fn what_cannot_be_seen_is_not_said_to_be_well() {
    let mut facts = healthy();
    facts.sysctls.remove("net/core/bpf_jit_enable");
    let findings = examine(&facts);
    let jit = findings.iter().find(|it| it.check == "bpf-jit").unwrap();
    assert!(jit.severity == Severity::Ok && jit.found.contains("is not told"), "{jit:?}");
}

#[test]
fn an_interface_with_a_dot_in_its_name_is_named_as_sysctl_takes_it() {
    assert_eq!(dotted("net/ipv4/conf/eth0.7/rp_filter"), "net.ipv4.conf.eth0/7.rp_filter");
}

#[test]
fn ports_that_are_not_reserved_are_told() {
    let path = "net/ipv4/ip_local_reserved_ports";
    one("Error reserved-ports: NodePorts 30000-32767 are not all in", &["30000-32767"], |facts| {
        set(facts, path, "10240-30000")
    });
    let both = told(|facts| set(facts, path, ""));
    assert_eq!(both.len(), 2, "{both:#?}");
    let before = told(|facts| {
        facts.prepared = false;
        set(facts, path, "");
    });
    assert!(before.is_empty(), "{before:#?}");
}

#[test]
fn the_kernels_connection_table_is_a_fault_only_when_almost_full() {
    let with = |used: &'static str| {
        told(|facts| {
            set(facts, "net/netfilter/nf_conntrack_count", used);
            set(facts, "net/netfilter/nf_conntrack_max", "1000");
        })
    };
    assert!(with("899").is_empty());
    let full = with("900");
    assert!(full.len() == 1 && full[0].contains("nf_conntrack_max=2000"), "{full:#?}");
}

#[test]
fn programs_before_ours_are_told_and_those_behind_noted() {
    let with = |programs: Vec<Program>| told(|facts| facts.hooks = vec![hook(programs)]);
    let ours = || program("tcx", "program from_uplink (id 7)", true);
    let theirs = |how| program(how, "program meter (id 3)", false);
    assert!(with(vec![ours(), theirs("tcx"), theirs("clsact")]).is_empty());
    let before = with(vec![theirs("tcx"), ours()]);
    assert!(
        before.len() == 1
            && before[0].contains("tcx program meter (id 3) on eth0 ingress comes before Portolan's"),
        "{before:#?}"
    );
    assert!(before[0].contains("TCX_NEXT"), "{before:#?}");
    let first = with(vec![theirs("clsact")]);
    assert!(first.len() == 1 && first[0].contains("Portolan's will come after it"), "{first:#?}");
    assert!(first[0].contains("`tc filter show dev eth0 ingress`"), "{first:#?}");
    one("Warning xdp: XDP program 12 on uplink eth0", &["`ip link set dev eth0 xdp off`"], |facts| {
        facts.links[1].xdp = Some(12)
    });
}

#[test]
fn what_the_agent_lacks_is_an_error_with_its_own_remedy() {
    one(
        "Error kernel: no bpffs is mounted at /sys/fs/bpf => run `mount -t bpf bpf /sys/fs/bpf`",
        &[],
        |facts| {
            facts.lacking =
                vec!["no bpffs is mounted at /sys/fs/bpf: run `mount -t bpf bpf /sys/fs/bpf`".into()];
        },
    );
    one("Warning netns-mount: the mount /run", &["HostToContainer"], |facts| {
        facts.netns_mount = Some(Mount { point: "/run".into(), propagates: false });
    });
    one("Warning readable: sockets", &["as root"], |facts| {
        facts.unread = vec![("sockets".into(), "run it as root".into())]
    });
}

#[test]
fn who_has_the_agents_ports_is_named() {
    one("Error ports: kube-proxy (process 731) at TCP 0.0.0.0:10249", &["--metrics"], |facts| {
        facts.sockets = vec![socket("TCP", 10_249, true, Some("kube-proxy"))];
    });
    // Nobody answers, so that a socket without a name is somebody else's.
    one(
        "Error ports: a process that cannot be told at TCP 0.0.0.0:10256",
        &["--healthz-bind-address"],
        |facts| {
            facts.running = false;
            facts.sockets = vec![socket("TCP", 10_256, true, None)];
        },
    );
    one("Warning ports: bird (process 731) at TCP 0.0.0.0:179 speaks BGP", &["before Portolan"], |facts| {
        facts.sockets.push(socket("TCP", 179, true, Some("bird")));
    });
    one("Warning ports: speaker (process 731) at TCP 0.0.0.0:7946", &["metallb-system"], |facts| {
        facts.sockets.push(socket("TCP", 7946, true, Some("speaker")));
    });
    // Others use that port as well.
    assert!(told(|facts| facts.sockets.push(socket("TCP", 7946, true, Some("dockerd")))).is_empty());
}

#[test]
fn the_overlays_port_is_of_interest_only_with_an_overlay() {
    let vxlan = || Link { name: "vx".into(), vxlan_port: Some(8472), ..Link::default() };
    assert!(told(|facts| facts.links.push(vxlan())).is_empty());
    let overlay = |facts: &mut Facts| {
        facts.expected.overlay = Some((8472, 50));
        for link in facts.links.iter_mut().filter(|link| link.is_own()) {
            link.mtu = 1450;
        }
    };
    one(
        "Error ports: VXLAN device vx has UDP port 8472",
        &["`ip link delete vx`", "--overlay-port"],
        |facts| {
            overlay(facts);
            facts.links.push(vxlan());
        },
    );
    one("Error ports: flanneld (process 731) at UDP 0.0.0.0:8472", &["--overlay-port"], |facts| {
        overlay(facts);
        facts.sockets.push(socket("UDP", 8472, true, Some("flanneld")));
    });
    let own = Link { name: "portolan2".into(), mtu: 1450, vxlan_port: Some(8472), ..Link::default() };
    let fine = told(|facts| {
        overlay(facts);
        facts.links.push(own);
        facts.sockets.push(socket("UDP", 8472, true, None));
    });
    assert!(fine.is_empty(), "{fine:#?}");
}

#[test]
fn sockets_at_ports_that_are_given_away_are_named() {
    one(
        "Warning sockets: listening at NodePorts (30000-32767): registry (process 731) at TCP 0.0.0.0:30500",
        &["--node-port-range"],
        |facts| {
            facts.sockets.push(socket("TCP", 30_500, true, Some("registry")));
            facts.sockets.push(socket("TCP", 30_500, false, Some("registry")));
        },
    );
    one(
        "Warning sockets: connections from NodePorts (30000-32767): curl (process 731) at TCP 0.0.0.0:30001",
        &["restart"],
        |facts| {
            facts.sockets.push(socket("TCP", 30_001, false, Some("curl")));
        },
    );
    // These are left to whoever has them.
    let mut facts = healthy();
    facts.sockets.push(socket("TCP", 20_000, false, Some("curl")));
    let noted = |it: &Finding| {
        it.severity == Severity::Ok && it.found.contains("curl (process 731) at TCP 0.0.0.0:20000")
    };
    assert!(examine(&facts).iter().any(noted));
    // The agent's own: ports that say how healthy services are.
    assert!(told(|facts| facts.sockets.push(socket("TCP", 31_000, true, Some("portolan")))).is_empty());
}

#[test]
fn packets_that_are_too_long_for_the_uplink_are_told() {
    one(
        "Warning network: MTU above what the uplinks carry (1500): ptl0123456789 (9000)",
        &["start these pods anew"],
        |facts| facts.links[3].mtu = 9000,
    );
    one(
        "Warning network: MTU above what the uplinks carry (1450): ptl0123456789 (1500)",
        &["--routing-mode"],
        |facts| {
            facts.expected.overlay = Some((8472, 50));
        },
    );
    one("Warning network: --mtu 9000 is more than the uplinks carry (1500)", &["--mtu 1500"], |facts| {
        facts.expected.mtu = 9000
    });
    one("Warning network: no uplink", &["default route"], |facts| {
        facts.links[1].uplink = false;
        facts.default_routes.clear();
    });
}

#[test]
fn default_routes_of_one_metric_are_told_and_of_two_are_fine() {
    one("Warning network: 2 default routes of IPv4 with metric 0: eth0, eth1", &["metric 200"], |facts| {
        facts.default_routes.push(route("eth1", 0));
    });
    assert!(told(|facts| facts.default_routes.push(route("eth1", 100))).is_empty());
    assert!(
        told(|facts| facts.default_routes.push(DefaultRoute { v4: false, ..route("eth1", 0) })).is_empty()
    );
}

#[test]
fn address_ranges_that_meet_a_connected_network_are_errors() {
    let with = |address: &str| {
        let link = Link { name: "br7".into(), addresses: vec![address.parse().unwrap()], ..Link::default() };
        told(|facts| facts.links.push(link))
    };
    for (address, wanted) in [
        ("10.244.0.1/16", "podCIDR 10.244.1.0/24 overlaps 10.244.0.1/16 of br7"),
        ("10.244.1.129/25", "podCIDR 10.244.1.0/24 overlaps 10.244.1.129/25 of br7"),
        ("10.100.0.1/24", "service CIDR 10.96.0.0/12 overlaps 10.100.0.1/24 of br7"),
    ] {
        let told = with(address);
        assert!(told.len() == 1 && told[0].starts_with(&format!("Error network: {wanted}")), "{told:#?}");
        assert!(told[0].contains(&format!("`ip address delete {address} dev br7`")), "{told:#?}");
    }
    for address in ["10.245.0.1/16", "10.96.0.10/32", "fd00::1/64"] {
        assert!(with(address).is_empty(), "{address}");
    }
}

#[test]
fn a_policy_that_drops_is_an_error_where_nothing_is_accepted_and_a_warning_else() {
    let dropping = |gate, rules| Chain {
        gate: Some(gate),
        drops: true,
        rules,
        ..chain(Keeper::Nft, "ip", "filter", "FORWARD")
    };
    one(
        "Error firewall: nftables chain ip filter FORWARD drops everything",
        &["`nft insert rule ip filter FORWARD iifname \"ptl*\" accept`"],
        |facts| {
            facts.chains = vec![dropping(Gate::Forward, 0)];
        },
    );
    one(
        "Warning firewall: nftables chain ip filter FORWARD drops what none of its 4 rules accepts",
        &["unless one of them does"],
        |facts| {
            facts.chains = vec![dropping(Gate::Forward, 4)];
        },
    );
    one(
        "Warning firewall",
        &[
            "`iptables-legacy -I INPUT -p tcp --dport 10256 -j ACCEPT`",
            "`iptables-legacy -I INPUT -p udp --dport 8472 -j ACCEPT`",
        ],
        |facts| {
            facts.expected.overlay = Some((8472, 0));
            facts.chains =
                vec![Chain { keeper: Keeper::Legacy, name: "INPUT".into(), ..dropping(Gate::Input, 1) }];
        },
    );
    // A policy of another hook is nobody's business here.
    assert!(told(|facts| facts.chains = vec![Chain { gate: None, ..dropping(Gate::Input, 0) }]).is_empty());
}
