//! Lists of the UDP and of the TCP sockets of a network namespace that were connected to a backend. For user space to
//! read: sock_diag tells of what is stored on TCP sockets only, and does so in another form.

use core::ffi::c_void;
use core::ptr::null_mut;

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_seq_write, bpf_sk_storage_get};
use portolan_abi::{Held, Peer};

use crate::socket::SOCKET_PEER;

/// `struct bpf_iter__udp`, and the beginning of `struct bpf_iter__tcp`. There is an iterator over the storage itself
/// (`bpf_sk_storage_map`), but kernels refuse it that have these.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    sk: *mut c_void,
}

/// Beginning of `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// Writes one record; the last call has no socket.
#[inline(always)]
pub fn write(ctx: *const Context) {
    // SAFETY: the kernel makes the context; what may be missing is looked at before it is used.
    unsafe {
        let (sk, seq) = ((*ctx).sk, (*(*ctx).meta).seq);
        if sk.is_null() {
            return;
        }
        let map = (&raw const SOCKET_PEER).cast_mut().cast();
        let peer = bpf_sk_storage_get(map, sk, null_mut(), 0).cast::<Peer>();
        if peer.is_null() || (*peer).chosen_port == 0 {
            return;
        }
        let held = Held { cookie: bpf_get_socket_cookie(sk), peer: *peer };
        // What the buffer has no room for is written in a further round.
        bpf_seq_write(seq, (&raw const held).cast(), size_of::<Held>() as u32);
    }
}
