//! A large cluster as objects in memory, and where its services are in the kernel.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use portolan_abi::{FrontendKey, Service as ServiceRecord, Words};
use portolan_apply::Applier;
use portolan_model::{
    Endpoint, EndpointSlice, Family, NamespacedName, Node, Object, Port, Protocol, Service, ServiceType,
    SlicePort,
};
use smallvec::smallvec;

/// Name of the node that is measured.
pub(super) const NODE: &str = "node-0";
/// Endpoints of each service.
const ENDPOINTS: u32 = 3;
/// Nodes that they are on.
const NODES: u32 = 100;
/// The first service address, the first endpoint's, and the first of those that endpoints move to.
const SERVICES: u32 = 0x0a60_0001;
const PODS: u32 = 0x0b00_0000;
const MOVED: u32 = 0x0c00_0000;

/// The node.
pub(super) fn node() -> Object {
    Object::Node(Node {
        name: NODE.into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))],
        external: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: None,
        labels: portolan_model::Labels::new(),
        unschedulable: false,
        taints: Vec::new(),
        deleting: false,
    })
}

/// A service and its endpoints.
pub(super) fn service(number: u32) -> [Object; 2] {
    let service = Service {
        key: name(number),
        created: None,
        kind: ServiceType::ClusterIp,
        skipped: false,
        cluster_ips: smallvec![address(SERVICES + number)],
        external_ips: Vec::new(),
        ingress_ips: Vec::new(),
        load_balancer: None,
        source_ranges: Vec::new(),
        ports: smallvec![Port { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        internal_local: false,
        external_local: false,
        affinity: None,
        health_check_node_port: 0,
    };
    [Object::Service(service), slice(number, [0, 1, 2].map(|n| PODS + number * ENDPOINTS + n))]
}

/// The endpoints of a service, after one of them moved for the `times`th time.
pub(super) fn moved(number: u32, times: u32) -> Object {
    slice(number, [MOVED + times, PODS + number * ENDPOINTS + 1, PODS + number * ENDPOINTS + 2])
}

fn slice(number: u32, addresses: [u32; ENDPOINTS as usize]) -> Object {
    let endpoint = |(n, addr): (u32, u32)| Endpoint {
        addr: address(addr),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(format!("node-{}", (number + n) % NODES).into()),
        hints: None,
    };
    Object::EndpointSlice(EndpointSlice {
        key: NamespacedName::new("default", &format!("service-{number}-abcde")),
        service: Some(name(number)),
        family: Some(Family::V4),
        ports: smallvec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..).zip(addresses).map(endpoint).collect(),
        triggered: None,
    })
}

fn name(number: u32) -> NamespacedName {
    NamespacedName::new("default", &format!("service-{number}"))
}

fn address(bits: u32) -> IpAddr {
    Ipv4Addr::from_bits(bits).into()
}

/// Whether packets to a service may go where its endpoint moved.
pub(super) fn is_moved(applier: &Applier, number: u32, times: u32) -> Result<bool> {
    let wanted = Words::<1>::from_octets((MOVED + times).to_be_bytes());
    Ok(backends(applier, &record(applier, number)?).contains(&wanted))
}

/// Whether packets to a service find all of its endpoints.
pub(super) fn is_there(applier: &Applier, number: u32) -> Result<bool> {
    Ok(backends(applier, &record(applier, number)?).len() == ENDPOINTS as usize)
}

/// Addresses in a service's ring.
fn backends(applier: &Applier, service: &ServiceRecord) -> Vec<Words<1>> {
    let tables = applier.tables();
    let ring = tables.slab.slice(service.cluster.offset(), service.cluster.len());
    ring.into_iter().map(|index| tables.v4.backends.read(index).addr).collect()
}

/// The service that the kernel has for an address.
fn record(applier: &Applier, number: u32) -> Result<ServiceRecord> {
    let addr = Words::<1>::from_octets((SERVICES + number).to_be_bytes());
    let key = FrontendKey { addr, port: 80u16.to_be(), proto: 6, zero: 0 };
    let frontend = applier.tables().v4.frontends.get(&key)?.context("the kernel has no such frontend")?;
    Ok(applier.tables().services.read(frontend.service))
}
