//! What runs in every cluster: names looked up through a service, the API server behind one, rolling updates under
//! traffic.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Backend, Condition, Datagrams, Endpoint, Load, NODE_ADDRESSES, Netns, Pod, Shop, WebServer,
    cluster_address, get, node_address, object, poll, public_address, run, slice,
};

const FAMILIES: [bool; 2] = [false, true];

/// The record that the name server gives: its last byte is the number of the protocol that it was asked over.
const RECORD: [&str; 2] = ["192.0.2.", "2001:db8::"];

/// The answer to a query for one name (RFC 1035 4.1): its own record, whatever was asked for.
fn answer(query: &[u8], protocol: u8) -> Option<Vec<u8>> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    let question = query.get(12..end + 5)?;
    let v6 = question[question.len() - 3] == 28;
    let record: IpAddr = if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, protocol.into()).into()
    } else {
        Ipv4Addr::new(192, 0, 2, protocol).into()
    };
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    reply.extend(question);
    reply.extend([0xc0, 12, 0, if v6 { 28 } else { 1 }, 0, 1, 0, 0, 0, 5, 0, if v6 { 16 } else { 4 }]);
    match record {
        IpAddr::V4(v4) => reply.extend(v4.octets()),
        IpAddr::V6(v6) => reply.extend(v6.octets()),
    }
    Some(reply)
}

/// Serves names over both protocols until the test's process ends.
fn serve_names(netns: &Netns) -> Result<()> {
    let (udp, tcp) = netns.enter(|| -> std::io::Result<_> {
        let any = (Ipv6Addr::UNSPECIFIED, 53);
        Ok((UdpSocket::bind(any)?, TcpListener::bind(any)?))
    })??;
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = udp.recv_from(&mut buffer) {
            // A client that is gone, or that asked for nothing that can be read.
            let _ = answer(&buffer[..len], 17).map(|reply| udp.send_to(&reply, from));
        }
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            // As above. Over TCP a message has its length before it.
            let _ = (|| -> Option<()> {
                let mut len = [0; 2];
                stream.read_exact(&mut len).ok()?;
                let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
                stream.read_exact(&mut query).ok()?;
                let reply = answer(&query, 6)?;
                let len = u16::try_from(reply.len()).ok()?.to_be_bytes();
                stream.write_all(&[&len[..], &reply].concat()).ok()
            })();
        }
    });
    Ok(())
}

/// Looks a name up as every program of a pod does: by the C library, with this `resolv.conf`.
fn look_up(shop: &Shop, netns: &Netns, resolv: &str, v6: bool) -> Result<String> {
    let path = shop.cluster.directory().join("resolv.conf");
    std::fs::write(&path, resolv)?;
    let database = if v6 { "ahostsv6" } else { "ahostsv4" };
    let script = format!(
        "mount --bind {} /etc/resolv.conf && exec getent {database} web.shop.svc.cluster.local",
        path.display()
    );
    let text = run(netns.command("unshare").args(["--mount", "sh", "-c", &script]))?;
    Ok(text.split_whitespace().next().context("no address")?.to_owned())
}

#[test]
fn names_are_looked_up_over_udp_and_tcp_through_a_service() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let addresses = ["10.96.0.53", "fd00:10:96::53"];
    let [v4, v6] = addresses;
    let spec = format!(
        "clusterIP: {v4}, clusterIPs: [{v4}, \"{v6}\"], ipFamilies: [IPv4, IPv6], \
         ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]"
    );
    let mut text = object("dns", "", &spec);
    for v6 in FAMILIES {
        let pods = shop.backends.iter().map(|it| Endpoint::new(it.pod.address(v6), it.node, ""));
        let ports = "{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}";
        text += &slice(&format!("dns{v6}"), "dns", ports, &pods.collect::<Vec<_>>());
    }
    for backend in &shop.backends {
        serve_names(&backend.pod.netns)?;
    }
    shop.cluster.write("dns.yaml", &text)?;
    shop.settle()?;
    for netns in [&shop.client.netns, &shop.backends[1].pod.netns, &shop.cluster.nodes[0].netns] {
        for server in addresses {
            for (option, protocol) in [("", "17"), (" use-vc", "6")] {
                let resolv = format!("nameserver {server}\noptions timeout:2 attempts:1{option}\n");
                for v6 in FAMILIES {
                    let found = look_up(&shop, netns, &resolv, v6)?.parse::<IpAddr>()?;
                    let protocol =
                        if v6 { format!("{:x}", protocol.parse::<u8>()?) } else { protocol.to_owned() };
                    let expected = format!("{}{protocol}", RECORD[usize::from(v6)]).parse::<IpAddr>()?;
                    ensure!(found == expected, "{} asks {server}{option}: {found}", netns.name());
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_api_server_is_reached_through_its_service_from_every_node() -> Result<()> {
    let shop = Shop::open(&[])?;
    let second = Pod::add(&shop.agents[1], "client2")?;
    let [one, two] = &shop.cluster.nodes;
    let _servers =
        (WebServer::start(&one.netns, 6443, "node1")?, WebServer::start(&two.netns, 6443, "node2")?);
    // As the API server itself publishes it: one family, endpoints without a node.
    let [[a, _], [b, _]] = NODE_ADDRESSES;
    shop.cluster.write(
        "kubernetes.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: kubernetes, namespace: default, labels: \
             {{component: apiserver, provider: kubernetes}}}}\nspec: {{type: ClusterIP, clusterIP: 10.96.0.1, \
             clusterIPs: [10.96.0.1], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, internalTrafficPolicy: Cluster, \
             sessionAffinity: None, ports: [{{name: https, port: 443, protocol: TCP, targetPort: 6443}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: kubernetes, namespace: default, \
             labels: {{kubernetes.io/service-name: kubernetes}}}}\naddressType: IPv4\nports: [{{name: https, port: 6443, \
             protocol: TCP}}]\nendpoints:\n- {{addresses: [{a}], conditions: {{ready: true}}}}\n\
             - {{addresses: [{b}], conditions: {{ready: true}}}}\n"
        ),
    )?;
    shop.settle()?;
    for netns in [&shop.client.netns, &second.netns, &one.netns, &two.netns] {
        let mut waiting = vec!["node1", "node2"];
        poll(Duration::from_secs(5), &format!("{}: both answer", netns.name()), || {
            let (server, _) = get(netns, "10.96.0.1:443".parse().ok()?).ok()?;
            waiting.retain(|name| *name != server);
            waiting.is_empty().then_some(())
        })?;
    }
    Ok(())
}

/// Clients of every kind and the addresses that they ask.
fn clients(shop: &Shop) -> Vec<(&Netns, SocketAddr)> {
    let (pod, host, outside) = (&shop.client.netns, &shop.cluster.nodes[0].netns, &shop.cluster.client);
    let of = |v6: bool| {
        [
            (pod, cluster_address(v6)),
            (host, cluster_address(v6)),
            (outside, public_address(v6)),
            (outside, node_address(1, v6)),
        ]
    };
    FAMILIES.into_iter().flat_map(of).collect()
}

#[test]
fn no_connection_fails_during_a_rolling_update() -> Result<()> {
    let mut shop = Shop::open(&[0, 1, 0])?;
    let pause = Duration::from_millis(5);
    let asked = clients(&shop);
    let loads = asked.iter().map(|(netns, to)| Load::start(netns, *to, pause)).collect::<Result<Vec<_>>>()?;
    for (number, node) in [1, 0, 1].into_iter().enumerate() {
        let new = Backend::add(&shop.agents, node, &format!("new{number}"))?;
        shop.backends.push(new);
        shop.publish(|_| Some(Condition::Ready))?;
        shop.settle()?;
        // The oldest is told to end; it still answers what is under way.
        shop.publish(|index| Some(if index == 0 { Condition::Terminating } else { Condition::Ready }))?;
        shop.settle()?;
        shop.publish(|index| (index != 0).then_some(Condition::Ready))?;
        shop.settle()?;
        drop(shop.backends.remove(0));
    }
    for v6 in FAMILIES {
        for _ in 0..12 {
            let (server, _) = get(&shop.client.netns, cluster_address(v6))?;
            ensure!(server.starts_with("new"), "{server} is gone");
        }
    }
    for load in loads {
        let tally = load.finish();
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
        ensure!(tally.answers() > 50 && tally.by_server.len() >= 4, "{tally:?}");
    }
    Ok(())
}

#[test]
fn a_udp_flow_outlives_changes_that_do_not_concern_its_backend() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let pause = Duration::from_millis(5);
    let asked = clients(&shop);
    let flows =
        asked.iter().map(|(netns, to)| Datagrams::start(netns, *to, pause)).collect::<Result<Vec<_>>>()?;
    for (number, node) in [0, 1, 0].into_iter().enumerate() {
        let new = Backend::add(&shop.agents, node, &format!("new{number}"))?;
        shop.backends.push(new);
        shop.publish(|_| Some(Condition::Ready))?;
        shop.settle()?;
        shop.publish(|index| (index < 2).then_some(Condition::Ready))?;
        shop.settle()?;
    }
    for flow in flows {
        let tally = flow.finish();
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
        ensure!(tally.answers() > 50, "{tally:?}");
    }
    Ok(())
}
