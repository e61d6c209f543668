//! The overlay device: VXLAN (RFC 7348) that asks eBPF for each packet where it goes.

use ipnetwork::IpNetwork;

use super::{
    Error, GATEWAY_MAC, Interface, Links, OVERLAY_DEVICE, RouteReport, ServiceSources, gone, message, read,
    service, socket::Socket, sysctl,
};

/// Bytes that an IPv4 packet and a VXLAN header take of each packet, with the Ethernet header inside.
const OVERHEAD_V4: u32 = 20 + 8 + 8 + 14;
/// The same of an IPv6 packet.
const OVERHEAD_V6: u32 = 40 + 8 + 8 + 14;

impl Links {
    /// Makes the overlay device, or corrects the one that is there; its index. Another UDP port needs another device: it is made
    /// anew.
    ///
    /// It resolves no addresses: a packet leaves with the device's own MAC address as its destination, which is the same on all
    /// nodes.
    ///
    /// # Errors
    /// [`Error::NotOurs`] if a device of that name is something else; or the kernel has no VXLAN.
    pub async fn ensure_overlay(&self, port: u16, mtu: u32) -> Result<u32, Error> {
        self.call(move |socket| {
            if find(socket)?.is_some() && read::vxlan_port(socket, OVERLAY_DEVICE)? != Some(port) {
                socket.run_one(message::delete_link(OVERLAY_DEVICE))?;
            }
            let device = match find(socket)? {
                Some(device) => device,
                None => make(socket, port, mtu)?,
            };
            sysctl::set_host_device(&device.name)?;
            socket.run_one(service::correction(&device, mtu))?;
            Ok(device.ifindex)
        })
        .await
    }

    /// Removes the overlay device, if there is one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_overlay(&self) -> Result<(), Error> {
        self.call(|socket| match find(socket)? {
            Some(_) => gone(socket.run_one(message::delete_link(OVERLAY_DEVICE))),
            None => Ok(()),
        })
        .await
    }

    /// Makes the routes by the overlay exactly these prefixes, each with the node's address of its family as its source.
    ///
    /// # Errors
    /// If the table cannot be read. Single refusals are in the report.
    pub async fn ensure_overlay_routes(
        &self,
        ifindex: u32,
        prefixes: &[IpNetwork],
        sources: ServiceSources,
    ) -> Result<RouteReport, Error> {
        let prefixes = prefixes.to_vec();
        self.call(move |socket| service::ensure_routes_out(socket, ifindex, &prefixes, sources)).await
    }
}

/// The device that is there, if there is one.
fn find(socket: &mut Socket) -> Result<Option<Interface>, Error> {
    match read::interface_by_name(socket, OVERLAY_DEVICE)? {
        Some(device) if device.kind.as_deref() != Some("vxlan") => Err(Error::NotOurs {
            name: device.name,
            found: device.kind.map_or_else(|| "a hardware device".into(), |kind| format!("a {kind}")),
        }),
        found => Ok(found),
    }
}

fn make(socket: &mut Socket, port: u16, mtu: u32) -> Result<Interface, Error> {
    socket.run_one(message::new_vxlan(OVERLAY_DEVICE, GATEWAY_MAC, port, mtu))?;
    find(socket)?.ok_or_else(|| Error::Vanished { name: OVERLAY_DEVICE.into() })
}

/// Bytes that a packet of the overlay is longer than the one inside of it, between IPv4 addresses or IPv6 addresses.
#[must_use]
pub const fn overhead(v4: bool) -> u32 {
    if v4 { OVERHEAD_V4 } else { OVERHEAD_V6 }
}
