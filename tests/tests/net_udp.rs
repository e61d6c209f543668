//! UDP flows have no end of their own: a client that goes on with its socket gets to whoever serves now, and to nobody
//! else.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Backend, Condition, NODE_ADDRESSES, Netns, Pod, Shop, UdpEcho, cluster_address, node_address, poll,
    public_address, service,
};

const FAMILIES: [bool; 2] = [false, true];

/// Longest time until a client that asks all the time gets to the right backend: a flow is looked at anew once a second.
const SOON: Duration = Duration::from_secs(4);

/// A client with one socket, which asks again and again.
struct Asker {
    who: String,
    to: SocketAddr,
    socket: UdpSocket,
}

impl Asker {
    fn new(who: &str, netns: &Netns, to: SocketAddr) -> Result<Self> {
        let socket = netns.enter(move || -> Result<UdpSocket> {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            Ok(socket)
        })??;
        Ok(Self { who: format!("{who} of {to}"), to, socket })
    }

    /// Who answers, if anybody does; refused or not, the client goes on.
    fn ask(&self) -> Option<String> {
        // A socket may be told that it is connected no more; then programs connect it again.
        match self.socket.send(b"ping") {
            Err(error) if error.kind() != ErrorKind::ConnectionRefused => {
                self.socket.connect(self.to).ok()?;
                self.forget_answers().ok()?;
            }
            other => drop(other.ok()?),
        }
        let mut buffer = [0; 512];
        let len = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..len]).split(' ').next()?.to_owned())
    }

    /// Reads what has arrived: a socket that is ended between a question and its answer keeps the answer.
    fn forget_answers(&self) -> std::io::Result<()> {
        self.socket.set_nonblocking(true)?;
        while self.socket.recv(&mut [0; 512]).is_ok() {}
        self.socket.set_nonblocking(false)
    }

    fn is_answered_by(&self, server: &str) -> Result<()> {
        let right = || (self.ask()? == server).then_some(());
        poll(SOON, &format!("{} is answered by {server}", self.who), right)?;
        for _ in 0..3 {
            let answer = self.ask();
            ensure!(answer.as_deref() == Some(server), "{}: then by {answer:?}", self.who);
        }
        Ok(())
    }

    fn is_not_answered(&self) -> Result<()> {
        let silent = || self.ask().is_none().then_some(());
        poll(SOON, &format!("{} is answered no more", self.who), silent)?;
        for _ in 0..2 {
            let answer = self.ask();
            ensure!(answer.is_none(), "{}: but then by {answer:?}", self.who);
        }
        Ok(())
    }
}

/// Clients of every kind, at every kind of address.
fn askers(shop: &Shop) -> Result<Vec<Asker>> {
    shop.cluster.route_public_to(0)?;
    let (pod, host, outside) = (&shop.client.netns, &shop.cluster.nodes[0].netns, &shop.cluster.client);
    let of = |v6: bool| {
        [
            ("a pod", pod, cluster_address(v6)),
            ("a pod", pod, node_address(0, v6)),
            ("a pod", pod, public_address(v6)),
            ("the host", host, cluster_address(v6)),
            ("the host", host, node_address(0, v6)),
            ("the host", host, public_address(v6)),
            ("an outside client", outside, public_address(v6)),
            ("an outside client", outside, node_address(0, v6)),
            ("an outside client", outside, node_address(1, v6)),
        ]
    };
    FAMILIES.into_iter().flat_map(of).map(|(who, netns, to)| Asker::new(who, netns, to)).collect()
}

/// All of them, at the same time.
fn all(askers: &[Asker], check: impl Fn(&Asker) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let checks: Vec<_> = askers.iter().map(|asker| scope.spawn(|| check(asker))).collect();
        checks.into_iter().try_for_each(|it| it.join().expect("a check has no bug"))
    })
}

#[test]
fn clients_follow_a_server_pod_that_is_replaced_before_it_goes() -> Result<()> {
    let mut shop = Shop::open(&[0])?;
    let askers = askers(&shop)?;
    all(&askers, |it| it.is_answered_by("b0"))?;
    // To the other node, and back.
    for (node, old, new) in [(1, "b0", "b1"), (0, "b1", "b2")] {
        let backend = Backend::add(&shop.agents, node, new)?;
        shop.backends.push(backend);
        shop.publish(|index| Some(if index == 0 { Condition::Terminating } else { Condition::Ready }))?;
        shop.settle()?;
        shop.publish(|index| (index == 1).then_some(Condition::Ready))?;
        shop.settle()?;
        // What still arrives at the old one would be answered.
        all(&askers, |it| it.is_answered_by(new)).with_context(|| format!("{old} still runs"))?;
        drop(shop.backends.remove(0));
        all(&askers, |it| it.is_answered_by(new)).with_context(|| format!("{old} is gone"))?;
    }
    Ok(())
}

#[test]
fn clients_find_the_server_pod_that_comes_after_there_was_none() -> Result<()> {
    let mut shop = Shop::open(&[0])?;
    let askers = askers(&shop)?;
    all(&askers, |it| it.is_answered_by("b0"))?;
    shop.publish(|_| None)?;
    drop(shop.backends.remove(0));
    all(&askers, Asker::is_not_answered)?;
    for (node, name) in [(1, "b1"), (0, "b2")] {
        let backend = Backend::add(&shop.agents, node, name)?;
        shop.backends.push(backend);
        // First a pod that is not ready yet, which everybody keeps on asking.
        shop.publish(|_| Some(Condition::NotReady))?;
        shop.settle()?;
        all(&askers, Asker::is_not_answered)?;
        shop.publish(|_| Some(Condition::Ready))?;
        all(&askers, |it| it.is_answered_by(name))?;
        shop.publish(|_| None)?;
        drop(shop.backends.remove(0));
        all(&askers, Asker::is_not_answered)?;
    }
    Ok(())
}

#[test]
fn clients_follow_a_target_port_that_changes_though_the_old_one_still_answers() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let askers = askers(&shop)?;
    let _other = UdpEcho::start(&shop.backends[0].pod.netns, 9001, "other")?;
    all(&askers, |it| it.is_answered_by("b0"))?;
    let path = shop.cluster.objects().join("slices.yaml");
    let text = std::fs::read_to_string(path)?;
    shop.cluster.write("slices.yaml", &text.replace("port: 9000", "port: 9001"))?;
    all(&askers, |it| it.is_answered_by("other"))?;
    shop.cluster.write("slices.yaml", &text)?;
    all(&askers, |it| it.is_answered_by("b0"))
}

#[test]
fn clients_of_a_service_that_is_deleted_are_answered_no_more() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let askers = askers(&shop)?;
    for _ in 0..2 {
        all(&askers, |it| it.is_answered_by("b0"))?;
        std::fs::remove_file(shop.cluster.objects().join("service.yaml"))?;
        all(&askers, Asker::is_not_answered)?;
        shop.cluster.write("service.yaml", &service(""))?;
    }
    all(&askers, |it| it.is_answered_by("b0"))
}

#[test]
fn clients_of_a_port_that_is_deleted_are_answered_no_more() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let askers = askers(&shop)?;
    all(&askers, |it| it.is_answered_by("b0"))?;
    let tcp_alone: String = service("")
        .lines()
        .filter(|line| !line.contains("protocol: UDP"))
        .map(|line| format!("{line}\n"))
        .collect();
    shop.cluster.write("service.yaml", &tcp_alone)?;
    all(&askers, Asker::is_not_answered)
}

/// Sockets that ask one address: that one of two backends gets none of them is no chance.
const QUESTIONS: usize = 32;

/// Asks a few times from one socket that is not connected. Everything comes from who was asked and from one server: its
/// node, and whom it took for the client.
fn ask_unconnected(netns: &Netns, to: SocketAddr) -> Result<(usize, IpAddr)> {
    let answers = netns.enter(move || -> Result<Vec<(String, IpAddr)>> {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let ask = |number: u32| {
            socket.send_to(number.to_string().as_bytes(), to)?;
            let mut buffer = [0; 512];
            let (len, from) = socket.recv_from(&mut buffer).with_context(|| format!("question {number}"))?;
            ensure!(from == to, "{from} answers what {to} was asked");
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            let words: Vec<&str> = text.split(' ').collect();
            let [server, client, echoed] = *words.as_slice() else { anyhow::bail!("answered by {text:?}") };
            ensure!(echoed == number.to_string(), "{echoed} is no answer to {number}");
            Ok((server.to_owned(), client.parse()?))
        };
        (0..3).map(ask).collect()
    })??;
    let (server, client) = &answers[0];
    ensure!(answers.iter().all(|answer| answer == &answers[0]), "one flow, several answers: {answers:?}");
    Ok((server.trim_start_matches('b').parse()?, *client))
}

/// Asks the load balancer's address from outside through a node: which backends may answer, and whom they see.
fn is_served_outside(shop: &Shop, entry: usize, v6: bool, local: bool) -> Result<()> {
    let client: IpAddr = if v6 { "2001:db8:c::10" } else { "203.0.113.10" }.parse()?;
    let masquerade: IpAddr = NODE_ADDRESSES[entry][usize::from(v6)].parse()?;
    let mut met = [false; 2];
    for _ in 0..QUESTIONS {
        let (node, seen) = ask_unconnected(&shop.cluster.client, public_address(v6))?;
        let expected = if node == entry { client } else { masquerade };
        ensure!(seen == expected, "b{node} saw {seen}, not {expected}");
        met[node] = true;
    }
    ensure!(met[entry] && met[1 - entry] != local, "through node{}: {met:?}", entry + 1);
    Ok(())
}

#[test]
fn the_load_balancers_address_answers_pods_hosts_and_outside_clients() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let second = Pod::add(&shop.agents[1], "client2")?;
    for local in [false, true] {
        let policy = if local { "Local" } else { "Cluster" };
        shop.cluster.write("service.yaml", &service(&format!("  externalTrafficPolicy: {policy}\n")))?;
        shop.settle()?;
        for (node, pod) in [&shop.client, &second].into_iter().enumerate() {
            shop.cluster.route_public_to(node)?;
            for v6 in FAMILIES {
                let host = NODE_ADDRESSES[node][usize::from(v6)].parse()?;
                let inside = [(&pod.netns, pod.address(v6)), (&shop.cluster.nodes[node].netns, host)];
                for (netns, own) in inside {
                    let met = (0..QUESTIONS).map(|_| {
                        let (node, seen) = ask_unconnected(netns, public_address(v6))?;
                        ensure!(seen == own, "b{node} saw {seen}, not {own}");
                        Ok(node)
                    });
                    let met =
                        met.collect::<Result<BTreeSet<_>>>().with_context(|| netns.name().to_owned())?;
                    ensure!(met.len() == 2, "{policy}: {} meets {met:?} alone", netns.name());
                }
                is_served_outside(&shop, node, v6, local).context(policy)?;
            }
        }
    }
    Ok(())
}
