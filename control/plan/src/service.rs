//! The plan of one service.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::RandomState;
use ipnetwork::IpNetwork;
use portolan_model::{Entry, Family, Name, Port, Protocol, Service, ServiceKey, ServiceType};
use smallvec::SmallVec;

use crate::claims::{Claim, Claims};
use crate::host_port::HostPort;
use crate::pods::PodRanges;
use crate::select::{Place, Wanted, select};
use crate::{Condition, FrontendAddr, NodePlan, Options, PortName, Reason, Scope, ServicePlan, ServicePort};

/// What the plan of a service depends on besides its own objects.
pub(crate) struct Context<'a> {
    pub(crate) place: &'a Place,
    pub(crate) options: &'a Options,
    pub(crate) claims: &'a Claims,
    /// Every node's addresses and whose they are.
    pub(crate) node_addrs: &'a HashMap<IpAddr, Name, RandomState>,
    pub(crate) pod_ranges: &'a PodRanges,
    /// Ports of this node that lead to pods.
    pub(crate) host_ports: &'a [HostPort],
    pub(crate) node_plan: &'a NodePlan,
}

/// The service, if it is ours to serve.
pub(crate) fn served(entry: &Entry) -> Option<&Service> {
    let service = entry.service.as_ref()?;
    let ours = !service.skipped && service.kind != ServiceType::ExternalName;
    (ours && !service.cluster_ips.is_empty()).then_some(service)
}

/// Claims of one service. Most have one: that takes no allocation.
pub(crate) type ClaimList = SmallVec<[Claim; 1]>;

/// Every address and port that a served service claims, sorted and unique.
pub(crate) fn claims_of(service: &Service, options: &Options) -> ClaimList {
    let mut claims = ClaimList::new();
    for (family, port) in families_and_ports(service) {
        for frontend in frontends(service, port, family, options) {
            claims.push(claim(&frontend, family, port.protocol));
        }
    }
    claims.sort_unstable();
    claims.dedup();
    claims
}

/// What a plan has been granted, as claims.
pub(crate) fn granted(plan: &ServicePlan) -> impl Iterator<Item = Claim> {
    plan.ports.iter().flat_map(|port| {
        let PortName { family, protocol, .. } = port.name;
        port.frontends.iter().map(move |frontend| claim(frontend, family, protocol))
    })
}

/// What a service may not have.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Claimed but not granted.
    pub(crate) claims: Vec<Claim>,
    /// The same and more for the operator.
    pub(crate) conditions: Vec<Condition>,
}

/// Plans one service; `None` if it is not served. What it may not have is added to `refused`.
pub(crate) fn plan(
    key: &ServiceKey,
    entry: &Entry,
    context: &Context<'_>,
    refused: &mut Refused,
) -> Option<ServicePlan> {
    let Some(service) = served(entry) else {
        if let Some(service) = &entry.service {
            note_missing_address(service, &mut refused.conditions);
        }
        return None;
    };
    note_omissions(service, context.options, &mut refused.conditions);
    let mut ports = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
    for (family, port) in families_and_ports(service) {
        ports.push(plan_port(key, service, entry, (family, port), context, refused));
    }
    Some(ServicePlan { ports })
}

fn plan_port(
    key: &ServiceKey,
    service: &Service,
    entry: &Entry,
    (family, port): (Family, &Port),
    context: &Context<'_>,
    refused: &mut Refused,
) -> ServicePort {
    let mut granted: Vec<FrontendAddr> = Vec::with_capacity(1);
    for frontend in frontends(service, port, family, context.options) {
        // An external address may repeat a load balancer's: the first mention counts.
        if granted.iter().any(|known| known.addr == frontend.addr && known.port == frontend.port) {
            continue;
        }
        let claim = claim(&frontend, family, port.protocol);
        match refusal(key, &frontend, &claim, context) {
            None => {
                refused.conditions.extend(shadow(key, &frontend, &claim, context));
                granted.push(frontend);
            }
            Some(condition) => {
                refused.claims.push(claim);
                refused.conditions.push(condition);
            }
        }
    }
    granted.sort_unstable();
    let external = reachable_from_outside(service, port, context.options);
    let external_local = service.external_local && external;
    let direct =
        external && !service.external_local && context.options.external_mode.is_direct(port.protocol);
    let wanted = Wanted {
        port: &port.name,
        protocol: port.protocol,
        family,
        local: external_local || service.internal_local || direct,
        rest: context.options.reset_departed && port.protocol == Protocol::Tcp,
    };
    let selection = select(&entry.slices, wanted, context.place);
    ServicePort {
        name: PortName { service: key.clone(), port: port.name.clone(), protocol: port.protocol, family },
        frontends: granted,
        cluster: selection.cluster,
        why: selection.why,
        local: selection.local,
        local_why: selection.local_why,
        internal_local: service.internal_local,
        external_local,
        consistent: external && context.options.consistent,
        direct,
        sources: sources(service, family),
        kept: selection.rest,
        affinity: service.affinity,
    }
}

fn families_and_ports(service: &Service) -> impl Iterator<Item = (Family, &Port)> {
    let families = service.cluster_ips.iter().map(|ip| Family::of(*ip));
    families.flat_map(|family| service.ports.iter().map(move |port| (family, port)))
}

/// What a port of a service asks for in one family, whether or not it may have it.
fn frontends<'a>(
    service: &'a Service,
    port: &'a Port,
    family: Family,
    options: &Options,
) -> impl Iterator<Item = FrontendAddr> + 'a {
    let of_family = move |ips: &'a [IpAddr], scope: Scope| {
        let ips = ips.iter().copied().filter(move |ip| Family::of(*ip) == family);
        ips.map(move |ip| FrontendAddr { addr: Some(ip), port: port.port, scope })
    };
    let external: &[IpAddr] = if options.external_ips { &service.external_ips } else { &[] };
    let node_port = (has_node_ports(service) && port.node_port != 0).then_some(FrontendAddr {
        addr: None,
        port: port.node_port,
        scope: Scope::NodePort,
    });
    of_family(&service.cluster_ips, Scope::ClusterIp)
        .chain(node_port)
        .chain(of_family(load_balancer_ips(service), Scope::LoadBalancer))
        .chain(of_family(external, Scope::External))
}

fn load_balancer_ips(service: &Service) -> &[IpAddr] {
    if service.kind == ServiceType::LoadBalancer { &service.ingress_ips } else { &[] }
}

fn proxied_ips(service: &Service) -> &[IpAddr] {
    service.load_balancer.as_ref().map_or(&[], |it| &it.proxied_ips)
}

/// Who may use the load balancer addresses of a family; `None`: everybody.
///
/// Each family by itself: a range of length 0 opens its own, and says nothing of the other. A family without any range,
/// in a service that has some, is closed. kube-proxy opens it; but who names clients wants no others, and a list
/// that was written before the service got its second family would let in everybody.
fn sources(service: &Service, family: Family) -> Option<Vec<IpNetwork>> {
    if service.source_ranges.is_empty() {
        return None;
    }
    let ranges = service.source_ranges.iter().copied();
    let mut ranges: Vec<_> = ranges.filter(|range| Family::of_prefix(*range) == family).collect();
    if ranges.iter().any(|range| range.prefix() == 0) {
        return None;
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges)
}

fn has_node_ports(service: &Service) -> bool {
    matches!(service.kind, ServiceType::NodePort | ServiceType::LoadBalancer)
}

fn reachable_from_outside(service: &Service, port: &Port, options: &Options) -> bool {
    (has_node_ports(service) && port.node_port != 0)
        || !load_balancer_ips(service).is_empty()
        || (options.external_ips && !service.external_ips.is_empty())
}

fn claim(frontend: &FrontendAddr, family: Family, protocol: Protocol) -> Claim {
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Claim { addr: frontend.addr.unwrap_or(any), port: frontend.port, protocol }
}

/// What is claimed by a NodePort.
pub(crate) fn node_port_claim(port: u16, family: Family, protocol: Protocol) -> Claim {
    claim(&FrontendAddr { addr: None, port, scope: Scope::NodePort }, family, protocol)
}

/// A NodePort that leads to a pod on this node, because that was there first and has its exact address.
fn shadow(
    key: &ServiceKey,
    frontend: &FrontendAddr,
    claim: &Claim,
    context: &Context<'_>,
) -> Option<Condition> {
    if frontend.scope != Scope::NodePort || context.host_ports.is_empty() {
        return None;
    }
    let same = |port: &&HostPort| {
        port.port == claim.port
            && port.protocol == claim.protocol
            && Family::of(claim.addr) == port.family()
            && port.meets_node_ports(context.node_plan)
    };
    let port = context.host_ports.iter().find(same)?;
    let message = format!(
        "node port {} ({}) leads to a pod on this node, which has it as its hostPort ({}); give one of them another",
        claim.port, claim.protocol, port.name
    );
    Some(Condition { service: key.clone(), reason: Reason::HostPort, message })
}

fn refusal(
    key: &ServiceKey,
    frontend: &FrontendAddr,
    claim: &Claim,
    context: &Context<'_>,
) -> Option<Condition> {
    let at = |addr: IpAddr| std::net::SocketAddr::new(addr, frontend.port);
    let condition = |reason, message| Some(Condition { service: key.clone(), reason, message });
    if let Some(addr) = frontend.addr
        && let Some(node) = context.node_addrs.get(&addr)
    {
        let message = format!("{} is left out: {addr} is node {node}'s own address", at(addr));
        return condition(Reason::NodeAddress, message);
    }
    if let Some(addr) = frontend.addr
        && let Some(node) = context.pod_ranges.node_of(addr)
    {
        let message =
            format!("{} is left out: {addr} is one of the addresses of node {node}'s pods", at(addr));
        return condition(Reason::PodAddress, message);
    }
    if let (Scope::NodePort, Some((first, last))) = (frontend.scope, context.options.node_ports)
        && !(first..=last).contains(&frontend.port)
    {
        let message = format!(
            "node port {} is left out: nodes answer on {first} to {last} only; give it another, or the agents another \
             --node-port-range",
            frontend.port
        );
        return condition(Reason::NodePortRange, message);
    }
    let owner = context.claims.owner_before(claim, key)?;
    let what = match frontend.addr {
        Some(addr) => at(addr).to_string(),
        None => format!("node port {}", frontend.port),
    };
    let message = format!(
        "{what} ({}) is left out: the older service {owner} has it; give one of them another",
        claim.protocol
    );
    condition(Reason::AddressConflict, message)
}

fn note_missing_address(service: &Service, conditions: &mut Vec<Condition>) {
    let expects_one = !service.skipped && service.kind != ServiceType::ExternalName;
    if expects_one {
        conditions.push(Condition {
            service: service.key.clone(),
            reason: Reason::NoClusterIp,
            message: "spec.clusterIP is empty: the API server gives one; in a file, write one".into(),
        });
    }
}

/// What a served service asks for and does not get, for other reasons than somebody else's address.
fn note_omissions(service: &Service, options: &Options, conditions: &mut Vec<Condition>) {
    // The usual service has no address but its ClusterIPs.
    if service.external_ips.is_empty() && service.ingress_ips.is_empty() && proxied_ips(service).is_empty() {
        return;
    }
    let mut note = |reason, message| {
        conditions.push(Condition { service: service.key.clone(), reason, message });
    };
    if !options.external_ips && !service.external_ips.is_empty() {
        note(Reason::ExternalIpsOff, external_ips_off(&service.external_ips));
    }
    let external: &[IpAddr] = if options.external_ips { &service.external_ips } else { &[] };
    for ip in load_balancer_ips(service).iter().chain(external) {
        if !has_family(service, Family::of(*ip)) {
            note(Reason::FamilyNotServed, family_not_served(*ip));
        }
    }
    for ip in load_balancer_ips(service).iter().filter(|ip| has_family(service, Family::of(**ip))) {
        if sources(service, Family::of(*ip)).is_some_and(|ranges| ranges.is_empty()) {
            note(Reason::NobodyAdmitted, nobody_admitted(*ip));
        }
    }
    for ip in proxied_ips(service) {
        let message = format!("{ip} is left to the load balancer that has it: its ipMode is Proxy");
        note(Reason::LeftToProxy, message);
    }
}

fn has_family(service: &Service, family: Family) -> bool {
    service.cluster_ips.iter().any(|ip| Family::of(*ip) == family)
}

fn external_ips_off(ips: &[IpAddr]) -> String {
    let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
    format!(
        "{} of spec.externalIPs left out: agents serve them only if started with --external-ips",
        ips.join(", ")
    )
}

fn family_not_served(ip: IpAddr) -> String {
    let family = Family::of(ip);
    format!(
        "{ip} is left out: the service has no {family} ClusterIP; add {family} to spec.ipFamilies, or take the address away"
    )
}

fn nobody_admitted(ip: IpAddr) -> String {
    let everybody = if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    format!(
        "{ip} is closed: loadBalancerSourceRanges has no range of its family; add one to open it ({everybody}: to everybody)"
    )
}
