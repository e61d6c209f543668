//! Who may send what: checked before anything is looked up for the packet's own sake.

use portolan_abi::{Endpoint, Flow, FlowKey, exit};

use crate::wire::{Frame, join_ports, proto};
use crate::{Address, Family, Hook, Reason, Tables};

/// The Ethernet source address of a frame, as three words in packet order.
#[inline(always)]
pub fn source_mac<P: Frame>(frame: &P) -> Option<[u16; 3]> {
    let [_, middle, last] = frame.words::<3>(0)?;
    if cfg!(target_endian = "little") {
        Some([(middle >> 16) as u16, last as u16, (last >> 16) as u16])
    } else {
        Some([middle as u16, (last >> 16) as u16, last as u16])
    }
}

/// Whether a packet of a flow in the table comes from where the flow does, so that [`check`] need not ask again:
/// what opened the flow has passed it. A pod whose address was another's before has to ask.
#[inline(always)]
pub fn is_proven<F: Family, P: Frame>(
    hook: Hook,
    ifindex: u32,
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    frame: &P,
) -> bool {
    match hook {
        Hook::Pod => {
            flow.from == exit::POD && flow.from_ifindex == ifindex && source_mac(frame) == Some(flow.from_mac)
        }
        // The host's own flows over its loopback device are in the same table.
        Hook::Uplink | Hook::Tunnel => !key.src.is_loopback() && !key.dst.is_loopback(),
        _ => true,
    }
}

/// Checks the addresses of a packet that arrives from a pod or an uplink.
#[inline(always)]
pub fn check<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    key: &FlowKey<F::Addr>,
    frame: &P,
    tables: &T,
) -> Result<(), Reason> {
    if !hook.is_ingress() {
        return Ok(());
    }
    if key.src.is_loopback() || key.dst.is_loopback() {
        return Err(Reason::Loopback);
    }
    match hook {
        Hook::Pod => pod(ifindex, key, frame, tables),
        _ => Ok(()),
    }
}

/// Whether a pod sends what a DHCP server answers with: somebody might believe it.
#[inline(always)]
pub(crate) fn is_lease<F: Family>(hook: Hook, key: &FlowKey<F::Addr>) -> bool {
    let (server, client) = F::DHCP;
    hook == Hook::Pod
        && key.proto == u32::from(proto::UDP)
        && key.ports == join_ports(server.to_be(), client.to_be())
}

/// A pod sends from its own address with its own MAC, to one receiver.
#[inline(always)]
fn pod<F: Family, T: Tables<F>, P: Frame>(
    ifindex: u32,
    key: &FlowKey<F::Addr>,
    frame: &P,
    tables: &T,
) -> Result<(), Reason> {
    let Some(Endpoint { ifindex: own, mac, .. }) = tables.endpoint(&key.src) else {
        let control = key.src.is_link_local_control();
        return Err(if control { Reason::LinkLocal } else { Reason::SpoofedAddress });
    };
    if own != ifindex {
        return Err(Reason::SpoofedAddress);
    }
    if source_mac(frame) != Some(mac) {
        return Err(Reason::SpoofedMac);
    }
    if key.dst.is_multicast() {
        return Err(Reason::Multicast);
    }
    Ok(())
}
