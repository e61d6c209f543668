//! Builds the eBPF programs, so that a plain `cargo build` has them.

use std::{env, path::PathBuf, process::Command};

/// The toolchain that `cargo xtask setup` provides.
const TOOLCHAIN: &str = "portolan-bpf";
const TARGET: &str = "bpfel-unknown-none";

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../..");
    let root = root.canonicalize().expect("the workspace is there: this file is in it");
    for input in ["ebpf/src", "ebpf/Cargo.toml", "ebpf/Cargo.lock", "dataplane/abi/src", "dataplane/core/src"]
    {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    // One place for all profiles and features: `core` need not be built again for each.
    let target = root.join("target/bpf");
    // Without the last flag the linker makes LLVM copy structs by a pseudo instruction that crashes it where both
    // sides are aligned to 16 bytes.
    let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order"];
    let mut cargo = Command::new("rustup");
    cargo
        .args(["run", TOOLCHAIN, "cargo", "build", "--release", "--locked", "-Zbuild-std=core"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target)
        .current_dir(root.join("ebpf"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO"] {
        cargo.env_remove(name);
    }
    // A distribution's stable compiler refuses unstable options without it; for this one build only, because
    // other crates' build scripts detect features by it.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    let built = cargo.status().is_ok_and(|status| status.success());
    assert!(
        built,
        "the eBPF programs did not build: run `cargo xtask setup`, which installs their toolchain and linker"
    );
    let object = target.join(TARGET).join("release/portolan-ebpf");
    println!("cargo:rustc-env=PORTOLAN_OBJECT={}", object.display());
}
