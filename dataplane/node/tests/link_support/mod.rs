//! Namespaces without names for the link tests: held by a descriptor, gone with it, also after a panic.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    process::{Command, Output},
    thread,
};

use portolan_node::link::{Links, Netns, PodLinkSpec};
use serde_json::Value;

pub(crate) const NODE_V4: &str = "192.0.2.1";
pub(crate) const NODE_V6: &str = "2001:db8::1";

/// A network namespace of the test's own.
#[derive(Clone)]
pub(crate) struct Space(pub(crate) Netns);

impl Space {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let made = thread::spawn(|| {
            // SAFETY: unshare(2) of the network namespace changes only where this thread's sockets live.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "the link tests need root");
            Netns::current().unwrap()
        });
        Self(made.join().unwrap())
    }

    /// A path to it that other processes can open while this one lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_fd().as_raw_fd())
    }

    /// Runs a command inside and returns what it did.
    pub(crate) fn try_run(&self, command: &str) -> Output {
        let mut words = command.split_whitespace();
        Command::new("nsenter").arg(format!("--net={}", self.path())).args(&mut words).output().unwrap()
    }

    /// Runs a command inside that must succeed; returns its output.
    pub(crate) fn run(&self, command: &str) -> String {
        let output = self.try_run(command);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `ip -j …` inside; nothing printed is an empty list.
    pub(crate) fn ip(&self, arguments: &str) -> Vec<Value> {
        let text = self.run(&format!("ip -j {arguments}"));
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
    }

    /// Names of the interfaces inside.
    pub(crate) fn names(&self) -> Vec<String> {
        self.ip("link").iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
    }

    /// Reads a sysctl inside.
    pub(crate) fn sysctl(&self, path: &str) -> String {
        self.run(&format!("cat /proc/sys/{path}")).trim().to_owned()
    }

    /// Pings once from inside.
    pub(crate) fn pings(&self, address: &str) -> bool {
        self.try_run(&format!("ping -c 1 -W 2 {address}")).status.success()
    }
}

/// A node: a namespace with an uplink-like device, addresses and forwarding.
pub(crate) struct Node {
    pub(crate) space: Space,
    pub(crate) links: Links,
}

impl Node {
    pub(crate) async fn new() -> Self {
        let space = Space::new();
        space.run("ip link set lo up");
        space.run("ip link add up0 type veth peer name up1");
        space.run("ip link set up0 up");
        space.run("ip link set up1 up");
        space.run(&format!("ip addr add {NODE_V4}/24 dev up0"));
        space.run(&format!("ip addr add {NODE_V6}/64 dev up0 nodad"));
        let links = space.0.run(Links::new).await.unwrap().unwrap();
        links.prepare_node(&[30000..=32767]).await.unwrap();
        Self { space, links }
    }
}

/// A pod numbered `n` in a namespace of its own.
pub(crate) fn pod(n: u8) -> (Space, PodLinkSpec) {
    let space = Space::new();
    let spec = PodLinkSpec {
        host_name: format!("ptl{n:010x}"),
        pod_ifname: "eth0".into(),
        netns: space.0.clone(),
        addresses: vec![v4(n).parse().unwrap(), v6(n).parse::<IpAddr>().unwrap()],
        mac: [0x02, 0, 0, 0, 0, n],
        mtu: 1450,
        egress: None,
        ingress: None,
    };
    (space, spec)
}

pub(crate) fn v4(n: u8) -> String {
    format!("10.77.0.{n}")
}

pub(crate) fn v6(n: u8) -> String {
    format!("fd77::{n:x}")
}

/// An attachment that does nothing.
pub(crate) async fn nothing(_: u32) -> Result<(), std::convert::Infallible> {
    Ok(())
}
