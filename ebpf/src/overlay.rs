//! The overlay device (VXLAN with metadata): what it is told of each packet, and what it tells.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, TC_ACT_SHOT, TC_ACT_UNSPEC,
    bpf_tunnel_key as TunnelKey,
};
use aya_ebpf::helpers::generated::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};
use aya_ebpf::programs::TcContext;
use portolan_abi::{Config, Realm, Words, counter, realm_flag};
use portolan_core::overlay::{addresses, destination, is_announced, is_node};
use portolan_core::{Hook, Tables, V4, V6};

use crate::frame::Linear;
use crate::maps;
use crate::run::{self, IPV4, IPV6};
use crate::tables::{Maps, Route};

/// Time to live of the packets outside (RFC 1700's recommended default).
const TTL: u8 = 64;

/// Words of a [`TunnelKey`].
const WORDS: usize = size_of::<TunnelKey>() / 4;

/// Decides on a packet that came by the overlay from a node of the cluster; drops all others.
#[inline(always)]
pub fn receive(ctx: &TcContext) -> i32 {
    if overlay_admit(ctx.skb.skb) == 0 {
        maps::count(counter::DROP_OVERLAY);
        return TC_ACT_SHOT;
    }
    run::classify(ctx, Hook::Uplink)
}

/// Whether the sender of a packet is a node of the cluster. A function of its own, for want of stack, and global as the steps
/// are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn overlay_admit(skb: *mut __sk_buff) -> u32 {
    u32::from(comes_from_node(skb))
}

#[inline(always)]
fn comes_from_node(skb: *mut __sk_buff) -> bool {
    let maps = Maps::<false>::new(skb);
    let Some(config) = Tables::<V4>::config(&maps) else { return false };
    // Built from words: a zeroed struct would become a loop of byte stores.
    let mut words = [0u32; WORDS];
    let key = (&raw mut words).cast::<TunnelKey>();
    let size = size_of::<TunnelKey>() as u32;
    // SAFETY: the context is the program's own; the helper writes the key, of which zero is a valid value. It refuses the other
    // family than the packet's.
    unsafe {
        if bpf_skb_get_tunnel_key(skb, key, size, 0) == 0 {
            let sender = Words([(*key).__bindgen_anon_1.remote_ipv4.to_be()]);
            return (*key).tunnel_id == config.overlay_id && is_node::<V4, _>(&sender, &maps);
        }
        if bpf_skb_get_tunnel_key(skb, key, size, u64::from(BPF_F_TUNINFO_IPV6)) == 0 {
            let sender = Words((*key).__bindgen_anon_1.remote_ipv6);
            return (*key).tunnel_id == config.overlay_id && is_node::<V6, _>(&sender, &maps);
        }
    }
    false
}

/// Tells the device to which node a packet goes.
#[inline(always)]
pub fn send(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid for the whole run.
    let outcome = match unsafe { (*skb).protocol } {
        IPV4 => address::<V4>(skb),
        IPV6 => address::<V6>(skb),
        _ => counter::DROP_OVERLAY,
    };
    maps::count(outcome);
    if outcome == counter::TO_OVERLAY { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

#[inline(always)]
fn address<F: Route>(skb: *mut __sk_buff) -> u32 {
    run::pull::<F>(skb);
    let (frame, maps) = (Linear::new(skb), Maps::<false>::new(skb));
    let Some(realm) = destination::<F, _, _>(&frame, &maps) else {
        // The host's stack announces its groups on every interface.
        let announced = is_announced::<F, _>(&frame);
        return if announced { counter::DROP_LINK_LOCAL } else { counter::DROP_OVERLAY };
    };
    let Some(config) = Tables::<F>::config(&maps) else { return counter::DROP_DANGLING };
    let told = frame.write(0, addresses()) && tell(skb, &realm, &config);
    if told { counter::TO_OVERLAY } else { counter::DROP_KERNEL }
}

/// Tells the device where a packet goes; whether the kernel took that.
#[inline(always)]
fn tell(skb: *mut __sk_buff, realm: &Realm, config: &Config) -> bool {
    let mut words = [0u32; WORDS];
    let key = (&raw mut words).cast::<TunnelKey>();
    // SAFETY: the words have the size and alignment of the key, and zero is valid for every field; the context is the program's
    // own.
    unsafe {
        (*key).tunnel_id = config.overlay_id;
        (*key).tunnel_ttl = TTL;
        let flags = if realm.flags & realm_flag::NODE_V4 != 0 {
            (*key).__bindgen_anon_1.remote_ipv4 = u32::from_be(realm.node.0[0]);
            (*key).__bindgen_anon_3.local_ipv4 = u32::from_be(config.node_v4.0[0]);
            // What is inside has checksums of its own (RFC 7348 5).
            BPF_F_ZERO_CSUM_TX
        } else {
            (*key).__bindgen_anon_1.remote_ipv6 = realm.node.0;
            (*key).__bindgen_anon_3.local_ipv6 = config.node_v6.0;
            BPF_F_TUNINFO_IPV6
        };
        bpf_skb_set_tunnel_key(skb, key, size_of::<TunnelKey>() as u32, u64::from(flags)) == 0
    }
}
