//! Which services are served, at which of their addresses and ports, and by whom.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    self, NODE_ADDRESSES, NODE_PORT, Netns, Shop, WebServer, balances_sockets, cluster_address, get,
    node_address, poll, public_address, service, udp_ask,
};
use rustix::net::{self, AddressFamily, SocketType, sockopt};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];

/// Longest time from an edit to its effect.
const AT_ONCE: Duration = Duration::from_secs(3);

/// An EndpointSlice of `service`; `ports` and each endpoint's address as YAML.
fn slice(name: &str, service: &str, ports: &str, addresses: &[IpAddr]) -> String {
    let family = if addresses.first().is_some_and(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" };
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: shop\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: {family}\nports: [{ports}]\nendpoints:\n"
    );
    for address in addresses {
        text += &format!("- {{addresses: [\"{address}\"], conditions: {{ready: true}}}}\n");
    }
    text + "---\n"
}

/// A service with port 80; `metadata` and `spec` are more fields, in YAML's flow style.
fn plain(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop{metadata}}}\n\
         spec: {{{spec}, ports: [{{name: http, port: 80, protocol: TCP}}]}}\n"
    )
}

/// A service of both families, at the addresses of [`at`].
fn dual(name: &str, metadata: &str, spec: &str, last: u8) -> String {
    let more = if spec.is_empty() { String::new() } else { format!(", {spec}") };
    let [v4, v6] = FAMILIES.map(|v6| at(last, v6).ip());
    plain(name, metadata, &format!("clusterIPs: [{v4}, \"{v6}\"]{more}"))
}

/// Port 80 of a cluster address with this number.
fn at(last: u8, v6: bool) -> SocketAddr {
    let address = if v6 { format!("fd00:10:96::{last}") } else { format!("10.96.0.{last}") };
    SocketAddr::new(address.parse().expect("the number makes an address"), 80)
}

/// Slices of both families with the addresses of one of the shop's backends.
fn slices(shop: &Shop, name: &str, service: &str, backend: usize) -> String {
    let of = |v6: bool| {
        let address = shop.backends[backend].pod.address(v6);
        slice(&format!("{name}-{v6}"), service, HTTP, &[address])
    };
    FAMILIES.map(of).concat()
}

/// How a connection fails that may get no answer; `None`: it does not.
fn failure(netns: &Netns, to: SocketAddr) -> Result<Option<ErrorKind>> {
    lab::failure(netns, false, to, Duration::from_millis(700))
}

/// As [`failure`], where there is an answer, be it a refusal: a busy machine has time for it.
fn outcome(netns: &Netns, to: SocketAddr) -> Result<Option<ErrorKind>> {
    lab::failure(netns, false, to, AT_ONCE)
}

/// The services of which a port is served.
fn services(shop: &Shop) -> Result<BTreeSet<String>> {
    let list: Value = serde_json::from_str(&shop.agents[0].view("service list -o json")?)?;
    let has_ports = |it: &&Value| it["ports"].as_array().is_some_and(|ports| !ports.is_empty());
    let served = list.as_array().context("no list")?.iter().filter(has_ports);
    let names = served.filter_map(|it| it["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// All servers that answer over a number of connections.
fn servers(netns: &Netns, to: SocketAddr) -> Result<BTreeSet<String>> {
    (0..40).map(|_| Ok(get(netns, to)?.0)).collect()
}

const HTTP: &str = "{name: http, port: 8080, protocol: TCP}";

#[test]
fn services_of_others_are_left_alone() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let proxied = ", labels: {service.kubernetes.io/service-proxy-name: other}";
    let marked = ", labels: {service.kubernetes.io/headless: \"\"}";
    let mut text = String::new();
    for (name, service) in [
        ("headless", plain("headless", "", "clusterIP: None")),
        ("elsewhere", dual("elsewhere", "", "type: ExternalName, externalName: example.org", 41)),
        ("proxied", dual("proxied", proxied, "", 42)),
        ("marked", dual("marked", marked, "", 43)),
        ("addressless", plain("addressless", "", "type: ClusterIP")),
        ("ours", dual("ours", "", "", 49)),
    ] {
        text += &(service + "---\n" + &slices(&shop, name, name, 0));
    }
    shop.cluster.write("others.yaml", &text)?;
    let client = &shop.client.netns;
    for v6 in FAMILIES {
        poll(AT_ONCE, "the last of them answers", || get(client, at(49, v6)).ok())?;
        for to in [41, 42, 43].map(|last| at(last, v6)) {
            ensure!(failure(client, to)?.is_some(), "{to} is served");
        }
    }
    assert_eq!(services(&shop)?, BTreeSet::from(["ours".to_owned(), "web".to_owned()]));
    Ok(())
}

#[test]
fn endpoints_without_a_service_or_marked_headless_serve_nobody() -> Result<()> {
    let shop = Shop::open(&[0, 0])?;
    let hidden = slices(&shop, "b", "ours", 1)
        .replace("{kubernetes.io", "{service.kubernetes.io/headless: \"\", kubernetes.io");
    let text = dual("ours", "", "", 49)
        + "---\n"
        + &hidden
        + &slices(&shop, "a", "ours", 0)
        + &slices(&shop, "c", "nobody", 1);
    shop.cluster.write("ours.yaml", &text)?;
    let client = &shop.client.netns;
    for to in FAMILIES.map(|v6| at(49, v6)) {
        poll(AT_ONCE, "it answers", || get(client, to).ok())?;
        assert_eq!(servers(client, to)?, BTreeSet::from(["b0".to_owned()]));
    }
    Ok(())
}

#[test]
fn external_addresses_that_are_anothers_business_are_not_answered() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let public = |last: u8, v6: bool| -> Result<SocketAddr> {
        let address = if v6 { format!("2001:db8:f::{last}") } else { format!("198.51.100.{last}") };
        Ok(SocketAddr::new(address.parse()?, 80))
    };
    let status = "status: {loadBalancer: {ingress: [{ip: 198.51.100.20, ipMode: Proxy}, \
                  {ip: \"2001:db8:f::20\", ipMode: Proxy}, {hostname: lb.example.org}, \
                  {ip: 198.51.100.21, ipMode: VIP}, {ip: \"2001:db8:f::21\", ipMode: VIP}]}}\n";
    let spec = "type: LoadBalancer, externalIPs: [198.51.100.22, \"2001:db8:f::22\"]";
    let text = dual("ours", "", spec, 49) + status + "---\n" + &slices(&shop, "a", "ours", 0);
    shop.cluster.write("ours.yaml", &text)?;
    for netns in [&shop.client.netns, &shop.cluster.client] {
        for v6 in FAMILIES {
            let ours = public(21, v6)?;
            poll(AT_ONCE, "the address that is ours answers", || get(netns, ours).ok())?;
            for to in [public(20, v6)?, public(22, v6)?] {
                ensure!(failure(netns, to)?.is_some(), "{to} is answered");
            }
        }
    }
    Ok(())
}

#[test]
fn a_named_port_leads_to_another_number_in_every_slice() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let _other = WebServer::start(&shop.backends[1].pod.netns, 8081, "b1-other")?;
    let _admin = WebServer::start(&shop.backends[1].pod.netns, 8082, "b1-admin")?;
    for v6 in FAMILIES {
        let (address, family) = (at(49, v6).ip(), if v6 { "IPv6" } else { "IPv4" });
        let of = |index: usize| [shop.backends[index].pod.address(v6)];
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: named{v6}, namespace: shop}}\n\
             spec: {{clusterIP: \"{address}\", ipFamilies: [{family}], ports: [{{name: http, port: 80, targetPort: web}}, \
             {{name: admin, port: 81, targetPort: admin}}]}}\n---\n"
        ) + &slice(&format!("a{v6}"), &format!("named{v6}"), HTTP, &of(0))
            + &slice(
                &format!("b{v6}"),
                &format!("named{v6}"),
                "{name: http, port: 8081}, {name: admin, port: 8082}",
                &of(1),
            );
        shop.cluster.write("named.yaml", &text)?;
        let client = &shop.client.netns;
        let at = |port| SocketAddr::new(address, port);
        poll(AT_ONCE, "it answers", || get(client, at(80)).ok())?;
        assert_eq!(servers(client, at(80))?, BTreeSet::from(["b0".to_owned(), "b1-other".to_owned()]));
        assert_eq!(servers(client, at(81))?, BTreeSet::from(["b1-admin".to_owned()]));
    }
    Ok(())
}

#[test]
fn of_two_protocols_on_one_port_each_can_go_alone() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let both = service("");
    let without = |name: &str| -> String {
        both.lines()
            .filter(|line| !line.contains(&format!("name: {name},")))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let client = &shop.client.netns;
    let refused = |to: SocketAddr, udp: bool| -> Option<bool> {
        if !udp {
            return Some(failure(client, to).ok()? == Some(ErrorKind::ConnectionRefused));
        }
        let error = udp_ask(client, to).err()?;
        Some(error.downcast_ref::<std::io::Error>()?.kind() == ErrorKind::ConnectionRefused)
    };
    for (gone, udp) in [("http", false), ("echo", true)] {
        shop.cluster.write("service.yaml", &without(gone))?;
        for v6 in FAMILIES {
            for to in [cluster_address(v6), public_address(v6)] {
                poll(AT_ONCE, "the port that went is refused", || refused(to, udp).filter(|it| *it))?;
                let other = if udp { get(client, to) } else { udp_ask(client, to) };
                assert_eq!(other?.0, "b0", "{to}: the other protocol without {gone}");
            }
        }
        shop.cluster.write("service.yaml", &both)?;
        for to in FAMILIES.map(cluster_address) {
            poll(AT_ONCE, "it is back", || refused(to, udp).is_none_or(|it| !it).then_some(()))?;
        }
    }
    Ok(())
}

#[test]
fn a_node_port_is_open_at_the_nodes_own_addresses_and_nowhere_else() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let node = &shop.cluster.nodes[0].netns;
    // An address of the machine that the Node object does not name.
    node.ip("address add 192.0.2.99/24 dev eth0")?;
    node.ip("address add 2001:db8:1::99/64 dev eth0 nodad")?;
    let _own = WebServer::start(&shop.client.netns, NODE_PORT, "own")?;
    for v6 in FAMILIES {
        assert_eq!(get(&shop.cluster.client, node_address(0, v6))?.0, "b0");
        let (unnamed, loopback) = if v6 { ("2001:db8:1::99", "::1") } else { ("192.0.2.99", "127.0.0.1") };
        let at = |address: &str| address.parse().map(|address: IpAddr| SocketAddr::new(address, NODE_PORT));
        let found = outcome(&shop.cluster.client, at(unnamed)?)?;
        assert_eq!(found, Some(ErrorKind::ConnectionRefused), "the host has nobody at {unnamed}");
        // Only sockets know what is asked for there.
        let refused = (!balances_sockets()).then_some(ErrorKind::ConnectionRefused);
        assert_eq!(outcome(node, at(loopback)?)?, refused, "{loopback}");
        let pod = SocketAddr::new(shop.client.address(v6), NODE_PORT);
        assert_eq!(get(&shop.backends[0].pod.netns, pod)?.0, "own", "a pod's port of this number is its own");
        assert_eq!(get(node, pod)?.0, "own", "to the host as well");
    }
    Ok(())
}

/// Writes the nodes with second addresses of the first one, and waits until its agent knows them.
fn add_second_addresses(shop: &Shop, [v4, v6]: [&str; 2]) -> Result<()> {
    let node = &shop.cluster.nodes[0].netns;
    node.ip(&format!("address add {v4}/24 dev eth0"))?;
    node.ip(&format!("address add {v6}/64 dev eth0 nodad"))?;
    let nodes = std::fs::read_to_string(shop.cluster.objects().join("nodes.yaml"))?;
    let primary = "  - {type: InternalIP, address: \"2001:db8:1::11\"}\n";
    let all = format!(
        "{primary}  - {{type: InternalIP, address: {v4}}}\n  - {{type: InternalIP, address: \"{v6}\"}}\n"
    );
    shop.cluster.write("nodes.yaml", &nodes.replace(primary, &all))?;
    let known = || shop.agents[0].view("status -o json").ok()?.contains(v6).then_some(());
    poll(AT_ONCE, "the agent knows the addresses", known)
}

/// Whether the NodePort answers at both addresses of a node, to everybody who may ask.
fn answers_at(shop: &Shop, [v4, v6]: [&str; 2]) -> Result<bool> {
    let mut found = BTreeSet::new();
    for address in [v4, v6] {
        let to = SocketAddr::new(address.parse()?, NODE_PORT);
        for netns in [&shop.cluster.client, &shop.client.netns, &shop.cluster.nodes[0].netns] {
            found.insert(outcome(netns, to)?);
        }
    }
    let all = found.len() == 1;
    ensure!(
        all && found.iter().all(|it| it.is_none_or(|it| it == ErrorKind::ConnectionRefused)),
        "{found:?}"
    );
    Ok(found.contains(&None))
}

#[test]
fn node_ports_are_open_at_the_first_address_of_each_family_unless_prefixes_say_where() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let (first, second) = (NODE_ADDRESSES[0], ["192.0.2.111", "2001:db8:1::111"]);
    add_second_addresses(&shop, second)?;
    assert_eq!([answers_at(&shop, first)?, answers_at(&shop, second)?], [true, false], "by default");
    for address in second {
        let to = SocketAddr::new(address.parse()?, NODE_PORT);
        let source = if to.is_ipv4() { "203.0.113.10" } else { "2001:db8:c::10" };
        let told = shop.agents[0].view(&format!("explain {source} {to}"))?;
        let why =
            format!("{address} is an address of this node that answers no NodePorts (--nodeport-addresses)");
        ensure!(told.contains(&why), "{told}");
    }
    // It is the node's own address all the same: a process there is a backend.
    let _own = WebServer::start(&shop.cluster.nodes[0].netns, 6443, "node1")?;
    let slices = FAMILIES.map(|v6| {
        let address = second[usize::from(v6)].parse::<IpAddr>();
        address.map(|address| slice(&format!("s{v6}"), "ours", "{name: http, port: 6443}", &[address]))
    });
    let text = dual("ours", "", "", 49) + "---\n";
    shop.cluster
        .write("ours.yaml", &slices.into_iter().try_fold(text, |text, it| it.map(|it| text + &it))?)?;
    for to in FAMILIES.map(|v6| at(49, v6)) {
        poll(AT_ONCE, "the host answers", || get(&shop.client.netns, to).ok())?;
        assert_eq!(servers(&shop.client.netns, to)?, BTreeSet::from(["node1".to_owned()]));
    }
    for (prefixes, expected) in [
        ("192.0.2.111/32,2001:db8:1::111/128", [false, true]),
        ("192.0.2.0/24,2001:db8:1::/64", [true, true]),
        ("primary", [true, false]),
    ] {
        shop.agents[0].restart_with("--nodeport-addresses", prefixes)?;
        assert_eq!([answers_at(&shop, first)?, answers_at(&shop, second)?], expected, "{prefixes}");
        shop.agents[0]
            .view("audit")
            .with_context(|| format!("{prefixes}: the tables are not as they should be"))?;
    }
    Ok(())
}

#[test]
fn an_address_of_the_service_range_that_no_service_has_is_dropped_and_counted() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let counted = || -> Result<u64> {
        let list: Value = serde_json::from_str(&shop.agents[0].view("drop list --all -o json")?)?;
        let entry = list.as_array().and_then(|list| list.iter().find(|it| it["reason"] == "unknown-service"));
        entry.and_then(|entry| entry["packets"].as_u64()).context("no such outcome")
    };
    for netns in [&shop.client.netns, &shop.cluster.nodes[0].netns] {
        for to in FAMILIES.map(|v6| at(200, v6)) {
            let before = counted()?;
            ensure!(
                failure(netns, to)? != Some(ErrorKind::ConnectionRefused) && failure(netns, to)?.is_some(),
                "{to}"
            );
            ensure!(counted()? > before, "{to} is not counted");
        }
    }
    Ok(())
}

/// A connection from a port of choice, which other connections may use as well.
fn connect_from(port: u16, to: SocketAddr) -> Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = net::socket(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(3)))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(Duration::from_secs(3)))?;
    net::bind(&socket, &SocketAddr::new(any, port))?;
    net::connect(&socket, &to).with_context(|| format!("connecting to {to} from port {port}"))?;
    Ok(socket.into())
}

/// Asks on a connection that stays open.
fn ask(mut stream: &TcpStream) -> Result<String> {
    use std::io::{Read, Write};
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    let mut text = String::new();
    let mut buffer = [0; 512];
    while !(text.contains("\r\n\r\n") && text.ends_with('\n') && !text.ends_with("\r\n\r\n")) {
        let len = stream.read(&mut buffer)?;
        ensure!(len > 0, "closed after {text:?}");
        text += &String::from_utf8_lossy(&buffer[..len]);
    }
    Ok(text)
}

#[test]
fn one_client_port_reaches_one_backend_through_two_addresses_at_once() -> Result<()> {
    for node in [0, 1] {
        let shop = Shop::open(&[node])?;
        for v6 in FAMILIES {
            let pair = [cluster_address(v6), public_address(v6)];
            let answers = shop.client.netns.enter(move || -> Result<Vec<String>> {
                let open = pair.iter().map(|to| connect_from(41_000, *to)).collect::<Result<Vec<_>>>()?;
                // Twice, crosswise: neither has taken the other's place.
                [0, 1, 1, 0].iter().map(|which| ask(&open[*which])).collect()
            })??;
            ensure!(answers.iter().all(|answer| answer.contains("b0 ")), "{answers:?}");
            shop.client.netns.enter(move || -> Result<()> {
                let any: IpAddr = if v6 { [0; 16].into() } else { [0; 4].into() };
                let socket = UdpSocket::bind((any, 0))?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                for to in [pair[0], pair[1], pair[0]] {
                    socket.send_to(b"ping", to)?;
                    let (_, from) =
                        socket.recv_from(&mut [0; 512]).with_context(|| format!("asking {to}"))?;
                    assert_eq!(from, to, "the answer comes from whom was asked");
                }
                Ok(())
            })??;
        }
    }
    Ok(())
}

#[test]
fn processes_of_the_nodes_are_backends_as_pods_are() -> Result<()> {
    let shop = Shop::open(&[])?;
    let [one, two] = &shop.cluster.nodes;
    let _servers =
        [WebServer::start(&one.netns, 6443, "node1")?, WebServer::start(&two.netns, 6443, "node2")?];
    let addresses = |v6: bool| NODE_ADDRESSES.map(|of| of[usize::from(v6)].parse::<IpAddr>());
    let mut text = String::new();
    for v6 in FAMILIES {
        let [one, two] = addresses(v6);
        text +=
            &slice(&format!("hosts{v6}"), "web", "{name: http, port: 6443, protocol: TCP}", &[one?, two?]);
    }
    shop.cluster.write("slices.yaml", &text)?;
    let both = BTreeSet::from(["node1".to_owned(), "node2".to_owned()]);
    for v6 in FAMILIES {
        poll(AT_ONCE, "it answers", || get(&shop.client.netns, cluster_address(v6)).ok())?;
        assert_eq!(servers(&shop.client.netns, cluster_address(v6))?, both, "a pod");
        assert_eq!(servers(&one.netns, cluster_address(v6))?, both, "a host");
        assert_eq!(servers(&shop.cluster.client, public_address(v6))?, both, "outside, public");
        assert_eq!(servers(&shop.cluster.client, node_address(1, v6))?, both, "outside, node port");
    }
    Ok(())
}

#[test]
fn a_client_keeps_its_backend_if_the_service_says_so() -> Result<()> {
    let shop = Shop::open(&[0, 0, 1, 1])?;
    for v6 in FAMILIES {
        shop.cluster.write("service.yaml", &service("  sessionAffinity: ClientIP\n"))?;
        let one = || servers(&shop.client.netns, cluster_address(v6)).ok().filter(|it| it.len() == 1);
        let kept = poll(AT_ONCE, "one backend answers all", one)?;
        assert_eq!(servers(&shop.client.netns, public_address(v6))?, kept, "at any address of the service");
        shop.cluster.write("service.yaml", &service(""))?;
        let all = || servers(&shop.client.netns, cluster_address(v6)).ok().filter(|it| it.len() == 4);
        poll(AT_ONCE, "all backends answer again", all)?;
    }
    Ok(())
}
