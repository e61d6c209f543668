//! A list of all sockets that were connected to a backend, in whatever network namespace. For user space to read:
//! sock_diag tells of what is stored on TCP sockets only.

use core::ffi::c_void;

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_seq_write};
use portolan_abi::{Held, Peer};

/// `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    map: *mut c_void,
    sk: *mut c_void,
    value: *const Peer,
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
        let (sk, value, seq) = ((*ctx).sk, (*ctx).value, (*(*ctx).meta).seq);
        if sk.is_null() || value.is_null() {
            return;
        }
        let held = Held { cookie: bpf_get_socket_cookie(sk), peer: *value, zero: 0 };
        // What the buffer has no room for is written in a further round.
        bpf_seq_write(seq, (&raw const held).cast(), size_of::<Held>() as u32);
    }
}
