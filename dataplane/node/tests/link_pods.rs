//! Pods' interfaces in real network namespaces, with iproute2 and ping as the oracle. Needs root.

mod link_support;

use std::{
    fs::File,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use link_support::{NODE_V4, NODE_V6, Node, Space, nothing, pod, v4, v6};
use portolan_node::link::{CreateError, Difference, Error, Netns, PodLinkSpec, Side};
use serde_json::Value;

#[tokio::test]
async fn a_pod_has_the_addresses_routes_and_neighbours_of_the_layout() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    let link = node.links.create_pod(&spec, nothing).await.unwrap();

    let eth0 = &space.ip("addr show dev eth0")[0];
    assert_eq!(eth0["ifindex"], link.pod_ifindex);
    assert_eq!(eth0["address"], "02:00:00:00:00:01");
    assert_eq!(eth0["mtu"], 1450);
    assert_eq!(eth0["operstate"], "UP");
    let addresses: Vec<String> = values(eth0["addr_info"].as_array().unwrap(), &["local", "prefixlen"]);
    assert_eq!(addresses, ["10.77.0.1 32", "fd77::1 128"], "no link-local address, none tentative");
    assert!(eth0["addr_info"][1].get("tentative").is_none(), "{eth0}");
    let routes = values(&space.ip("-4 route"), &["dst", "gateway", "dev", "scope"]);
    assert_eq!(routes, ["default 169.254.1.1 eth0 -", "169.254.1.1 - eth0 link"]);
    let routes = values(&space.ip("-6 route"), &["dst", "gateway", "dev"]);
    assert_eq!(routes, ["fd77::1 - eth0", "fe80::1 - eth0", "default fe80::1 eth0"]);
    let mut neighbours = values(&space.ip("neigh show nud permanent"), &["dst", "dev", "lladdr"]);
    neighbours.sort();
    assert_eq!(neighbours, ["169.254.1.1 eth0 02:70:6f:72:74:6c", "fe80::1 eth0 02:70:6f:72:74:6c"]);
    assert!(space.pings("127.0.0.1"), "lo is up");

    let host = &node.space.ip("addr show dev ptl0000000001")[0];
    assert_eq!(host["ifindex"], link.ifindex);
    assert_eq!(host["address"], "02:70:6f:72:74:6c");
    assert_eq!(host["mtu"], 1450);
    assert_eq!(host["addr_info"].as_array().unwrap().len(), 0);
    let routes = values(&node.space.ip("-4 route show dev ptl0000000001"), &["dst", "scope"]);
    assert_eq!(routes, ["10.77.0.1 link"]);
    assert_eq!(values(&node.space.ip("-6 route show dev ptl0000000001"), &["dst"]), ["fd77::1"]);
    let mut neighbours = values(&node.space.ip("neigh show dev ptl0000000001"), &["dst", "lladdr"]);
    neighbours.sort();
    assert_eq!(neighbours, ["10.77.0.1 02:00:00:00:00:01", "fd77::1 02:00:00:00:00:01"]);
}

#[tokio::test]
async fn a_pods_host_side_has_its_sysctls_in_the_nodes_namespace() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    node.links.create_pod(&spec, nothing).await.unwrap();
    for (path, value) in [
        ("ipv4/conf/ptl0000000001/rp_filter", "0"),
        ("ipv4/conf/ptl0000000001/accept_local", "1"),
        ("ipv4/conf/ptl0000000001/forwarding", "1"),
        ("ipv4/conf/ptl0000000001/proxy_arp", "0"),
        ("ipv4/conf/ptl0000000001/send_redirects", "0"),
        ("ipv4/conf/ptl0000000001/route_localnet", "0"),
        ("ipv6/conf/ptl0000000001/accept_ra", "0"),
        ("ipv6/conf/ptl0000000001/forwarding", "1"),
    ] {
        assert_eq!(node.space.sysctl(&format!("net/{path}")), value, "{path}");
    }
    assert_eq!(space.sysctl("net/ipv6/conf/eth0/accept_dad"), "0");
    assert_eq!(space.sysctl("net/ipv6/conf/eth0/accept_ra"), "0");
}

#[tokio::test]
async fn node_and_pod_reach_each_other_and_pods_reach_pods_by_plain_kernel_routing() {
    let node = Node::new().await;
    let ((one, spec_one), (two, spec_two)) = (pod(1), pod(2));
    node.links.create_pod(&spec_one, nothing).await.unwrap();
    node.links.create_pod(&spec_two, nothing).await.unwrap();
    for (from, to) in [
        (&node.space, v4(1)),
        (&node.space, v6(1)),
        (&one, NODE_V4.into()),
        (&one, NODE_V6.into()),
        (&one, v4(2)),
        (&one, v6(2)),
        (&two, v4(1)),
        (&two, v6(1)),
    ] {
        assert!(from.pings(&to), "no answer from {to}\n{}", node.space.run("ip -s link"));
    }
}

#[tokio::test]
async fn a_pod_whose_runtime_switched_ipv6_off_still_gets_its_ipv6_address() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    space.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    node.links.create_pod(&spec, nothing).await.unwrap();
    assert!(node.space.pings(&v6(1)));
}

#[tokio::test]
async fn both_ends_are_down_while_programs_are_attached() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    let mut seen = None;
    let link = node
        .links
        .create_pod(&spec, async |ifindex| {
            let up = |space: &Space, name: &str| {
                let link = &space.ip(&format!("link show dev {name}"))[0];
                (link["ifindex"].clone(), link["flags"].to_string().contains("\"UP\""))
            };
            seen = Some((ifindex, up(&node.space, "ptl0000000001"), up(&space, "eth0")));
            nothing(ifindex).await
        })
        .await
        .unwrap();
    let (ifindex, host, pod) = seen.unwrap();
    assert_eq!(ifindex, link.ifindex);
    assert_eq!(host, (link.ifindex.into(), false));
    assert_eq!(pod, (link.pod_ifindex.into(), false));
}

#[tokio::test]
async fn a_failing_attachment_leaves_nothing() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    let before =
        (node.space.names(), space.names(), node.space.run("ip route"), node.space.run("ip -6 route"));
    let result = node.links.create_pod(&spec, async |_| Err("no programs")).await;
    assert!(matches!(result, Err(CreateError::Attach("no programs"))), "{result:?}");
    let after =
        (node.space.names(), space.names(), node.space.run("ip route"), node.space.run("ip -6 route"));
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_creation_that_is_given_up_half_way_leaves_nothing() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    let create = node.links.create_pod(&spec, async |_| {
        std::future::pending::<()>().await;
        Ok::<_, std::convert::Infallible>(())
    });
    let appeared = eventually("the interface appears", || space.names().contains(&"eth0".into()));
    tokio::select! {
        _ = create => panic!("the attachment never ends"),
        () = appeared => {}
    }
    eventually("the interface goes", || !node.space.names().contains(&"ptl0000000001".into())).await;
    assert_eq!(space.names(), ["lo"]);
}

#[tokio::test]
async fn a_failure_after_attachment_leaves_nothing() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    // Somebody takes the pod's interface away while programs are attached.
    let result = node
        .links
        .create_pod(&spec, async |_| {
            space.run("ip link delete eth0");
            Ok::<_, std::convert::Infallible>(())
        })
        .await;
    assert!(matches!(result, Err(CreateError::Link(_))), "{result:?}");
    assert!(!node.space.names().contains(&spec.host_name));
    assert_eq!(node.links.routes().await.unwrap(), []);
}

#[tokio::test]
async fn creating_twice_is_refused_and_the_first_stays_intact() {
    let node = Node::new().await;
    let (_space, spec) = pod(1);
    node.links.create_pod(&spec, nothing).await.unwrap();
    let error = node.links.create_pod(&spec, nothing).await.unwrap_err().to_string();
    assert!(error.contains("ptl0000000001") && error.contains("node's"), "{error}");

    let other = PodLinkSpec { host_name: "ptl0000000002".into(), ..spec.clone() };
    let error = node.links.create_pod(&other, nothing).await.unwrap_err().to_string();
    assert!(error.contains("eth0") && error.contains("pod's"), "{error}");

    node.links.check_pod(&spec).await.unwrap();
    assert!(node.space.pings(&v4(1)));
    assert!(!node.space.names().contains(&other.host_name));
}

#[tokio::test]
async fn deleting_is_idempotent_and_takes_routes_along() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    node.links.create_pod(&spec, nothing).await.unwrap();
    node.links.delete_pod(&spec.host_name).await.unwrap();
    assert_eq!(space.names(), ["lo"]);
    assert!(!node.space.names().contains(&spec.host_name));
    assert_eq!(node.links.routes().await.unwrap(), []);
    node.links.delete_pod(&spec.host_name).await.unwrap();
}

#[tokio::test]
async fn only_names_of_pods_interfaces_can_be_deleted() {
    let node = Node::new().await;
    for name in ["up0", "lo", "ptl", "ptl000000000g", "portolan0", "../../x"] {
        let result = node.links.delete_pod(name).await;
        assert!(matches!(result, Err(Error::InvalidName { .. })), "{name}: {result:?}");
    }
    assert!(node.space.names().contains(&"up0".into()));
}

#[tokio::test]
async fn a_check_names_what_differs() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    assert_eq!(
        differences(&node, &spec).await,
        [Difference::Missing(Side::Host), Difference::Missing(Side::Pod)]
    );
    node.links.create_pod(&spec, nothing).await.unwrap();
    assert_eq!(differences(&node, &spec).await, []);

    space.run("ip addr del fd77::1/128 dev eth0");
    assert_eq!(differences(&node, &spec).await, [Difference::Address(spec.addresses[1])]);
    space.run("ip addr add fd77::1/128 dev eth0 nodad");
    space.run("ip link set eth0 mtu 1400");
    assert_eq!(differences(&node, &spec).await, [Difference::Mtu(1450, 1400)]);
    space.run("ip link set eth0 mtu 1450");
    space.run("ip -6 neigh del fe80::1 dev eth0");
    assert_eq!(
        differences(&node, &spec).await,
        [Difference::Neighbour(Side::Pod, "fe80::1".parse().unwrap())]
    );
    space.run("ip -6 neigh add fe80::1 lladdr 02:70:6f:72:74:6c nud permanent dev eth0");
    node.space.run("ip route del 10.77.0.1");
    let found = differences(&node, &spec).await;
    assert!(
        matches!(found[..], [Difference::Route(Side::Host, route)]
        if route.prefix.ip() == spec.addresses[0]),
        "{found:?}"
    );
    node.space.run("ip route add 10.77.0.1 dev ptl0000000001 scope link proto 112");
    space.run("ip link set eth0 down");
    assert!(differences(&node, &spec).await.contains(&Difference::Down(Side::Pod)));
    node.space.run("ip link set ptl0000000001 address 02:00:00:00:00:99");
    assert!(differences(&node, &spec).await.contains(&Difference::Mac(Side::Host)));
}

#[tokio::test]
async fn hostile_descriptions_are_refused_before_anything_is_made() {
    let node = Node::new().await;
    let (space, good) = pod(1);
    let with = |change: fn(&mut PodLinkSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec
    };
    for spec in [
        with(|spec| spec.pod_ifname = "../../etc/x".into()),
        with(|spec| spec.pod_ifname = "sixteencharacter".into()),
        with(|spec| spec.pod_ifname = "all".into()),
        with(|spec| spec.pod_ifname = "eth%d".into()),
        with(|spec| spec.pod_ifname = String::new()),
        with(|spec| spec.host_name = "ptlx".into()),
        with(|spec| spec.host_name = "eth0".into()),
        with(|spec| spec.addresses.clear()),
        with(|spec| spec.addresses = vec!["127.0.0.1".parse().unwrap()]),
        with(|spec| spec.addresses = vec!["169.254.1.1".parse().unwrap()]),
        with(|spec| spec.addresses = vec!["ff02::1".parse().unwrap()]),
        with(|spec| spec.mac = [1, 0, 0x5e, 0, 0, 1]),
        with(|spec| spec.mtu = 1279),
        with(|spec| spec.mtu = 65536),
    ] {
        let attach = async |_| -> Result<(), ()> { panic!("attached") };
        assert!(node.links.create_pod(&spec, attach).await.is_err(), "{spec:?}");
    }
    assert_eq!(space.names(), ["lo"]);
    assert_eq!(node.space.names(), ["lo", "up1", "up0"]);
}

#[tokio::test]
async fn what_is_not_a_network_namespace_is_refused() {
    let file = File::open("/proc/self/ns/mnt").unwrap();
    assert!(matches!(Netns::from_fd(OwnedFd::from(file)), Err(Error::NotANetns { .. })));
    for path in ["/dev/null", "/etc/passwd", "/proc/self/ns/uts"] {
        let error = Netns::open(path).unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
        assert!(matches!(error, Error::NotANetns { .. }), "{path}");
    }
    assert!(matches!(Netns::open("/run/netns/there/is/none"), Err(Error::Netns { .. })));

    let node = Node::new().await;
    let (_, spec) = pod(1);
    let spec = PodLinkSpec { netns: node.space.0.clone(), ..spec };
    let result = node.links.create_pod(&spec, nothing).await;
    assert!(matches!(result, Err(CreateError::Link(Error::NodeNetns))), "{result:?}");
}

#[tokio::test]
async fn a_pod_whose_namespace_is_dropped_takes_the_host_side_along() {
    let node = Node::new().await;
    let (space, spec) = pod(1);
    node.links.create_pod(&spec, nothing).await.unwrap();
    drop((space, spec));
    eventually("the host side goes", || !node.space.names().contains(&"ptl0000000001".into())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_parallel_creations_all_succeed() {
    let node = Node::new().await;
    let pods: Vec<_> = (1..=50).map(pod).collect();
    let tasks: Vec<_> = pods
        .iter()
        .map(|(_, spec)| {
            let (links, spec) = (node.links.clone(), spec.clone());
            tokio::spawn(async move { links.create_pod(&spec, nothing).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    for (_, spec) in &pods {
        node.links.check_pod(spec).await.unwrap();
    }
    assert!(pods[0].0.pings(&v4(50)));
}

#[tokio::test]
async fn uninstalling_removes_what_is_ours_and_nothing_else() {
    let node = Node::new().await;
    node.space.run("ip route add 10.99.0.0/16 via 192.0.2.99 proto static");
    let before = (node.space.names(), node.space.run("ip route"), node.space.run("ip -6 route"));
    let (_space, spec) = pod(1);
    node.links.create_pod(&spec, nothing).await.unwrap();
    node.links.ensure_service_device(1450).await.unwrap();
    let native = [("10.1.0.0/24".parse().unwrap(), "192.0.2.9".parse().unwrap())];
    node.links.ensure_routes(&native, &["10.77.0.0/24".parse().unwrap()]).await.unwrap();
    node.links.uninstall().await.unwrap();
    assert_eq!(before, (node.space.names(), node.space.run("ip route"), node.space.run("ip -6 route")));
    node.links.uninstall().await.unwrap();
}

/// Prints how long making and removing an interface takes; nothing to assert on a shared machine.
#[tokio::test]
#[ignore = "a measurement"]
async fn how_long_a_creation_takes() {
    let node = Node::new().await;
    let (mut creations, mut deletions) = (Vec::new(), Vec::new());
    for n in 1..=200 {
        let (_space, spec) = pod(n);
        let start = Instant::now();
        node.links.create_pod(&spec, nothing).await.unwrap();
        creations.push(start.elapsed());
        let start = Instant::now();
        node.links.delete_pod(&spec.host_name).await.unwrap();
        deletions.push(start.elapsed());
    }
    let pods: Vec<_> = (1..=50).map(pod).collect();
    for (_, spec) in &pods {
        node.links.create_pod(spec, nothing).await.unwrap();
    }
    let start = Instant::now();
    let names = pods.iter().map(|(_, spec)| spec.host_name.clone());
    let tasks = names.map(|name| {
        let links = node.links.clone();
        tokio::spawn(async move { links.delete_pod(&name).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    println!("delete 50 at once: {:?}", start.elapsed());
    for (what, mut times) in [("create", creations), ("delete", deletions)] {
        times.sort();
        println!("{what}: p50 {:?}, p99 {:?}, max {:?}", times[100], times[197], times[199]);
    }
}

/// Polls until `condition` holds or five seconds have passed.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "not within five seconds: {what}");
        tokio::task::yield_now().await;
    }
}

async fn differences(node: &Node, spec: &PodLinkSpec) -> Vec<Difference> {
    match node.links.check_pod(spec).await {
        Ok(mtu) => {
            assert_eq!(mtu, spec.mtu, "the MTU that CHECK tells");
            Vec::new()
        }
        Err(Error::Mismatch { differences, .. }) => differences,
        Err(error) => panic!("{error}"),
    }
}

/// One line per object: the values of these keys, `-` for none.
fn values(objects: &[Value], keys: &[&str]) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    objects
        .iter()
        .map(|object| keys.iter().map(|key| text(&object[*key])).collect::<Vec<_>>().join(" "))
        .collect()
}
