//! The interfaces that connect the node to the outside.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Error, Interface, Links, is_own_device, read};

impl Links {
    /// All interfaces of the node with their addresses, in order of index.
    ///
    /// # Errors
    /// If the kernel's lists cannot be read.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, Error> {
        self.call(read::interfaces).await
    }

    /// The interfaces that carry one of `node_addresses` or a default route, in order of index. Never
    /// loopback, never a device of ours, never one without Ethernet addresses (a tunnel): the programs read Ethernet
    /// headers.
    ///
    /// # Errors
    /// If the kernel's lists cannot be read.
    pub async fn uplinks(&self, node_addresses: &[IpAddr]) -> Result<Vec<Interface>, Error> {
        let node_addresses: BTreeSet<IpAddr> = node_addresses.iter().copied().collect();
        self.call(move |socket| {
            let with_default: BTreeSet<u32> = read::default_route_interfaces(socket)?.into_iter().collect();
            let is_uplink = |link: &Interface| {
                let carries = link.addresses.iter().any(|address| node_addresses.contains(&address.ip()));
                !link.loopback
                    && link.mac.is_some()
                    && !is_own_device(&link.name)
                    && (carries || with_default.contains(&link.ifindex))
            };
            Ok(read::interfaces(socket)?.into_iter().filter(is_uplink).collect())
        })
        .await
    }

    /// The interface that the node's own packets to `address` leave by, and the address they come from; nothing
    /// where there is no route.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn route_to(&self, address: IpAddr) -> Result<(Option<u32>, Option<IpAddr>), Error> {
        self.call(move |socket| read::route_to(socket, address)).await
    }
}
