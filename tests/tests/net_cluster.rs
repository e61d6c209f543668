//! The smallest whole cluster: every kind of client reaches every kind of address. The virtual machine with the
//! oldest kernel runs this too.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_tests::lab::{
    AgentOptions, Cluster, NODE_ADDRESSES, Netns, Pod, SERVICE_ADDRESSES, UdpEcho, WebServer, get, poll,
    udp_ask,
};

const CLUSTER_ADDRESSES: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];

/// The service of `examples/web.yaml` over TCP and UDP, and its endpoints.
fn objects(pods: &[Pod; 2]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  type: LoadBalancer\n  \
         clusterIP: {v4}\n  clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilyPolicy: PreferDualStack\n  \
         ipFamilies: [IPv4, IPv6]\n  ports:\n  \
         - {{name: http, port: 80, nodePort: 30080, protocol: TCP}}\n  \
         - {{name: echo, port: 80, nodePort: 30080, protocol: UDP}}\n\
         status: {{loadBalancer: {{ingress: [{{ip: {lb4}}}, {{ip: \"{lb6}\"}}]}}}}\n",
        v4 = CLUSTER_ADDRESSES[0],
        v6 = CLUSTER_ADDRESSES[1],
        lb4 = SERVICE_ADDRESSES[0],
        lb6 = SERVICE_ADDRESSES[1],
    );
    for (family, v6) in [("IPv4", false), ("IPv6", true)] {
        let name = family.to_lowercase();
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-{name}, namespace: shop, \
             labels: {{kubernetes.io/service-name: web}}}}\naddressType: {family}\nports:\n\
             - {{name: http, port: 8080, protocol: TCP}}\n- {{name: echo, port: 9000, protocol: UDP}}\nendpoints:\n"
        );
        for (pod, node) in pods.iter().zip(["node1", "node2"]) {
            text += &format!("- {{addresses: [\"{}\"], nodeName: {node}}}\n", pod.address(v6));
        }
    }
    text
}

/// Asks over TCP and UDP until both backends have answered both.
fn reaches_all(client: &Netns, who: &str, to: IpAddr, port: u16, pods: &[Pod; 2]) -> Result<()> {
    let to = SocketAddr::new(to, port);
    for (protocol, ask) in [("TCP", get as fn(&Netns, SocketAddr) -> Result<_>), ("UDP", udp_ask)] {
        let mut waiting: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
        for _ in 0..64 {
            let (server, _) = ask(client, to).with_context(|| format!("{who} asks {to} over {protocol}"))?;
            waiting.retain(|name| *name != server);
            if waiting.is_empty() {
                break;
            }
        }
        assert!(
            waiting.is_empty(),
            "{who} asked {to} over {protocol} 64 times, and {waiting:?} never answered"
        );
    }
    Ok(())
}

#[test]
fn every_kind_of_client_reaches_every_kind_of_address() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let agents = cluster.start_agents(&AgentOptions::default())?;
    let pods = [Pod::add(&agents[0], "one")?, Pod::add(&agents[1], "two")?];
    let client = Pod::add(&agents[0], "client")?;
    let mut servers = Vec::new();
    for pod in &pods {
        let (web, echo) =
            (WebServer::start(&pod.netns, 8080, &pod.name)?, UdpEcho::start(&pod.netns, 9000, &pod.name)?);
        servers.push((web, echo));
    }
    cluster.write("web.yaml", &objects(&pods))?;
    for (v6, address) in [false, true].into_iter().zip(CLUSTER_ADDRESSES) {
        let vip: IpAddr = address.parse()?;
        poll(Duration::from_secs(20), "the service answers", || {
            get(&client.netns, SocketAddr::new(vip, 80)).ok()
        })?;
        for pod in &pods {
            let direct = SocketAddr::new(pod.address(v6), 8080);
            let (server, seen) = get(&client.netns, direct)?;
            assert_eq!(
                (server, seen.parse()),
                (pod.name.clone(), Ok(client.address(v6))),
                "pod to pod {direct}"
            );
        }
        reaches_all(&client.netns, "a pod", vip, 80, &pods)?;
        reaches_all(&cluster.nodes[0].netns, "a process of the host", vip, 80, &pods)?;
        let public: IpAddr = SERVICE_ADDRESSES[usize::from(v6)].parse()?;
        for (number, addresses) in NODE_ADDRESSES.iter().enumerate() {
            cluster.route_public_to(number)?;
            reaches_all(&cluster.client, "an outside client", public, 80, &pods)?;
            let node = addresses[usize::from(v6)].parse()?;
            reaches_all(&cluster.client, "an outside client", node, 30_080, &pods)?;
        }
    }
    Ok(())
}
