//! A pod's interface: made, removed.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;
use netlink_packet_core::NLM_F_REPLACE;
use netlink_packet_route::RouteNetlinkMessage as Message;

use super::{
    CreateError, Error, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Links, Netns, Route, Target, gone, is_host_name,
    message::{self, End},
    read,
    shape::{self, Rate},
    socket::{Request, Socket},
    sysctl,
};

/// Index of `lo`, the first device of every network namespace.
const LOOPBACK: u32 = 1;
/// Smallest MTU of IPv6 (RFC 8200 §5) and of IPv4 (RFC 791).
const MIN_MTU_V6: u32 = 1280;
const MIN_MTU_V4: u32 = 68;
/// The kernel handles a change of carrier at once, or within a second if it has just done so.
const CARRIER_DEADLINE: Duration = Duration::from_secs(3);
const CARRIER_INTERVAL: Duration = Duration::from_millis(1);
/// Largest MTU of a veth.
const MAX_MTU: u32 = 65535;

/// What a pod's interface is to be like.
#[derive(Clone, Debug)]
pub struct PodLinkSpec {
    /// Name of the host's side: `ptl` and ten hexadecimal digits.
    pub host_name: String,
    /// Name of the pod's side, `eth0` as a rule.
    pub pod_ifname: String,
    /// The pod's network namespace.
    pub netns: Netns,
    /// The pod's addresses, of one or both families.
    pub addresses: Vec<IpAddr>,
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
    /// MTU of both sides.
    pub mtu: u32,
    /// Limit of what the pod sends.
    pub egress: Option<Rate>,
    /// Limit of what the pod gets.
    pub ingress: Option<Rate>,
}

/// A pod's interface that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Index of the host's side in the node's namespace.
    pub ifindex: u32,
    /// Index of the pod's side in the pod's namespace.
    pub pod_ifindex: u32,
}

impl Links {
    /// Makes a pod's interface. `attach` is called with the index of the host's side while both sides are
    /// still down: nothing can be sent before it has succeeded.
    ///
    /// On failure, or if the future is dropped, nothing is left.
    ///
    /// # Errors
    /// [`CreateError::Attach`] with what `attach` returned; [`Error::Exists`] if either name is taken (what
    /// has it stays untouched); others as the kernel refuses.
    pub async fn create_pod<E>(
        &self,
        spec: &PodLinkSpec,
        attach: impl AsyncFnOnce(u32) -> Result<(), E>,
    ) -> Result<PodLink, CreateError<E>> {
        spec.validate()?;
        if spec.netns.is_same(&self.node)? {
            return Err(Error::NodeNetns.into());
        }
        let (link, undo) = self.create_pair(spec.clone()).await?;
        let result = match attach(link.ifindex).await {
            Ok(()) => self.bring_up(spec, link).await.map_err(CreateError::Link),
            Err(error) => Err(CreateError::Attach(error)),
        };
        match result {
            Ok(()) => undo.disarm(),
            Err(_) => undo.now().await,
        }
        result.map(|()| link)
    }

    /// Removes a pod's interface, both sides, by the name of the host's. Not there is fine.
    ///
    /// # Errors
    /// [`Error::InvalidName`] if no pod's interface has such a name.
    pub async fn delete_pod(&self, host_name: &str) -> Result<(), Error> {
        check_host_name(host_name)?;
        let request = message::delete_link(host_name);
        // The kernel waits for an RCU grace period (tens of milliseconds), mostly without its routing lock:
        // several deletions share one, and creations do not queue behind them.
        self.node.run(move || gone(Socket::open()?.run_one(request))).await?
    }

    async fn create_pair(&self, spec: PodLinkSpec) -> Result<(PodLink, Undo), Error> {
        let links = self.clone();
        self.call(move |socket| {
            let link = spec.make_pair(socket)?;
            // Made on the worker: if the caller has gone away by now, it is dropped there.
            Ok((link, Undo { links, ifindex: Some(link.ifindex), name: spec.host_name }))
        })
        .await
    }

    /// The host's side first, so that the pod's finds its carrier.
    async fn bring_up(&self, spec: &PodLinkSpec, link: PodLink) -> Result<(), Error> {
        let host = spec.clone();
        self.call(move |socket| {
            sysctl::set_host_device(&host.host_name)?;
            socket.run(host.host_requests(link.ifindex))
        })
        .await?;
        let pod = spec.clone();
        spec.netns
            .run(move || {
                let mut socket = Socket::open()?;
                sysctl::set_pod_device(&pod.pod_ifname, pod.addresses.iter().any(IpAddr::is_ipv6))?;
                // Before there is anything to send with.
                shape::limit(&mut socket, &pod.limited(link), pod.egress, pod.ingress)?;
                socket.run(pod.pod_requests(link.pod_ifindex))?;
                settle(&mut socket, &pod.pod_ifname)
            })
            .await??;
        let host_name = spec.host_name.clone();
        self.node.run(move || settle(&mut Socket::open()?, &host_name)).await?
    }
}

impl PodLinkSpec {
    /// Whether the kernel could make this at all, before it is asked.
    pub(super) fn validate(&self) -> Result<(), Error> {
        check_host_name(&self.host_name)?;
        check_pod_name(&self.pod_ifname)?;
        let invalid = |reason: &str| Err(Error::InvalidSpec { reason: reason.into() });
        if self.addresses.is_empty() {
            return invalid("it has no address");
        }
        if let Some(&address) = self.addresses.iter().find(|address| !is_usable(address)) {
            return Err(Error::InvalidAddress { address });
        }
        if self.mac == [0; 6] || self.mac[0] & 1 != 0 {
            return invalid("its MAC address is zero or a group address");
        }
        let least = if self.addresses.iter().any(IpAddr::is_ipv6) { MIN_MTU_V6 } else { MIN_MTU_V4 };
        if !(least..=MAX_MTU).contains(&self.mtu) {
            return Err(Error::InvalidSpec {
                reason: format!("MTU {} is not between {least} and {MAX_MTU}", self.mtu),
            });
        }
        Ok(())
    }

    /// The veth pair, each end at once where it belongs.
    fn make_pair(&self, socket: &mut Socket) -> Result<PodLink, Error> {
        let host = End { name: &self.host_name, mac: GATEWAY_MAC, mtu: self.mtu, netns: None };
        let pod = End { name: &self.pod_ifname, mac: self.mac, mtu: self.mtu, netns: Some(&self.netns) };
        let requests = vec![message::new_veth(&host, &pod), message::get_link(&self.host_name)];
        let mut answers = socket.transact(requests)?.into_iter();
        match answers.next() {
            Some(Err(error)) if read::has_errno(&error, &[libc::EEXIST]) => {
                // The second answer is about whatever has the host's name.
                let host_taken = matches!(answers.next(), Some(Ok(_)));
                let (name, place) =
                    if host_taken { (&self.host_name, "node's") } else { (&self.pod_ifname, "pod's") };
                return Err(Error::Exists { name: name.clone(), place });
            }
            Some(Err(error)) => return Err(error),
            Some(Ok(_)) | None => {}
        }
        let made = match answers.next() {
            Some(Ok(Some(Message::NewLink(link)))) => read::interface(&link),
            _ => return Err(self.lost(socket)),
        };
        let Some(pod_ifindex) = made.peer else { return Err(self.lost(socket)) };
        Ok(PodLink { ifindex: made.ifindex, pod_ifindex })
    }

    /// The pair vanished right after it was made: the pod's namespace is going away.
    fn lost(&self, socket: &mut Socket) -> Error {
        // Best effort: it is most probably gone.
        let _ = socket.run_one(message::delete_link(&self.host_name));
        Error::Vanished { name: self.host_name.clone() }
    }

    /// Routes that the host needs for the pod.
    pub(super) fn host_routes(&self, ifindex: u32) -> impl Iterator<Item = Route> {
        self.addresses.iter().map(move |&address| Route {
            prefix: IpNetwork::from(address),
            target: Target::Device { ifindex, source: None },
        })
    }

    /// The gateway of each of the pod's families.
    pub(super) fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let has = |wanted: fn(&IpAddr) -> bool| self.addresses.iter().any(wanted);
        let v4 = has(IpAddr::is_ipv4).then_some(GATEWAY_V4);
        v4.into_iter().chain(has(IpAddr::is_ipv6).then_some(GATEWAY_V6))
    }

    fn host_requests(&self, ifindex: u32) -> Vec<Request> {
        let up = message::set_up(ifindex, &self.host_name);
        let neighbours = self
            .addresses
            .iter()
            .map(|&address| message::set_neighbour(ifindex, &self.host_name, address, self.mac));
        // A pod that went away without a word may have left a route for the same address.
        let routes = self.host_routes(ifindex).map(|route| message::add_route(&route, NLM_F_REPLACE));
        [up].into_iter().chain(neighbours).chain(routes).collect()
    }

    fn limited(&self, link: PodLink) -> shape::Limited<'_> {
        shape::Limited {
            ifindex: link.pod_ifindex,
            name: &self.pod_ifname,
            mtu: self.mtu,
            queue: &self.host_name,
        }
    }

    fn pod_requests(&self, ifindex: u32) -> Vec<Request> {
        let name = &self.pod_ifname;
        let mut requests = vec![message::set_up(LOOPBACK, "lo")];
        requests.extend(self.addresses.iter().map(|&address| message::add_address(ifindex, name, address)));
        requests.push(message::set_up(ifindex, name));
        for gateway in self.gateways() {
            let target = Target::Device { ifindex, source: None };
            let link = Route { prefix: IpNetwork::from(gateway), target };
            requests.push(message::set_neighbour(ifindex, name, gateway, GATEWAY_MAC));
            requests.push(message::add_route(&link, NLM_F_REPLACE));
            requests.push(message::add_route_on(ifindex, &default_route(gateway)));
        }
        requests
    }
}

/// Waits until an interface that is up passes packets.
///
/// The kernel handles a new carrier on a work queue: until then it drops what is sent, and IPv6 does not
/// run. Asking for a single interface makes newer kernels do that work at once; with others this polls.
pub(super) fn settle(socket: &mut Socket, name: &str) -> Result<(), Error> {
    let deadline = Instant::now() + CARRIER_DEADLINE;
    loop {
        match read::interface_by_name(socket, name)? {
            Some(link) if link.operational => return Ok(()),
            None => return Err(Error::Vanished { name: name.into() }),
            Some(_) if Instant::now() > deadline => return Err(Error::NoCarrier { name: name.into() }),
            Some(_) => thread::sleep(CARRIER_INTERVAL),
        }
    }
}

/// The default route by that gateway.
pub(super) fn default_route(gateway: IpAddr) -> Route {
    let any = match gateway {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    // A prefix of length 0 is valid in both families.
    let prefix = IpNetwork::new(any, 0).unwrap_or_else(|_| IpNetwork::from(any));
    Route { prefix, target: Target::Via(gateway) }
}

/// Deletes a half-made interface when it is dropped.
struct Undo {
    links: Links,
    ifindex: Option<u32>,
    name: String,
}

impl Undo {
    fn disarm(mut self) {
        self.ifindex = None;
    }

    /// Deletes and waits for it. A failure is logged: the caller has an error of its own to report.
    async fn now(mut self) {
        let Some(ifindex) = self.ifindex.take() else { return };
        let request = message::delete_link_index(ifindex, &self.name);
        if let Err(err) = self.links.call(move |socket| gone(socket.run_one(request))).await {
            tracing::error!(iface = self.name, %err, "a half-made interface is left");
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let Some(ifindex) = self.ifindex else { return };
        let request = message::delete_link_index(ifindex, &self.name);
        // If the thread has ended there is nobody left to delete it: the agent is going down.
        let _ = self.links.post(move |socket| drop(socket.run_one(request)));
    }
}

fn check_host_name(name: &str) -> Result<(), Error> {
    let reason = "the host's side is called `ptl` and ten hexadecimal digits";
    if is_host_name(name) { Ok(()) } else { Err(Error::InvalidName { name: name.into(), reason }) }
}

/// The kernel's rule (`dev_valid_name`), and no name that has a meaning below `/proc/sys`.
fn check_pod_name(name: &str) -> Result<(), Error> {
    let reason = match name {
        "" | "." | ".." => "it must have a name",
        "all" | "default" | "lo" => "the name is reserved",
        _ if name.len() > 15 => "it is longer than 15 characters",
        _ if name
            .contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control()) =>
        {
            "it contains a character that no interface name may have"
        }
        _ => return Ok(()),
    };
    Err(Error::InvalidName { name: name.into(), reason })
}

fn is_usable(address: &IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !special && !link_local
}
