//! The node itself: its addresses and routes, its uplinks, the devices of its own.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use portolan_abi::{Config, UPLINKS, Words, config_flag};
use portolan_core::{V4, V6};
use portolan_model::Family;
use portolan_node::attach::Interface;
use portolan_node::link::{Event, OVERLAY_DEVICE, RouteReport, SERVICE_DEVICE, ServiceSources};
use portolan_node::maps::NodeFamily;
use portolan_plan::NodePlan;

use super::Engine;
use crate::agent::announce::ALL_UPLINKS;
use crate::agent::options::RoutingMode;
use crate::agent::programs::Role;

/// Seed of the flow hash. One for all nodes and versions: all have to choose alike.
const SEED: u32 = 0x706f_7274;

/// Index of `lo`: the first interface of every network namespace.
const LOOPBACK: u32 = 1;

impl Engine {
    /// What the packet path must know of the node.
    pub(super) fn config(&self, node: &NodePlan) -> Config {
        let (first, last) = self.options.masquerade_range;
        let mut uplinks = self.known_uplinks;
        if !self.uplinks.is_empty() {
            uplinks = [0; UPLINKS];
            for (place, uplink) in uplinks.iter_mut().zip(&self.uplinks) {
                *place = uplink.ifindex;
            }
        }
        let overlay = self.overlay.is_some();
        Config {
            node_v4: node.addresses.iter().copied().find_map(V4::of).unwrap_or(Words::ZERO),
            node_v6: node.addresses.iter().copied().find_map(V6::of).unwrap_or(Words::ZERO),
            service_ifindex: self.service_ifindex,
            masquerade_first: first,
            masquerade_count: last - first + 1,
            nodeport_first: self.options.node_port_range.0,
            nodeport_last: self.options.node_port_range.1,
            seed: SEED,
            overlay_ifindex: self.overlay.unwrap_or(0),
            overlay_id: if overlay { self.options.overlay.overlay_id } else { 0 },
            overlay_port: if overlay { self.options.overlay.overlay_port } else { 0 },
            flags: if self.options.masquerade { config_flag::MASQUERADE } else { 0 },
            uplinks,
        }
    }

    /// Addresses, routes and uplinks of the node. Each part goes on when another fails.
    pub(super) async fn node(&mut self, node: &NodePlan) {
        if !node.pod_cidrs.is_empty() {
            let set = tokio::task::block_in_place(|| self.network.set_pod_cidrs(node.pod_cidrs.clone()));
            self.warn("podCIDRs", set.err().map(|err| format!("podCIDRs: {err}")));
        }
        self.warn("NodePort addresses", closed_node_ports(node));
        let sources = ServiceSources {
            v4: node.addresses.iter().find_map(|addr| match addr {
                IpAddr::V4(addr) => Some(*addr),
                IpAddr::V6(_) => None,
            }),
            v6: node.addresses.iter().find_map(|addr| match addr {
                IpAddr::V6(addr) => Some(*addr),
                IpAddr::V4(_) => None,
            }),
        };
        self.routes(node, sources).await;
        // Without an address in a family, its packets would have no source that a backend could answer.
        let has =
            |cidr: &&IpNetwork| if cidr.is_ipv4() { sources.v4.is_some() } else { sources.v6.is_some() };
        let cidrs: Vec<IpNetwork> = self.options.service_cidrs.iter().filter(has).copied().collect();
        let routes = self.links.ensure_service_routes(&cidrs, sources).await;
        self.report("service routes", routes);
        let skipped: Vec<String> = node
            .skipped
            .iter()
            .map(|s| format!("no route to {} of node {}: {}", s.prefix, s.node, s.reason))
            .collect();
        self.warn("skipped routes", (!skipped.is_empty()).then(|| skipped.join("; ")));
        self.find_uplinks(&node.addresses).await;
    }

    /// The ways to other nodes' pods. Those of another mode go first: the kernel has one for each prefix.
    async fn routes(&self, node: &NodePlan, sources: ServiceSources) {
        let native: Vec<_> = match self.options.overlay.routing_mode {
            RoutingMode::Native => node.routes.iter().map(|route| (route.prefix, route.via)).collect(),
            RoutingMode::Vxlan | RoutingMode::Fabric => Vec::new(),
        };
        if self.overlay.is_none() {
            let removed = self.links.remove_overlay().await;
            self.warn("overlay", removed.err().map(|err| format!("removing {OVERLAY_DEVICE}: {err}")));
        }
        self.report("routes", self.links.ensure_routes(&native, &node.pod_cidrs).await);
        let Some(overlay) = self.overlay else { return };
        let prefixes: Vec<IpNetwork> = node.routes.iter().map(|route| route.prefix).collect();
        let routes = self.links.ensure_overlay_routes(overlay, &prefixes, sources).await;
        self.report("overlay routes", routes);
        let outside = self.options.overlay.family();
        let has = node.addresses.iter().any(|addr| Family::of(*addr) == outside);
        let lack = || {
            format!(
                "the overlay needs an InternalIP of {outside}: give this node one, or choose --overlay-family"
            )
        };
        self.warn("overlay", (!has && !node.addresses.is_empty()).then(lack));
    }

    /// Attaches to uplinks that are new, and takes their MTU for pods.
    async fn find_uplinks(&mut self, addresses: &[IpAddr]) {
        self.find_neighbours(addresses).await;
        let found = match self.links.uplinks(addresses).await {
            Ok(found) => found,
            Err(err) => return self.warn("uplinks", Some(format!("finding uplinks: {err}"))),
        };
        let smallest = found.iter().map(|uplink| uplink.mtu).min();
        if let (0, Some(mtu)) = (self.options.mtu, smallest) {
            let mtu = self.options.overlay.inside(mtu);
            self.network.set_mtu(mtu);
            self.set_service_mtu(mtu).await;
        }
        let uplinks: Vec<Interface> =
            found.into_iter().map(|link| Interface { name: link.name, ifindex: link.ifindex }).collect();
        let (mut failed, mut attached) = (None, Vec::new());
        for uplink in &uplinks {
            if !self.uplinks.contains(uplink) {
                match self.programs.attach(uplink, Role::Uplink) {
                    Ok(()) => tracing::info!(iface = uplink.name, "uplink attached"),
                    Err(err) => {
                        failed = Some(format!("uplink {}: {err}", uplink.name));
                        continue;
                    }
                }
            }
            attached.push(uplink.clone());
        }
        if uplinks.is_empty() {
            failed = Some("no interface carries this node's addresses or a default route".to_owned());
        }
        let mut core = self.shared.core();
        core.interfaces.retain(|_, role| role != "uplink");
        core.interfaces.extend(uplinks.iter().map(|uplink| (uplink.name.clone(), "uplink".to_owned())));
        drop(core);
        if uplinks.len() > UPLINKS {
            failed = Some(format!(
                "there are {} uplinks: pods leave the cluster by the first {UPLINKS}",
                uplinks.len()
            ));
        }
        // The others are tried again with the next change, and do not keep pods from leaving by these.
        self.uplinks = attached;
        self.warn("uplinks", failed);
        self.refresh_config();
    }

    /// Interfaces on which public addresses are announced by ARP and NDP.
    async fn find_neighbours(&self, addresses: &[IpAddr]) {
        if !self.shared.announce.uses_l2() {
            return;
        }
        let wanted = &self.options.announce.l2_interfaces;
        let mut found = Vec::new();
        if wanted.iter().any(|name| name == ALL_UPLINKS) {
            found.push(self.links.uplinks(addresses).await);
        }
        found.push(
            self.links
                .interfaces()
                .await
                .map(|all| all.into_iter().filter(|link| wanted.contains(&link.name)).collect()),
        );
        let found: Vec<_> = match found.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(found) => found.concat(),
            Err(err) => return self.warn("layer 2", Some(format!("layer 2: finding interfaces: {err}"))),
        };
        let mut chosen: Vec<portolan_l2::Interface> = Vec::new();
        for link in found {
            let Some(mac) = link.mac.filter(|_| chosen.iter().all(|it| it.ifindex != link.ifindex)) else {
                continue;
            };
            let portolan_node::link::Interface { name, ifindex, operational, .. } = link;
            chosen.push(portolan_l2::Interface { name, ifindex, mac, operational });
        }
        let absent =
            wanted.iter().filter(|name| *name != ALL_UPLINKS && chosen.iter().all(|it| it.name != **name));
        let absent: Vec<&str> = absent.map(String::as_str).collect();
        let warning = (!absent.is_empty()).then(|| {
            format!(
                "layer 2: --l2-interfaces names {}: no such Ethernet interface is there",
                absent.join(", ")
            )
        });
        self.warn("layer 2", warning);
        self.shared.announce.set_interfaces(chosen);
    }

    /// Tells the packet path which uplinks there are now.
    fn refresh_config(&self) {
        let mut core = self.shared.core();
        let config = self.config(core.planner.node());
        if core.config.is_some_and(|known| known != config) {
            core.config = Some(config);
            core.applier.set_config(config);
        }
    }

    /// The service device follows the uplinks: what the host sends to a service may leave by any of them.
    async fn set_service_mtu(&mut self, mtu: u32) {
        if self.service_mtu == Some(mtu) {
            return;
        }
        let mut set = self.links.ensure_service_device(mtu).await.map(drop);
        if self.overlay.is_some() && set.is_ok() {
            set = self.links.ensure_overlay(self.options.overlay.overlay_port, mtu).await.map(drop);
        }
        if set.is_ok() {
            self.service_mtu = Some(mtu);
        }
        self.warn("service device", set.err().map(|err| format!("MTU of the node's own devices: {err}")));
    }

    /// Looks at all flows, once after the start: uplinks of before may be gone, and other nodes be reached in another way.
    pub(super) async fn look_at_flows(&self) {
        let gone = match self.links.interfaces().await {
            Ok(there) => {
                let is_gone = |index: &u32| *index != 0 && !there.iter().any(|link| link.ifindex == *index);
                self.known_uplinks.into_iter().filter(is_gone).collect()
            }
            // A later change of the interfaces tells.
            Err(_) => Vec::new(),
        };
        let mut core = self.shared.core();
        core.applier.suspect_flows();
        gone.into_iter().for_each(|index| core.applier.suspect_interface(index));
    }

    /// The service device and loopback.
    pub(super) async fn attach_own(&mut self) {
        let own = [(SERVICE_DEVICE, self.service_ifindex, Role::Service), ("lo", LOOPBACK, Role::Loopback)];
        let overlay = self.overlay.map(|ifindex| (OVERLAY_DEVICE, ifindex, Role::Overlay));
        for (name, ifindex, role) in own.into_iter().chain(overlay) {
            let interface = Interface { name: name.to_owned(), ifindex };
            let attached = self.programs.attach(&interface, role);
            self.warn(name, attached.err().map(|err| format!("{name}: {err}")));
            self.shared.core().interfaces.insert(name.to_owned(), role.name().to_owned());
        }
    }

    /// An interface or address of the node changed.
    pub(in crate::agent) async fn link_event(&mut self, event: Event) {
        let ours = |name: &str| name.starts_with(portolan_node::link::HOST_PREFIX);
        match event {
            Event::Link(link) if ours(&link.name) => return,
            Event::LinkGone(link) if ours(&link.name) => {
                return self.network.interface_gone(&link.name).await;
            }
            Event::LinkGone(link) => {
                // A later interface of the same name and index is another one.
                self.uplinks.retain(|uplink| uplink.ifindex != link.ifindex);
                self.shared.core().applier.suspect_interface(link.ifindex);
                self.collect();
            }
            _ => {}
        }
        if self.shared.core().synced {
            let addresses = self.shared.core().planner.node().addresses.clone();
            self.find_uplinks(&addresses).await;
        }
    }

    fn report(&self, about: &'static str, result: Result<RouteReport, portolan_node::link::Error>) {
        let warning = match result {
            Ok(report) if report.failed.is_empty() => None,
            Ok(report) => {
                let lines: Vec<String> =
                    report.failed.iter().map(|(route, err)| format!("{}: {err}", route.prefix)).collect();
                Some(format!("{about}: {}", lines.join("; ")))
            }
            Err(err) => Some(format!("{about}: {err}")),
        };
        self.warn(about, warning);
    }
}

/// What is wrong if no address of the node answers NodePorts.
fn closed_node_ports(node: &NodePlan) -> Option<String> {
    (node.node_ports.is_empty() && !node.addresses.is_empty()).then(|| {
        let own: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        format!(
            "NodePorts are closed: --nodeport-addresses has none of this node's InternalIPs, {}",
            own.join(", ")
        )
    })
}
