//! Interfaces, addresses, routes, neighbours and sysctls of one node, by netlink and `/proc/sys`.
//!
//! Layout of a node: a pod has one veth pair. Its own end carries single addresses (/32, /128) and default
//! routes by [`GATEWAY_V4`] and [`GATEWAY_V6`], which exist nowhere: permanent neighbour entries map them to
//! [`GATEWAY_MAC`], the address of every host side, so that no ARP or ND is ever needed. The host has a route
//! and a permanent neighbour for each pod address. Service CIDRs lead into a veth pair of the node's own.
//!
//! [`Links`] works in the namespace of the thread that made it: one thread of its own stays there with a
//! netlink socket and does the blocking calls, which take microseconds. Work in a pod's namespace happens on
//! a thread that ends with it.

mod check;
mod error;
mod message;
mod netns;
mod overlay;
mod pod;
mod read;
mod route;
mod service;
mod shape;
mod socket;
mod sysctl;
mod uplink;
mod watch;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::mpsc,
    thread,
};

use netlink_packet_route::tc::TcHandle;
use tokio::sync::oneshot;

pub use check::{Difference, Side};
pub use error::{CreateError, Error};
pub use message::Filter;
pub use netns::Netns;
pub use overlay::overhead;
pub use pod::{PodLink, PodLinkSpec};
pub use portolan_abi::GATEWAY_MAC;
pub use read::{DefaultRoute, Details, Interface};
pub use route::{Route, RouteReport, Step, Target, steps};
pub use service::{ServiceDevice, ServiceSources};
pub use shape::Rate;
use socket::Socket;
pub use sysctl::{SysctlChange, with_reserved_ports};
pub use watch::{Event, Watch};

/// Protocol number (`rtm_protocol`) of every route that is ours, in pods too. Not in iproute2's
/// `rt_protos`: what carries it, we made.
pub const PROTOCOL: u8 = 112;
/// Default gateway of a pod's IPv4.
pub const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::from_octets(portolan_abi::GATEWAY_V4));
/// Default gateway of a pod's IPv6.
pub const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::from_octets(portolan_abi::GATEWAY_V6));
/// What the host side of every pod's interface is called first.
pub const HOST_PREFIX: &str = "ptl";
/// The device that service CIDRs are routed to.
pub const SERVICE_DEVICE: &str = "portolan0";
/// The other end of [`SERVICE_DEVICE`], where what was sent to a service comes back in.
pub const SERVICE_PEER: &str = "portolan1";

/// The device by which pods of other nodes are reached, if there is an overlay.
pub const OVERLAY_DEVICE: &str = "portolan2";

type Job = Box<dyn FnOnce(&mut Socket) + Send>;

/// The interfaces and routes of one node. Clones share the thread; it ends with the last one.
#[derive(Clone, Debug)]
pub struct Links {
    jobs: mpsc::Sender<Job>,
    node: Netns,
}

impl Links {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// If no netlink socket can be opened there.
    pub fn new() -> Result<Self, Error> {
        let node = Netns::current()?;
        let mut socket = Socket::open()?;
        let (jobs, queue) = mpsc::channel::<Job>();
        // A thread starts in its parent's namespaces.
        thread::Builder::new()
            .name("portolan-links".into())
            .spawn(move || queue.into_iter().for_each(|job| job(&mut socket)))
            .map_err(|source| Error::Netns { doing: "starting the netlink thread".into(), source })?;
        Ok(Self { jobs, node })
    }

    /// The node's network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.node
    }

    /// Removes everything of ours from the node's namespace: pods' interfaces, the service device, routes
    /// with our protocol number. Sysctls stay. Goes on after a failure.
    ///
    /// # Errors
    /// The first failure.
    pub async fn uninstall(&self) -> Result<(), Error> {
        self.call(|socket| {
            let ours = |link: &Interface| is_own_device(&link.name) && link.mac == Some(GATEWAY_MAC);
            let links = read::interfaces(socket)?.into_iter().filter(ours);
            // Both ends of the service device are in the list: the second is gone with the first.
            let links = links.map(|link| gone(socket.run_one(message::delete_link(&link.name))));
            let mut results: Vec<_> = links.collect();
            let routes = read::own_routes(socket)?;
            results.extend(routes.iter().map(|route| gone(socket.run_one(message::delete_route(route)))));
            results.into_iter().collect()
        })
        .await
    }

    /// Removes the clsact qdisc of an interface, if no filter is on it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_empty_clsact(&self, ifindex: u32) -> Result<(), Error> {
        self.call(move |socket| {
            for side in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
                if !socket.dump(&message::get_filters(ifindex, side), "listing filters")?.is_empty() {
                    return Ok(());
                }
            }
            gone(socket.run_one(message::delete_clsact(ifindex)))
        })
        .await
    }

    /// Whether our classifier is on the clsact qdisc of an interface: at its ingress, at its egress.
    ///
    /// # Errors
    /// The kernel's lists cannot be read.
    pub async fn own_filters(&self, ifindex: u32) -> Result<[bool; 2], Error> {
        self.call(move |socket| {
            let mut found = [false; 2];
            for (side, found) in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS].into_iter().zip(&mut found) {
                let filters = socket.dump(&message::get_filters(ifindex, side), "listing filters");
                *found = match filters {
                    Ok(filters) => filters.iter().any(message::is_own_filter),
                    // There is no such qdisc.
                    Err(error) if read::is_missing(&error) => false,
                    Err(error) => return Err(error),
                };
            }
            Ok(found)
        })
        .await
    }

    /// All filters on the clsact qdisc of an interface, in the order that they see packets: at its ingress, at its egress.
    ///
    /// # Errors
    /// The kernel's lists cannot be read.
    pub async fn filters(&self, ifindex: u32) -> Result<[Vec<Filter>; 2], Error> {
        self.call(move |socket| {
            let mut read = |side| match socket.dump(&message::get_filters(ifindex, side), "listing filters") {
                Ok(filters) => Ok(filters.iter().filter_map(message::filter).collect()),
                // There is no such qdisc.
                Err(error) if read::is_missing(&error) => Ok(Vec::new()),
                Err(error) => Err(error),
            };
            let mut found: [Vec<Filter>; 2] = [read(TcHandle::MIN_INGRESS)?, read(TcHandle::MIN_EGRESS)?];
            for filters in &mut found {
                filters.sort_by_key(|filter| filter.priority);
                // A `u32` filter lists its hash tables as well.
                filters.dedup();
            }
            Ok(found)
        })
        .await
    }

    /// What else all interfaces have or are.
    ///
    /// # Errors
    /// The kernel's lists cannot be read.
    pub async fn details(&self) -> Result<Vec<Details>, Error> {
        self.call(read::details).await
    }

    /// The default routes of the main table.
    ///
    /// # Errors
    /// The kernel's lists cannot be read.
    pub async fn default_routes(&self) -> Result<Vec<DefaultRoute>, Error> {
        self.call(read::default_routes).await
    }

    /// Runs `work` on the thread in the node's namespace.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.post(move |socket| {
            // Dropped undelivered if the caller gave up; what must be undone then does so on drop.
            let _ = reply.send(work(socket));
        })?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Queues `work` without waiting for it.
    fn post(&self, work: impl FnOnce(&mut Socket) + Send + 'static) -> Result<(), Error> {
        self.jobs.send(Box::new(work)).map_err(|_| Error::Stopped)
    }
}

/// Whether the name is one that we give to devices.
fn is_own_device(name: &str) -> bool {
    is_host_name(name) || [SERVICE_DEVICE, SERVICE_PEER, OVERLAY_DEVICE].contains(&name)
}

/// `ptl` and ten hexadecimal digits.
fn is_host_name(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX)
        .is_some_and(|id| id.len() == 10 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The result of a deletion: not there is as good as deleted.
fn gone(result: socket::Answer) -> Result<(), Error> {
    match result {
        Err(error) if !read::is_missing(&error) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}
