//! What is read of a node that somebody else set up: netfilter, filters, interfaces, sockets.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener, UdpSocket},
};

use crate::link_support::{Node, Space};
use portolan_node::{
    Direction,
    attach::tcx_programs,
    features,
    netfilter::{self, Base, Hook},
    sockets::{Sockets, Transport},
};

/// Runs `work` on a thread in the namespace.
async fn inside<T: Send + 'static>(space: &Space, work: impl FnOnce() -> T + Send + 'static) -> T {
    space.0.run(work).await.unwrap()
}

#[tokio::test]
async fn chains_of_both_tools_are_read_with_hooks_policies_and_uses() {
    let space = Space::new();
    assert_eq!(inside(&space, netfilter::chains).await.unwrap(), []);
    space.run("nft add table ip6 kube-proxy");
    space.run("nft add chain ip6 kube-proxy services");
    space.run("nft add table inet fw");
    space.run("nft add chain inet fw in { type filter hook input priority 0 ; policy accept ; }");
    space.run("iptables-nft -P FORWARD DROP");
    space.run("iptables-nft -A FORWARD -i x0 -j ACCEPT");
    space.run("iptables-nft -t nat -N KUBE-SERVICES");
    let chains = inside(&space, netfilter::chains).await.unwrap();
    let of = |family: &str, table: &str, name: &str| {
        let chain = chains.iter().find(|it| (it.family, &*it.table, &*it.name) == (family, table, name));
        chain.unwrap_or_else(|| panic!("no {family} {table} {name} in {chains:?}"))
    };
    assert_eq!(of("ip6", "kube-proxy", "services").base, None);
    assert_eq!(of("inet", "fw", "in").base, Some(Base { hook: Hook::Input, drops: false }));
    let forward = of("ip", "filter", "FORWARD");
    assert_eq!((forward.base, forward.uses), (Some(Base { hook: Hook::Forward, drops: true }), 1));
    assert_eq!(of("ip", "nat", "KUBE-SERVICES").uses, 0);
}

#[tokio::test]
async fn filters_interfaces_and_default_routes_of_others_are_read() {
    let node = Node::new().await;
    node.space.run("ip link add vx type vxlan id 9 dstport 8472 dev up0");
    node.space.run("ip link add name br0 type bridge");
    node.space.run("ip link set vx master br0");
    node.space.run("ip route add default via 192.0.2.77 metric 20");
    node.space.run("tc qdisc add dev up0 clsact");
    node.space.run("tc filter add dev up0 egress prio 9 u32 match u32 0 0 classid 1:1");
    node.space.run("tc filter add dev up0 egress prio 3 u32 match u32 0 0 classid 1:1");
    let interfaces = node.links.interfaces().await.unwrap();
    let index = |name: &str| interfaces.iter().find(|it| it.name == name).unwrap().ifindex;
    let details = node.links.details().await.unwrap();
    let vx = details.iter().find(|it| it.ifindex == index("vx")).unwrap();
    assert_eq!((vx.vxlan_port, vx.controller, vx.xdp), (Some(8472), Some(index("br0")), None));
    let [ingress, egress] = node.links.filters(index("up0")).await.unwrap();
    let told: Vec<_> = egress.iter().map(|it| (it.priority, it.kind.as_str(), it.own)).collect();
    assert_eq!((ingress.len(), told), (0, vec![(3, "u32", false), (9, "u32", false)]));
    assert_eq!(node.links.filters(index("br0")).await.unwrap(), [vec![], vec![]]);
    let routes = node.links.default_routes().await.unwrap();
    let gateway = Some("192.0.2.77".parse().unwrap());
    let route = routes.iter().find(|it| it.gateway == gateway).unwrap();
    assert_eq!((route.v4, route.ifindex, route.metric), (true, index("up0"), 20));
    if features::tcx().unwrap() {
        let programs = inside(&node.space, || tcx_programs("up0", Direction::Ingress)).await.unwrap();
        assert_eq!(programs, []);
    }
}

#[tokio::test]
async fn bound_sockets_are_listed_with_what_names_their_process() {
    let space = Space::new();
    space.run("ip link set lo up");
    let held = inside(&space, || {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 30_080)).unwrap();
        let udp = UdpSocket::bind("[::]:30081").unwrap();
        let client = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, 30_080)).unwrap();
        (tcp, udp, client)
    })
    .await;
    let sockets = inside(&space, || Sockets::open().unwrap().bound()).await.unwrap();
    let inodes: BTreeSet<u32> = sockets.iter().map(|it| it.inode).collect();
    let of = |transport, port, open| {
        let mut sockets =
            sockets.iter().filter(|it| (it.transport, it.port, it.open) == (transport, port, open));
        *sockets.next().unwrap_or_else(|| panic!("no {transport:?} {port}"))
    };
    assert_eq!(of(Transport::Tcp, 30_080, true).address, Ipv4Addr::LOCALHOST);
    assert!(of(Transport::Udp, 30_081, true).address.is_unspecified());
    assert_eq!(of(Transport::Tcp, held.2.local_addr().unwrap().port(), false).address, Ipv4Addr::LOCALHOST);
    let own = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held.0)));
    let inode = of(Transport::Tcp, 30_080, true).inode;
    assert_eq!(own.unwrap().to_str(), Some(format!("socket:[{inode}]").as_str()));
    assert!(inodes.len() > 2, "{sockets:?}");
}
