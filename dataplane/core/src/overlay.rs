//! The overlay: packets between pods of different nodes travel inside of packets between the nodes (VXLAN, RFC 7348).
//!
//! The device of the overlay does the packing. What is decided here is to which node a packet goes, and from whom one is taken.

use portolan_abi::{Config, FlowKey, OVERLAY_MAC, Realm, frontend_flag, realm_flag};

use crate::service::mark;
use crate::verdict::{gateway_mac, mac_words};
use crate::wire::{ETHERNET, Frame, proto, split_ports};
use crate::{Address, Exit, Family, Hook, Tables};

/// Flags of a [`Realm`] that is reached by the overlay.
const BY_NODE: u32 = realm_flag::NODE_V4 | realm_flag::NODE_V6;

/// The node that has the address which a packet is for; `None`: no other node has it.
#[inline(always)]
pub fn destination<F: Family, T: Tables<F>, P: Frame>(frame: &P, tables: &T) -> Option<Realm> {
    let header = F::header(frame, ETHERNET)?;
    let realm = tables.realm(&F::fields(&header).dst)?;
    (realm.flags & BY_NODE != 0).then_some(realm)
}

/// The Ethernet addresses of a packet in the overlay, destination first.
#[inline(always)]
#[must_use]
pub const fn addresses() -> [u16; 6] {
    let ([a, b, c], [d, e, f]) = (gateway_mac(), mac_words(OVERLAY_MAC));
    [a, b, c, d, e, f]
}

/// Whether a packet is for a group.
#[inline(always)]
pub fn is_announced<F: Family, P: Frame>(frame: &P) -> bool {
    match F::header(frame, ETHERNET) {
        Some(header) => F::fields(&header).dst.is_multicast(),
        None => false,
    }
}

/// The way to an address of another node, one of its pods' or its own, if there is an overlay: what comes from a pod does not reach
/// nodes by any other way.
#[inline(always)]
pub(crate) fn way<F: Family, T: Tables<F>>(dst: &F::Addr, config: &Config, tables: &T) -> Option<Exit> {
    if config.overlay_ifindex == 0 || tables.realm(dst)?.flags & BY_NODE == 0 {
        return None;
    }
    Some(Exit::overlay(config.overlay_ifindex))
}

/// [`way`] for what a pod sends to nobody's service; not for a packet that is too long, whose sender the host's stack tells.
#[inline(always)]
pub(crate) fn direct<F: Family, T: Tables<F>>(
    hook: Hook,
    dst: &F::Addr,
    len: u32,
    tables: &T,
) -> Option<Exit> {
    if hook != Hook::Pod {
        return None;
    }
    let exit = way::<F, T>(dst, &tables.config()?, tables)?;
    tables.fits(exit.ifindex, len).then_some(exit)
}

/// Whether the sender of a packet of the overlay, by the address outside, is a node of the cluster.
#[inline(always)]
pub fn is_node<F: Family, T: Tables<F>>(sender: &F::Addr, tables: &T) -> bool {
    mark::<F, T>(sender, tables) & frontend_flag::PEER != 0
}

/// Whether a pod sends what a node could take for a packet of the overlay. To pods and services it may: nobody takes anything out
/// there.
#[inline(always)]
pub(crate) fn is_forged<F: Family, T: Tables<F>>(hook: Hook, key: &FlowKey<F::Addr>, tables: &T) -> bool {
    if hook != Hook::Pod || key.proto != u32::from(proto::UDP) {
        return false;
    }
    let Some(config) = tables.config() else { return false };
    if config.overlay_port == 0 || split_ports(key.ports).1 != config.overlay_port.to_be() {
        return false;
    }
    let flags = mark::<F, T>(&key.dst, tables);
    if flags & (frontend_flag::NODE | frontend_flag::PEER) != 0 {
        return true;
    }
    let pods = match tables.realm(&key.dst) {
        Some(realm) => realm.flags & BY_NODE != 0,
        None => false,
    };
    !pods && flags & frontend_flag::VIP == 0 && tables.endpoint(&key.dst).is_none()
}
