//! Where things are in a checkout.

use std::path::PathBuf;

/// The root of the checkout: the parent of this crate's directory.
pub(crate) fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// The directory of build results; `CARGO_TARGET_DIR` moves it, as it does for cargo.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// The crate of the eBPF programs, which is not a workspace member.
pub(crate) fn ebpf() -> PathBuf {
    root().join("ebpf")
}

/// The target directory of the eBPF crate: never the workspace's own, which the outer cargo has locked.
pub(crate) fn ebpf_target() -> PathBuf {
    root().join("target/bpf")
}

/// The object that holds every eBPF program.
pub(crate) fn ebpf_object() -> PathBuf {
    ebpf_target().join("bpfel-unknown-none/release/portolan-ebpf")
}
