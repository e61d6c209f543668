//! What a socket is given at `connect()` or `sendmsg()`, before there is any packet.

use portolan_abi::FrontendKey;
use portolan_apply::ticks;
use portolan_core::Hook;
use portolan_core::socket::{Asker, backend};
use portolan_core::wire::proto;
use portolan_node::maps::NodeFamily;

use super::frame::Probe;
use super::live::Recorder;
use super::place::Place;
use super::story::Step;
use super::{Node, Protocol};

/// The step of a socket on this node, where sockets are balanced.
pub(super) fn step<F: NodeFamily>(
    node: &Node,
    place: &Place,
    probe: &Probe,
    tables: &Recorder<'_, F>,
) -> Option<Step> {
    let cgroup = node.socket_cgroup.as_deref()?;
    // An outside client's socket is on another machine.
    if place.hook == Hook::Uplink {
        return None;
    }
    let (ip, port) = probe.destination;
    let proto = match probe.protocol {
        Protocol::Tcp => proto::TCP,
        Protocol::Udp => proto::UDP,
    };
    let asked = FrontendKey { addr: F::of(ip)?, port: port.to_be(), proto, zero: 0 };
    // Which one is chosen at random for each socket: that there is one is what can be told.
    let asker = Asker { of_host: place.hook != Hook::Pod, hash: 0, now: ticks() };
    let chosen = backend::<F, _>(&asked, asker, None, tables);
    let call = match probe.protocol {
        Protocol::Tcp => "connect",
        Protocol::Udp => "connect or sendmsg",
    };
    let finding = match chosen {
        Some(chosen) => {
            let service = node.service(chosen.choice.service);
            let others = match probe.protocol {
                Protocol::Tcp => "other processes, and for sockets that were bound to a port before",
                Protocol::Udp => "other processes",
            };
            format!(
                "a process in cgroup {cgroup} gets a backend of service {service} at {call}, and its packets go there \
                 directly; what follows is for {others}"
            )
        }
        None => format!("left alone at {call} in cgroup {cgroup}: packets decide, as follows"),
    };
    Some(Step { step: "socket", finding })
}
