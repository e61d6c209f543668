//! Pods' interfaces: what CNI asks for.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ipnetwork::IpNetwork;
use portolan_abi::{Endpoint, GATEWAY_MAC, endpoint_flag};
use portolan_apply::Difference;
use portolan_cni::server::{DelRequest, PodNetwork, PodRequest};
use portolan_cni::spec::{Mac, PodAddress, Route};
use portolan_cni::{Attached, AttachmentId, CniError, Code};
use portolan_core::{V4, V6};
use portolan_ipam::{Addresses, Allocation, Ipam, IpamError, Meta};
use portolan_node::attach::Interface;
use portolan_node::link::{self, CreateError, Links, Netns, PodLinkSpec};
use portolan_node::maps::NodeFamily;
use portolan_node::{AttachError, MapError, Tables};

use super::Options;
use super::programs::{Programs, Role};

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
    pub(super) fn new(links: Links, programs: Arc<Programs>, options: &Options) -> anyhow::Result<Self> {
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
        })
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
        let record = |addr| (addr, self.endpoint(addr, interface.ifindex, &allocation.id));
        allocation.addresses.iter().map(record).collect()
    }

    /// The record of one of a pod's addresses.
    fn endpoint(&self, addr: IpAddr, ifindex: u32, id: &AttachmentId) -> Endpoint {
        let routable = self.routable.iter().any(|prefix| prefix.contains(addr));
        let flags = endpoint_flag::LIVE | if routable { endpoint_flag::ROUTABLE } else { 0 };
        Endpoint { ifindex, mac: words(mac_of(id)), flags }
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
            self.admit(addr, &self.endpoint(addr, interface.ifindex, &allocation.id))?;
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

    fn spec(&self, request: &PodRequest, addresses: &Addresses) -> Result<PodLinkSpec, CniError> {
        let netns = request.netns.as_fd().try_clone_to_owned().map_err(|err| {
            CniError::new(Code::Io, "keeping the pod's network namespace open").with_details(err.to_string())
        })?;
        Ok(PodLinkSpec {
            host_name: request.attachment.host_ifname(),
            pod_ifname: request.attachment.ifname().to_owned(),
            netns: Netns::from_fd(netns)
                .map_err(|err| failed("opening the pod's network namespace", &err))?,
            addresses: addresses.iter().collect(),
            mac: mac_of(&request.attachment),
            mtu: self.mtu.load(Ordering::Relaxed),
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
        // Endpoints first: nothing is delivered to an interface that is about to go.
        if let Some(held) = &held {
            self.displace(&held.addresses).map_err(|err| failed("taking the pod's addresses out", &err))?;
        }
        self.links.delete_pod(&host).await.map_err(|err| failed("removing the pod's interface", &err))?;
        self.programs.forget(&host).map_err(|err| failed("removing the pod's links", &err))?;
        self.release(id)
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

impl PodNetwork for Network {
    async fn add(&self, request: PodRequest) -> Result<Attached, CniError> {
        let ipam = self.ready()?;
        let id = &request.attachment;
        let _busy = self.begin(id);
        let known = ipam.get(id).is_some();
        let meta = Meta {
            network: request.network.clone(),
            pod_namespace: request.pod.namespace.clone(),
            pod_name: request.pod.name.clone(),
            pod_uid: request.pod.uid.clone(),
            netns: request.netns.path().to_owned(),
            host_ifname: id.host_ifname(),
            mac: mac_text(mac_of(id)),
        };
        let addresses = tokio::task::block_in_place(|| ipam.allocate(id, meta.clone(), SystemTime::now()))
            .map_err(|err| allocation_failed(&err))?;
        let allocation = Allocation { id: id.clone(), addresses, meta };
        let spec = self.spec(&request, &addresses)?;
        let result = match self.connect(&spec, &allocation).await {
            Ok(()) => self.attached(&spec),
            Err(err) => Err(err),
        };
        // What another ADD holds under this name stays with it, and so does an interface that was there before.
        let undone = match &result {
            Err(err) if !known && err.code == Code::InterfaceExists => self.release(id),
            Err(_) if !known => self.remove(id).await,
            _ => Ok(()),
        };
        if let Err(undo) = undone {
            tracing::error!(container = id.container(), err = %undo, "undoing a failed ADD");
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
        let mut spec = self.spec(&request, &held.addresses)?;
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

/// The MAC address of a pod's interface, from its attachment: locally administered, the same after a restart.
pub(super) fn mac_of(id: &AttachmentId) -> [u8; 6] {
    let [.., a, b, c, d, e] = id.digest().to_be_bytes();
    [0x02, a, b, c, d, e]
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn words([a, b, c, d, e, f]: [u8; 6]) -> [u16; 3] {
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
}
