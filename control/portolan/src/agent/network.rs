//! Pods' interfaces: what CNI asks for.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ipnetwork::IpNetwork;
use portolan_abi::{Endpoint, GATEWAY_MAC, endpoint_flag};
use portolan_apply::{Difference, Stale};
use portolan_cni::server::{DelRequest, PodNetwork, PodRequest};
use portolan_cni::spec::{Mac, PodAddress, Route};
use portolan_cni::{Attached, AttachmentId, CniError, Code};
use portolan_core::{V4, V6};
use portolan_ipam::{Addresses, Allocation, HostPort, Ipam, IpamError, Meta};
use portolan_model::ServiceKey;
use portolan_node::attach::Interface;
use portolan_node::link::{self, CreateError, Links, Netns, PodLinkSpec, Rate};
use portolan_node::maps::NodeFamily;
use portolan_node::{AttachError, MapError, Tables};

use super::host_ports;
use super::programs::{Programs, Role};
use super::state::{Core, Shared};
use super::{Options, engine};

/// The pods of this node.
pub(super) struct Network {
    links: Links,
    programs: Arc<Programs>,
    tables: Tables,
    mtu: AtomicU32,
    /// Addresses given to pods: known from the start on, so that pods are taken over and deleted whatever the node's
    /// object says.
    ipam: Ipam,
    /// Attachments that are being made or removed: what the tables have of them may be either.
    busy: Mutex<Vec<AttachmentId>>,
    /// Prefixes of pods whose addresses are known outside of the cluster.
    routable: Vec<IpNetwork>,
    /// Whether the node's podCIDRs are known, from which new addresses come.
    has_cidrs: AtomicBool,
    /// Host interfaces that pods should have and that somebody removed: nothing is delivered to those pods until their
    /// runtime says what becomes of them.
    absent: Mutex<HashSet<String>>,
    shared: Arc<Shared>,
}

/// Why a pod's programs could not be put in place.
#[derive(Debug, thiserror::Error)]
enum PlaceError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Map(#[from] MapError),
}

impl Network {
    pub(super) fn new(
        links: Links,
        programs: Arc<Programs>,
        shared: Arc<Shared>,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let tables = programs.object().tables()?;
        let mtu = AtomicU32::new(if options.mtu == 0 { 1500 } else { options.mtu });
        let ipam = Ipam::open(&options.directories.state_dir.join("ipam"), Vec::new())?;
        Ok(Self {
            links,
            programs,
            tables,
            mtu,
            ipam,
            busy: Mutex::default(),
            routable: options.routable_pods.clone(),
            has_cidrs: AtomicBool::new(false),
            absent: Mutex::default(),
            shared,
        })
    }

    /// Looks which pods still have their interface, and keeps local connections off hostPorts. Once, before the first
    /// complete state is taken in.
    pub(super) async fn look(&self) -> anyhow::Result<()> {
        let interfaces = self.links.interfaces().await?;
        let is_there = |name: &str| interfaces.iter().any(|it| it.name == name);
        let names = self.pods().into_iter().map(|pod| pod.host_ifname);
        self.absent().extend(names.filter(|name| !is_there(name)));
        let ports: Vec<HostPort> = self.pods().into_iter().flat_map(|pod| pod.host_ports).collect();
        Ok(self.reserve(&ports).await?)
    }

    /// Keeps the ports from being the source of the node's own connections: their answers would be led to the pod.
    async fn reserve(&self, ports: &[HostPort]) -> Result<(), link::Error> {
        let ranges: Vec<_> = ports.iter().map(|port| port.host_port..=port.host_port).collect();
        for change in self.links.reserve_ports(&ranges).await? {
            tracing::info!(path = change.path, from = change.from, to = change.to, "sysctl set");
        }
        Ok(())
    }

    /// Host interfaces that are missing.
    pub(super) fn absent(&self) -> MutexGuard<'_, HashSet<String>> {
        // A set has no invariant.
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An interface with a name of ours is gone. If a pod should have it, nothing is delivered there any more: another
    /// interface may get its index.
    pub(super) async fn interface_gone(&self, name: &str) {
        let Some(pod) = self.settled().into_iter().find(|pod| pod.meta.host_ifname == name) else { return };
        // Somebody may have made it anew meanwhile.
        match self.links.interfaces().await {
            Ok(interfaces) if !interfaces.iter().any(|it| it.name == name) => {}
            _ => return,
        }
        let _busy = self.begin(&pod.id);
        // Its runtime may have been faster.
        if self.ipam.get(&pod.id).is_none_or(|now| now.addresses != pod.addresses) {
            return;
        }
        tracing::warn!(
            pod = pod.meta.pod(),
            iface = name,
            "a pod's interface was removed: its addresses are kept until its runtime deletes it"
        );
        self.absent().insert(name.to_owned());
        if let Err(err) = self.displace(&pod.addresses) {
            tracing::error!(pod = pod.meta.pod(), %err, "taking the pod's addresses out");
        }
        self.publish_of(&pod.meta, None);
    }

    /// The hostPorts to serve: of pods that are there and that nobody is making or removing, and of `done`.
    pub(super) fn host_ports(&self, done: Option<&AttachmentId>) -> Vec<portolan_plan::HostPort> {
        let (busy, absent) = (self.busy().clone(), self.absent().clone());
        let is_served = |pod: &Allocation| {
            let settled = !busy.contains(&pod.id) || done == Some(&pod.id);
            settled && !absent.contains(&pod.meta.host_ifname)
        };
        let pods = self.ipam.list().into_iter().filter(is_served);
        pods.flat_map(|pod| host_ports::planned(&pod)).collect()
    }

    /// Brings the tables to the hostPorts of now; `done` is an attachment whose ADD is about to succeed. Whether all could be
    /// written.
    pub(super) fn publish(&self, done: Option<&AttachmentId>) -> bool {
        tokio::task::block_in_place(|| {
            let mut core = self.shared.core();
            // The first complete state brings them.
            if !core.synced {
                return true;
            }
            // Under the lock, so that a later state is never overwritten by an earlier one.
            let ports = self.host_ports(done);
            let Core { store, planner, .. } = &mut *core;
            let changes = planner.set_host_ports(store, ports);
            if changes.services.is_empty() {
                return true;
            }
            core.conditions.clone_from(&changes.conditions);
            let written = engine::apply(&mut core, &changes);
            // What left is out of use at once, so that clients over UDP find who takes its place.
            engine::settle(&mut core);
            let full = |key: &ServiceKey| core.refused.iter().any(|refused| refused.service == *key);
            written && !changes.services.iter().any(|(key, _)| full(key))
        })
    }

    /// [`publish`](Self::publish), where a pod has hostPorts. Most have none.
    fn publish_of(&self, meta: &Meta, done: Option<&AttachmentId>) -> bool {
        meta.host_ports.is_empty() || self.publish(done)
    }

    /// Lets the ports of an ADD that is about to succeed lead to its pod.
    async fn open_ports(&self, allocation: &Allocation) -> Result<(), CniError> {
        let ports = &allocation.meta.host_ports;
        if ports.is_empty() {
            return Ok(());
        }
        self.reserve(ports).await.map_err(|err| failed("reserving the pod's hostPorts", &err))?;
        if self.publish(Some(&allocation.id)) {
            return Ok(());
        }
        let msg = "the pod's hostPorts could not be written to the tables: `portolan status` says why";
        Err(CniError::new(Code::TryAgainLater, msg))
    }

    /// What a pod would hold, for questions before anything is allocated: some address of each family.
    fn sketch(&self, id: &AttachmentId, meta: &Meta) -> Allocation {
        let mut addresses = Addresses { v4: None, v6: None };
        for pool in self.ipam.available() {
            match pool.cidr {
                IpNetwork::V4(cidr) => addresses.v4 = Some(cidr),
                IpNetwork::V6(cidr) => addresses.v6 = Some(cidr),
            }
        }
        Allocation { id: id.clone(), addresses, meta: meta.clone() }
    }

    /// The MTU of pods from now on.
    pub(super) fn set_mtu(&self, mtu: u32) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Changes the podCIDRs that addresses come from.
    pub(super) fn set_pod_cidrs(&self, cidrs: Vec<IpNetwork>) -> Result<(), IpamError> {
        self.ipam.configure(cidrs)?;
        self.has_cidrs.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Addresses given to pods.
    pub(super) fn ipam(&self) -> &Ipam {
        &self.ipam
    }

    /// What was noted of all pods: interfaces and the paths of network namespaces.
    pub(super) fn pods(&self) -> Vec<Meta> {
        self.ipam.list().into_iter().map(|allocation| allocation.meta).collect()
    }

    /// The node's interfaces.
    pub(super) fn links(&self) -> &Links {
        &self.links
    }

    /// What is attached to them.
    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Host interfaces of the pods that nobody is making or removing.
    pub(super) fn settled_interfaces(&self) -> Vec<String> {
        self.settled().into_iter().map(|allocation| allocation.meta.host_ifname).collect()
    }

    /// Compares the kernel's records of pods with what they should be. A pod that comes or goes meanwhile is left out,
    /// and so is one whose interface somebody removed, until its runtime says so.
    pub(super) fn audit(
        &self,
        interfaces: &[link::Interface],
    ) -> Result<BTreeMap<IpAddr, Difference>, MapError> {
        let before = self.settled();
        let wanted = before.iter().flat_map(|allocation| self.records(allocation, interfaces)).collect();
        let mut differences = portolan_apply::audit_pods(&self.tables, &wanted)?;
        let after = self.settled();
        let is_in = |settled: &[Allocation], it: &Allocation| settled.iter().any(|other| other.id == it.id);
        // An interface that is there is not missing, whatever was heard.
        self.absent().retain(|name| !interfaces.iter().any(|it| it.name == *name));
        let moving = self.ipam.list().into_iter().chain(before.iter().cloned()).filter(|allocation| {
            !is_in(&before, allocation)
                || !is_in(&after, allocation)
                || self.records(allocation, interfaces).is_empty()
        });
        for allocation in moving {
            for addr in allocation.addresses.iter() {
                differences.remove(&addr);
            }
        }
        Ok(differences)
    }

    /// Brings the records of these addresses to what they should be.
    pub(super) async fn mend<'a>(&self, addresses: impl Iterator<Item = &'a IpAddr>) -> anyhow::Result<()> {
        let interfaces = self.links.interfaces().await?;
        let settled = self.settled();
        let wanted: BTreeMap<IpAddr, Endpoint> =
            settled.iter().flat_map(|allocation| self.records(allocation, &interfaces)).collect();
        for addr in addresses {
            match wanted.get(addr) {
                Some(endpoint) => self.admit(*addr, endpoint)?,
                None => self.expel(*addr)?,
            }
        }
        Ok(())
    }

    /// Pods that nobody is making or removing.
    fn settled(&self) -> Vec<Allocation> {
        let busy = self.busy().clone();
        self.ipam.list().into_iter().filter(|allocation| !busy.contains(&allocation.id)).collect()
    }

    /// A pod's records; none if its interface is not there.
    fn records(&self, allocation: &Allocation, interfaces: &[link::Interface]) -> Vec<(IpAddr, Endpoint)> {
        let Some(interface) = interfaces.iter().find(|it| it.name == allocation.meta.host_ifname) else {
            return Vec::new();
        };
        let record = |addr| (addr, self.endpoint(addr, interface.ifindex, allocation));
        allocation.addresses.iter().map(record).collect()
    }

    /// The record of one of a pod's addresses.
    fn endpoint(&self, addr: IpAddr, ifindex: u32, allocation: &Allocation) -> Endpoint {
        let routable = self.routable.iter().any(|prefix| prefix.contains(addr));
        let flags = endpoint_flag::LIVE | if routable { endpoint_flag::ROUTABLE } else { 0 };
        Endpoint { ifindex, mac: words(mac_of(allocation)), flags }
    }

    fn busy(&self) -> MutexGuard<'_, Vec<AttachmentId>> {
        // A list has no invariant.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that an attachment is being made or removed, until the guard goes.
    fn begin(&self, id: &AttachmentId) -> Busy<'_> {
        self.busy().push(id.clone());
        Busy { network: self, id: id.clone() }
    }

    /// Whether pods can be given addresses.
    pub(super) fn has_cidrs(&self) -> bool {
        self.has_cidrs.load(Ordering::Relaxed)
    }

    /// Puts the programs and endpoints of all pods in place anew, after a start; takes out those of pods that are
    /// gone. A pod that fails does not stop the others.
    pub(super) async fn restore(&self) -> anyhow::Result<usize> {
        let interfaces = self.links.interfaces().await?;
        let mut live: HashSet<IpAddr> = HashSet::new();
        let mut restored = 0;
        for allocation in self.ipam.list() {
            let host = &allocation.meta.host_ifname;
            let Some(interface) = interfaces.iter().find(|interface| interface.name == *host) else {
                continue;
            };
            // Also if its programs cannot be replaced: the old ones are there, and it goes on as it was.
            live.extend(allocation.addresses.iter());
            let interface = Interface { name: host.clone(), ifindex: interface.ifindex };
            match self.place(&interface, &allocation) {
                Ok(()) => restored += 1,
                Err(err) => {
                    tracing::error!(pod = allocation.meta.pod_name, iface = host, %err, "restoring a pod")
                }
            }
        }
        self.forget_others(&live)?;
        let names: HashSet<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
        for gone in self.programs.attached()?.iter().filter(|name| !names.contains(name.as_str())) {
            self.programs.forget(gone)?;
        }
        Ok(restored)
    }

    fn forget_others(&self, live: &HashSet<IpAddr>) -> Result<(), MapError> {
        fn prune<F: NodeFamily>(
            table: &portolan_node::FamilyTables<F>,
            live: &HashSet<IpAddr>,
        ) -> Result<(), MapError> {
            for (addr, _) in table.endpoints.dump()? {
                if !live.contains(&F::ip(addr)) {
                    table.endpoints.remove(&addr)?;
                }
            }
            Ok(())
        }
        prune(&self.tables.v4, live)?;
        prune(&self.tables.v6, live)
    }

    /// Attaches a pod's programs, then lets its addresses in.
    fn place(&self, interface: &Interface, allocation: &Allocation) -> Result<(), PlaceError> {
        self.programs.attach(interface, Role::Pod)?;
        for addr in allocation.addresses.iter() {
            self.admit(addr, &self.endpoint(addr, interface.ifindex, allocation))?;
        }
        Ok(())
    }

    fn displace(&self, addresses: &Addresses) -> Result<(), MapError> {
        addresses.iter().try_for_each(|addr| self.expel(addr))
    }

    fn admit(&self, addr: IpAddr, endpoint: &Endpoint) -> Result<(), MapError> {
        if let Some(addr) = V4::of(addr) {
            self.tables.v4.endpoints.insert(&addr, endpoint)?;
        } else if let Some(addr) = V6::of(addr) {
            self.tables.v6.endpoints.insert(&addr, endpoint)?;
        }
        Ok(())
    }

    fn expel(&self, addr: IpAddr) -> Result<(), MapError> {
        if let Some(addr) = V4::of(addr) {
            self.tables.v4.endpoints.remove(&addr)?;
        } else if let Some(addr) = V6::of(addr) {
            self.tables.v6.endpoints.remove(&addr)?;
        }
        Ok(())
    }

    fn spec(&self, request: &PodRequest, held: &Allocation) -> Result<PodLinkSpec, CniError> {
        let netns = request.netns.as_fd().try_clone_to_owned().map_err(|err| {
            CniError::new(Code::Io, "keeping the pod's network namespace open").with_details(err.to_string())
        })?;
        let limits = request.runtime.bandwidth.unwrap_or_default();
        let rate = |bits, burst| (bits > 0).then_some(Rate { bits, burst });
        Ok(PodLinkSpec {
            host_name: request.attachment.host_ifname(),
            pod_ifname: request.attachment.ifname().to_owned(),
            netns: Netns::from_fd(netns)
                .map_err(|err| failed("opening the pod's network namespace", &err))?,
            addresses: held.addresses.iter().collect(),
            mac: mac_of(held),
            mtu: self.mtu.load(Ordering::Relaxed),
            egress: rate(limits.egress_rate, limits.egress_burst),
            ingress: rate(limits.ingress_rate, limits.ingress_burst),
        })
    }

    fn attached(&self, spec: &PodLinkSpec) -> Result<Attached, CniError> {
        let mac = |bytes| Mac::new(bytes).map_err(|err| failed("making a MAC address", &err));
        let addresses: Vec<PodAddress> = spec
            .addresses
            .iter()
            .map(|addr| PodAddress { address: IpNetwork::from(*addr), gateway: Some(gateway(*addr)) })
            .collect();
        let default = |addr: &IpAddr| {
            let any: IpAddr = match addr {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            // A prefix length of zero is valid in both families.
            IpNetwork::new(any, 0).ok().map(|dst| Route { dst, gw: Some(gateway(*addr)) })
        };
        Ok(Attached {
            host_ifname: spec.host_name.clone(),
            host_mac: mac(GATEWAY_MAC)?,
            pod_mac: mac(spec.mac)?,
            mtu: spec.mtu,
            routes: spec.addresses.iter().filter_map(default).collect(),
            addresses,
        })
    }

    fn ready(&self) -> Result<&Ipam, CniError> {
        self.has_cidrs().then_some(&self.ipam).ok_or_else(|| {
            CniError::new(Code::TryAgainLater, "this node has no podCIDR yet").with_details(
                "its Node object needs spec.podCIDRs; `portolan status` shows what the agent knows",
            )
        })
    }

    async fn connect(&self, spec: &PodLinkSpec, allocation: &Allocation) -> Result<(), CniError> {
        let name = spec.host_name.clone();
        let result = self
            .links
            .create_pod(spec, async |ifindex| {
                self.place(&Interface { name: name.clone(), ifindex }, allocation)
            })
            .await;
        match result {
            Ok(_) => Ok(()),
            Err(CreateError::Link(err @ link::Error::Exists { .. })) => {
                Err(CniError::new(Code::InterfaceExists, "the interface is there already")
                    .with_details(err.to_string()))
            }
            Err(err) => Err(failed("making the pod's interface", &err)),
        }
    }

    async fn remove(&self, id: &AttachmentId) -> Result<(), CniError> {
        let host = id.host_ifname();
        let held = self.ipam.get(id);
        // Nothing is delivered to an interface that is about to go.
        if let Some(held) = &held {
            // Whoever removes an attachment has said so: it is left out.
            self.publish_of(&held.meta, None);
            self.displace(&held.addresses).map_err(|err| failed("taking the pod's addresses out", &err))?;
        }
        self.links.delete_pod(&host).await.map_err(|err| failed("removing the pod's interface", &err))?;
        self.programs.forget(&host).map_err(|err| failed("removing the pod's links", &err))?;
        self.release(id)?;
        self.absent().remove(&host);
        Ok(())
    }

    fn release(&self, id: &AttachmentId) -> Result<(), CniError> {
        tokio::task::block_in_place(|| self.ipam.release(id, SystemTime::now()))
            .map(drop)
            .map_err(|err| failed("releasing the pod's addresses", &err))
    }
}

/// An attachment is being made or removed.
struct Busy<'a> {
    network: &'a Network,
    id: AttachmentId,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut busy = self.network.busy();
        if let Some(at) = busy.iter().position(|id| *id == self.id) {
            busy.swap_remove(at);
        }
    }
}

impl Network {
    /// What is recorded of a pod.
    fn meta(&self, request: &PodRequest) -> Result<Meta, CniError> {
        let id = &request.attachment;
        let mac = request.runtime.mac.map_or_else(|| derived_mac(id), Mac::bytes);
        if mac == GATEWAY_MAC {
            let msg = format!("mac: {} is the gateway's own address: ask for another", mac_text(mac));
            return Err(CniError::new(Code::InvalidConfig, msg));
        }
        Ok(Meta {
            network: request.network.clone(),
            pod_namespace: request.pod.namespace.clone(),
            pod_name: request.pod.name.clone(),
            pod_uid: request.pod.uid.clone(),
            netns: request.netns.path().to_owned(),
            host_ifname: id.host_ifname(),
            mac: mac_text(mac),
            host_ports: host_ports::wanted(&request.runtime.port_mappings)?,
        })
    }

    /// Removes the flows of pods that are gone now: an address of theirs is used again before the usual collection has come
    /// by. What is left would lead to the old pod's interface.
    fn forget_flows(&self) -> Result<(), MapError> {
        let collect = || portolan_apply::collect(&self.tables, &Stale::default(), portolan_apply::ticks());
        tokio::task::block_in_place(collect).map(drop)
    }

    /// Makes what an allocation stands for.
    async fn make(&self, request: &PodRequest, allocation: &Allocation) -> Result<Attached, CniError> {
        let spec = self.spec(request, allocation)?;
        self.connect(&spec, allocation).await?;
        self.absent().remove(&allocation.meta.host_ifname);
        self.open_ports(allocation).await?;
        self.attached(&spec)
    }

    /// After an ADD that failed. What another ADD holds under this name stays with it, and so does an interface that was
    /// there before.
    async fn undo(&self, before: Option<Allocation>, allocation: &Allocation, code: Code) {
        let id = &allocation.id;
        let undone = match before {
            None if code == Code::InterfaceExists => self.release(id),
            None => self.remove(id).await,
            Some(before) if before.meta == allocation.meta => Ok(()),
            Some(before) => {
                tokio::task::block_in_place(|| self.ipam.allocate(id, before.meta, SystemTime::now()))
                    .map(drop)
                    .map_err(|err| allocation_failed(&err))
            }
        };
        self.publish_of(&allocation.meta, None);
        if let Err(undo) = undone {
            tracing::error!(container = id.container(), err = %undo, "undoing a failed ADD");
        }
    }
}

impl PodNetwork for Network {
    async fn add(&self, request: PodRequest) -> Result<Attached, CniError> {
        let ipam = self.ready()?;
        let id = &request.attachment;
        let _busy = self.begin(id);
        let before = ipam.get(id);
        let meta = self.meta(&request)?;
        host_ports::check(&self.shared.core(), &self.sketch(id, &meta))?;
        let wanted: Vec<IpAddr> = request.runtime.ips.iter().map(IpNetwork::ip).collect();
        let given =
            tokio::task::block_in_place(|| ipam.allocate_these(id, meta.clone(), &wanted, SystemTime::now()))
                .map_err(|err| allocation_failed(&err))?;
        let allocation = Allocation { id: id.clone(), addresses: given.addresses, meta };
        let fresh = if given.rested { Ok(()) } else { self.forget_flows() };
        let result = match fresh {
            Ok(()) => self.make(&request, &allocation).await,
            Err(err) => Err(failed("removing flows of the address's last pod", &err)),
        };
        if let Err(err) = &result {
            self.undo(before, &allocation, err.code).await;
        }
        result
    }

    async fn del(&self, request: DelRequest) -> Result<(), CniError> {
        let _busy = self.begin(&request.attachment);
        self.remove(&request.attachment).await
    }

    async fn check(&self, request: PodRequest) -> Result<Attached, CniError> {
        let held = self.ready()?.get(&request.attachment).ok_or_else(|| {
            CniError::new(Code::UnknownContainer, "no pod was added under this container id and interface")
        })?;
        let mut spec = self.spec(&request, &held)?;
        // What it was then is compared with the result of then.
        spec.mtu = self.links.check_pod(&spec).await.map_err(|err| {
            CniError::new(Code::CheckFailed, "the pod's interface is not as it was made")
                .with_details(err.to_string())
        })?;
        self.attached(&spec)
    }

    async fn gc(&self, network: String, valid: HashSet<AttachmentId>) -> Result<(), CniError> {
        let ipam = self.ready()?;
        let stale = ipam
            .list()
            .into_iter()
            .filter(|allocation| allocation.meta.network == network && !valid.contains(&allocation.id));
        let mut failures = Vec::new();
        for allocation in stale {
            let _busy = self.begin(&allocation.id);
            if let Err(err) = self.remove(&allocation.id).await {
                failures.push(format!("{} {}: {err}", allocation.id.container(), allocation.id.ifname()));
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(CniError::new(Code::Io, "removing stale attachments").with_details(failures.join("; ")))
    }

    async fn status(&self) -> Result<(), CniError> {
        let ipam = match self.ready() {
            Ok(ipam) => ipam,
            Err(err) => return Err(CniError { code: Code::NotAvailable, ..err }),
        };
        if let Some(full) = ipam.available().iter().find(|pool| pool.available == 0) {
            return Err(CniError::new(Code::NotAvailable, format!("no free address in {}", full.cidr))
                .with_details("delete pods or give the node another podCIDR"));
        }
        ipam.health().map_err(|err| CniError::new(Code::NotAvailable, err.to_string()))
    }
}

fn allocation_failed(err: &IpamError) -> CniError {
    let code = match err {
        IpamError::Exhausted { .. } => Code::AddressesExhausted,
        // Until the holder is gone.
        IpamError::PortTaken { .. } | IpamError::AddressTaken { .. } => Code::TryAgainLater,
        IpamError::NotOurs { .. } | IpamError::OtherAddress { .. } | IpamError::TwoOfFamily { .. } => {
            Code::InvalidConfig
        }
        _ => Code::Io,
    };
    CniError::new(code, "allocating addresses").with_details(err.to_string())
}

/// An error with its causes as details.
fn failed(doing: &str, err: &dyn std::error::Error) -> CniError {
    let mut details = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        details = format!("{details}: {cause}");
        source = cause.source();
    }
    CniError::new(Code::Io, doing).with_details(details)
}

fn gateway(addr: IpAddr) -> IpAddr {
    if addr.is_ipv4() { link::GATEWAY_V4 } else { link::GATEWAY_V6 }
}

/// The MAC address of a pod's interface as it was recorded.
pub(super) fn mac_of(allocation: &Allocation) -> [u8; 6] {
    let recorded = allocation.meta.mac.parse().map(Mac::bytes);
    recorded.unwrap_or_else(|_| derived_mac(&allocation.id))
}

/// The MAC address for an attachment whose runtime asks for none: locally administered, the same at every try.
fn derived_mac(id: &AttachmentId) -> [u8; 6] {
    let [.., a, b, c, d, e] = id.digest().to_be_bytes();
    [0x02, a, b, c, d, e]
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn words([a, b, c, d, e, f]: [u8; 6]) -> [u16; 3] {
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
}
