//! What is wrong with an object costs that part of it alone, and `portolan service show` has the reason.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Agent, AgentOptions, Netns, Pod, Shop, WebServer, cluster_address, get, poll, public_address,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];

/// Longest time from an edit to its effect.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A good service `bad` with one backend. Comments mark where something can be added.
fn good(backend: &Pod) -> String {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\nspec:\n  type: LoadBalancer\n  \
                   clusterIP: 10.96.0.50\n  clusterIPs: [10.96.0.50, \"fd00:10:96::50\"]\n  # spec\n  ports:\n  \
                   - {name: http, port: 80, protocol: TCP}\n  # ports\n\
                   status:\n  loadBalancer:\n    ingress:\n    - {ip: 198.51.100.50}\n    - {ip: \"2001:db8:f::50\"}\n    # ingress\n---\n";
    let slices = FAMILIES.map(|v6| slice("bad", v6, backend.address(v6)));
    service.to_owned() + &slices.concat()
}

/// An EndpointSlice of a service with one backend on the first node.
fn slice(service: &str, v6: bool, address: IpAddr) -> String {
    let family = if v6 { "IPv6" } else { "IPv4" };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{}\n  namespace: shop\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: {family}\n\
         ports:\n- {{name: http, port: 8080, protocol: TCP}}\n\
         endpoints:\n- {{addresses: [\"{address}\"], nodeName: node1}}\n# {family}\n---\n",
        family.to_lowercase()
    )
}

fn endpoints(addresses: &[&str]) -> String {
    addresses.iter().map(|address| format!("- {{addresses: [\"{address}\"], nodeName: node1}}\n")).collect()
}

/// Everything that `service show` says of a service; `None`: there is none of that name.
fn shown(agent: &Agent, name: &str) -> Option<Value> {
    serde_json::from_str(&agent.view(&format!("service show shop/{name} -o json")).ok()?).ok()
}

/// Conditions and notes.
fn reasons(agent: &Agent, name: &str) -> Vec<String> {
    let shown = shown(agent, name).unwrap_or_default();
    let lists = [&shown["conditions"], &shown["notes"]];
    let texts = lists.into_iter().filter_map(Value::as_array).flatten();
    texts.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// One kind of bad input.
struct Case {
    what: &'static str,
    /// What of the good service's text is replaced, and by what.
    changes: Vec<(&'static str, String)>,
    /// Each reason, as the words that it has.
    reasons: Vec<Vec<&'static str>>,
    /// An address that is asked for and not given.
    left_out: Option<&'static str>,
    /// The families in which the service keeps its addresses.
    kept: &'static [bool],
}

/// A case in which the service keeps all that it had.
fn case<const N: usize>(
    what: &'static str,
    place: &'static str,
    put: impl Into<String>,
    reasons: [&[&'static str]; N],
) -> Case {
    let reasons = reasons.map(<[_]>::to_vec).to_vec();
    Case { what, changes: vec![(place, put.into())], reasons, left_out: None, kept: &FAMILIES }
}

impl Case {
    fn and(mut self, place: &'static str, put: impl Into<String>) -> Self {
        self.changes.push((place, put.into()));
        self
    }

    fn leaves_out(self, address: &'static str) -> Self {
        Self { left_out: Some(address), ..self }
    }

    fn keeps(self, kept: &'static [bool]) -> Self {
        Self { kept, ..self }
    }

    /// Makes the good service bad.
    fn spoil(&self, good: &str) -> Result<String> {
        self.changes.iter().try_fold(good.to_owned(), |text, (place, put)| {
            ensure!(text.contains(place), "{}: there is no {place:?} to replace", self.what);
            Ok(text.replacen(place, put, 1))
        })
    }
}

const LAST_GOOD: &str = "the last good version keeps serving";
const REST: &str = "the rest of it is served";

/// Places of the good service's text where more can be put.
const SPEC: &str = "  # spec";
const PORTS: &str = "  # ports";
const INGRESS: &str = "    # ingress";
const ENDPOINTS: [&str; 2] = ["# IPv4", "# IPv6"];

fn ingress(addresses: &[&str]) -> String {
    addresses.iter().map(|address| format!("    - {{ip: \"{address}\"}}\n")).collect()
}

/// Parts of an object that cannot be read, or say what no service can have.
fn wrong() -> Vec<Case> {
    vec![
        case(
            "port 0 of a service",
            "port: 80,",
            "port: 0,",
            [&["Invalid: ", "bad.yaml:10: Service shop/bad: spec.ports[0].port", "found 0", LAST_GOOD]],
        ),
        case(
            "port 0 of a slice",
            "port: 8080,",
            "port: 0,",
            [&["Invalid: ", "EndpointSlice shop/bad-ipv4: ports[0].port", "found 0", LAST_GOOD]],
        ),
        case(
            "an SCTP port",
            PORTS,
            "  - {name: sctp, port: 81, protocol: SCTP}",
            [&["Invalid: ", "spec.ports[1].protocol", "SCTP is not carried", REST]],
        )
        .leaves_out("10.96.0.50:81"),
        case(
            "two cluster addresses of one family",
            "\"fd00:10:96::50\"]",
            "10.96.0.51]",
            [&["Invalid: ", "spec.clusterIPs[1]", "at most one address of each family", LAST_GOOD]],
        )
        .leaves_out("10.96.0.51:80"),
        case(
            "a public address of a family that the service does not have",
            ", \"fd00:10:96::50\"]",
            "]",
            [&["FamilyNotServed: 2001:db8:f::50 is left out", "no IPv6 ClusterIP"]],
        )
        .leaves_out("[2001:db8:f::50]:80")
        .keeps(&[false]),
        case(
            "an external address on loopback, and one that is no address",
            SPEC,
            "  externalIPs: [127.0.0.1, somewhere]",
            [
                &["Invalid: ", "spec.externalIPs[0]", "loopback 127.0.0.1", REST],
                &["Invalid: ", "spec.externalIPs[1]", "somewhere", REST],
            ],
        ),
    ]
}

/// Endpoints that no service can have.
fn wrong_endpoints() -> Vec<Case> {
    let [v4, v6] = ENDPOINTS;
    let unready = |number: usize| {
        let (high, low) = (number / 250, number % 250 + 1);
        format!("- {{addresses: [10.244.{}.{low}], conditions: {{ready: false}}}}\n", high + 10)
    };
    vec![
        case(
            "an endpoint of the other family",
            v4,
            endpoints(&["fd00:10:244:1::77"]),
            [&["Invalid: ", "endpoints[1].addresses[0]", "an IPv4 address, as addressType says", REST]],
        ),
        case(
            "loopback, link-local and multicast backends",
            v4,
            endpoints(&["127.0.0.1", "169.254.169.254", "224.0.0.1"]),
            [
                &["endpoints[1].addresses[0]", "loopback 127.0.0.1", REST],
                &["endpoints[2].addresses[0]", "link-local 169.254.169.254", REST],
                &["endpoints[3].addresses[0]", "multicast 224.0.0.1", REST],
                &["endpoints[1].addresses[0]", "loopback ::1", REST],
                &["endpoints[2].addresses[0]", "link-local fe80::1", REST],
                &["endpoints[3].addresses[0]", "multicast ff02::1", REST],
            ],
        )
        .and(v6, endpoints(&["::1", "fe80::1", "ff02::1"])),
        case(
            "a slice of more endpoints than the API allows",
            v4,
            (0..1000).map(unready).collect::<String>(),
            [&["endpoints: expected at most 1000: put more into another slice, found 1001", REST]],
        ),
    ]
}

/// Addresses that are not the service's to have.
fn of_others() -> Vec<Case> {
    vec![
        case(
            "the address of a node",
            INGRESS,
            ingress(&["192.0.2.11", "2001:db8:1::12"]),
            [
                &["NodeAddress: 192.0.2.11:80 is left out", "node node1's own address"],
                &["NodeAddress: [2001:db8:1::12]:80 is left out", "node node2's own address"],
            ],
        ),
        case(
            "the external address of a node",
            INGRESS,
            ingress(&["198.51.100.77"]),
            [&["NodeAddress: 198.51.100.77:80 is left out", "node node2's own address"]],
        )
        .leaves_out("198.51.100.77:80"),
        case(
            "an address that pods get",
            INGRESS,
            ingress(&["10.244.1.200", "fd00:10:244:2::77"]),
            [
                &["PodAddress: 10.244.1.200:80 is left out", "node node1's pods"],
                &["PodAddress: [fd00:10:244:2::77]:80 is left out", "node node2's pods"],
            ],
        )
        .leaves_out("10.244.1.200:80"),
        case(
            "external addresses where they are not served",
            SPEC,
            "  externalIPs: [198.51.100.51]",
            [&["ExternalIPsOff: 198.51.100.51 of spec.externalIPs", "--external-ips"]],
        )
        .leaves_out("198.51.100.51:80"),
        case(
            "an address that its load balancer keeps",
            INGRESS,
            "    - {ip: 198.51.100.52, ipMode: Proxy}",
            [&["LeftToProxy: 198.51.100.52 ", "ipMode is Proxy"]],
        )
        .leaves_out("198.51.100.52:80"),
    ]
}

/// A connection is not accepted.
fn is_closed(netns: &Netns, to: &str) -> Result<bool> {
    let to: SocketAddr = to.parse()?;
    netns.enter(move || std::net::TcpStream::connect_timeout(&to, Duration::from_millis(700)).is_err())
}

/// The service is served where it was before, except what is left out; all others entirely.
fn others_are_served(shop: &Shop, case: &Case) -> Result<()> {
    for v6 in FAMILIES {
        get(&shop.client.netns, cluster_address(v6))?;
        get(&shop.cluster.client, public_address(v6))?;
    }
    ensure!(reasons(&shop.agents[0], "web").is_empty(), "{:?}", reasons(&shop.agents[0], "web"));
    for v6 in case.kept {
        let (cluster, public) = if *v6 {
            ("[fd00:10:96::50]:80", "[2001:db8:f::50]:80")
        } else {
            ("10.96.0.50:80", "198.51.100.50:80")
        };
        for _ in 0..8 {
            get(&shop.client.netns, cluster.parse()?).context("at the cluster address")?;
        }
        get(&shop.cluster.client, public.parse()?).context("at the public address")?;
    }
    if let Some(address) = case.left_out {
        ensure!(is_closed(&shop.client.netns, address)?, "{address} is served");
    }
    Ok(())
}

fn is_as_expected(shop: &Shop, case: &Case) -> Result<()> {
    let found = || {
        let found = reasons(&shop.agents[0], "bad");
        (found.len() == case.reasons.len()).then_some(found)
    };
    let found = poll(AT_ONCE, "the reasons are shown", found)
        .with_context(|| format!("shown are {:#?}", reasons(&shop.agents[0], "bad")))?;
    for words in &case.reasons {
        let told = found.iter().any(|reason| words.iter().all(|word| reason.contains(word)));
        ensure!(told, "no reason has the words {words:?}: {found:#?}");
    }
    others_are_served(shop, case)
}

#[test]
fn every_kind_of_bad_input_is_shown_at_its_service_and_costs_nothing_else() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let nodes = std::fs::read_to_string(shop.cluster.objects().join("nodes.yaml"))?;
    let second = "  - {type: InternalIP, address: 192.0.2.12}\n";
    let external = format!("{second}  - {{type: ExternalIP, address: 198.51.100.77}}\n");
    shop.cluster.write("nodes.yaml", &nodes.replace(second, &external))?;
    let _own = WebServer::start(&shop.cluster.nodes[0].netns, 80, "own")?;
    let good = good(&shop.backends[0].pod);
    for case in [wrong(), wrong_endpoints(), of_others()].into_iter().flatten() {
        shop.cluster.write("bad.yaml", &good)?;
        let whole = || {
            let ports = shown(&shop.agents[0], "bad")?["ports"].as_array()?.len();
            (ports == 2 && reasons(&shop.agents[0], "bad").is_empty()).then_some(())
        };
        poll(AT_ONCE, "the good service is served without a word", whole).context(case.what)?;
        shop.cluster.write("bad.yaml", &case.spoil(&good)?)?;
        is_as_expected(&shop, &case).context(case.what)?;
        // The node's own server, at an address that a service asked for.
        assert_eq!(get(&shop.cluster.client, "192.0.2.11:80".parse()?)?.0, "own", "{}", case.what);
    }
    Ok(())
}

/// A service with an address of its own and one that it shares, and its backend.
fn claimant(name: &str, number: u8, created: &str, backend: &Pod) -> String {
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: \"{created}\"}}\n\
         spec:\n  type: LoadBalancer\n  clusterIP: 10.96.0.{number}\n  clusterIPs: [10.96.0.{number}, \"fd00:10:96::{number}\"]\n  \
         ports: [{{name: http, port: 80}}]\n\
         status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.60}}, {{ip: \"2001:db8:f::60\"}}]}}}}\n---\n"
    );
    service + &FAMILIES.map(|v6| slice(name, v6, backend.address(v6))).concat()
}

/// Everybody who answers there, whoever asks.
fn answering(shop: &Shop, to: SocketAddr) -> Result<BTreeSet<String>> {
    let netns = [&shop.client.netns, &shop.cluster.client, &shop.cluster.nodes[0].netns];
    netns.into_iter().flat_map(|netns| [netns; 6]).map(|netns| Ok(get(netns, to)?.0)).collect()
}

#[test]
fn what_two_services_claim_the_older_one_serves_and_the_younger_one_inherits() -> Result<()> {
    let shop = Shop::open(&[0, 0])?;
    let [old, young] = [&shop.backends[0].pod, &shop.backends[1].pod];
    let shared: [SocketAddr; 2] = ["198.51.100.60:80".parse()?, "[2001:db8:f::60]:80".parse()?];
    // The younger one is there first, and its name comes first.
    shop.cluster.write("a-young.yaml", &claimant("a-young", 61, "2025-02-01T00:00:00Z", young))?;
    for to in shared {
        poll(AT_ONCE, "the only one is served", || get(&shop.client.netns, to).ok())?;
        assert_eq!(answering(&shop, to)?, BTreeSet::from(["b1".to_owned()]));
    }
    shop.cluster.write("old.yaml", &claimant("old", 62, "2025-01-01T00:00:00Z", old))?;
    for agent in &shop.agents {
        let told = || Some(reasons(agent, "a-young")).filter(|it| it.len() == 2);
        let told = poll(AT_ONCE, "the younger one's reasons are shown", told)?;
        for (reason, address) in told.iter().zip(["198.51.100.60:80", "[2001:db8:f::60]:80"]) {
            let begin =
                format!("AddressConflict: {address} (TCP) is left out: the older service shop/old has it");
            ensure!(reason.starts_with(&begin), "{reason}");
        }
        assert_eq!(reasons(agent, "old"), Vec::<String>::new());
    }
    for (to, own) in shared.into_iter().zip(["10.96.0.61:80", "[fd00:10:96::61]:80"]) {
        assert_eq!(answering(&shop, to)?, BTreeSet::from(["b0".to_owned()]), "the owner at {to}");
        assert_eq!(get(&shop.client.netns, own.parse()?)?.0, "b1", "the younger one's own address");
    }
    std::fs::remove_file(shop.cluster.objects().join("old.yaml"))?;
    for agent in &shop.agents {
        poll(AT_ONCE, "the heir has no reason left", || reasons(agent, "a-young").is_empty().then_some(()))?;
    }
    for to in shared {
        assert_eq!(answering(&shop, to)?, BTreeSet::from(["b1".to_owned()]), "the heir at {to}");
    }
    Ok(())
}

#[test]
fn a_service_of_which_nothing_is_served_is_shown_with_its_reason() -> Result<()> {
    // Room for the shop's two ports in both families, and for one more.
    let arguments = ["--services", "5"].map(str::to_owned).to_vec();
    let shop = Shop::open_with(&[0], &AgentOptions { arguments, ..AgentOptions::default() })?;
    let service = |name: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n---\n"
        )
    };
    let text = service("full", "clusterIPs: [10.96.0.70, \"fd00:10:96::70\"], ports: [{port: 80}]")
        + &service("addressless", "ports: [{port: 80}]")
        + &service("never", "clusterIP: 10.96.0.71, ports: [{port: 0}]");
    shop.cluster.write("bad.yaml", &text)?;
    for (name, words) in [
        ("full", ["TableFull: ", "--services"]),
        ("addressless", ["NoClusterIP: ", "spec.clusterIP is empty"]),
        ("never", ["Invalid: ", "spec.ports[0].port: expected 1 to 65535, found 0 (it is not served)"]),
    ] {
        let told = || Some(reasons(&shop.agents[0], name)).filter(|it| it.len() == 1);
        let told = poll(AT_ONCE, "the reason is shown", told).context(name)?;
        ensure!(words.iter().all(|word| told[0].contains(word)), "{name}: {told:?}");
        let text = shop.agents[0].view(&format!("service show shop/{name}"))?;
        ensure!(text.contains("no port of it is served") && text.contains(&told[0]), "{text}");
        ensure!(shop.agents[0].view("service list")?.contains(name), "it is listed as well");
    }
    get(&shop.client.netns, cluster_address(false)).map(drop)
}
