//! Limits of a pod's traffic: token buckets inside of the pod's network namespace.
//!
//! What the pod sends waits at its own interface. What it gets comes straight into its namespace from the programs of other
//! interfaces (`bpf_redirect_peer`), past every queue of the host's side, so it is led through a device of the kind that is
//! made for that (`ifb`), whose queue waits. Both are the kernel's usual means (`tbf`, `u32`, `mirred`). A pod that may
//! administrate its network can remove them: they are for pods that share, not against them.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage as Message,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    tc::{
        TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
        TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
        TcU32Selector, TcU32SelectorFlags,
    },
};

use super::{
    Error, gone, message, read,
    socket::{Request, Socket},
};

/// A limit of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second, not 0.
    pub bits: u64,
    /// Bits that may go at once after silence; 0: a tenth of a second's. Never less than a full packet.
    pub burst: u64,
}

/// Limits both directions of a pod's interface, from inside its namespace, and removes again what it made if that fails.
pub(super) fn limit(
    socket: &mut Socket,
    link: &Limited<'_>,
    egress: Option<Rate>,
    ingress: Option<Rate>,
) -> Result<(), Error> {
    if let Some(rate) = egress {
        socket.run(vec![token_bucket(link.ifindex, link.name, link.mtu, rate)])?;
    }
    let Some(rate) = ingress else { return Ok(()) };
    let made = limit_ingress(socket, link, rate);
    if made.is_err() {
        // Best effort: the error that counts is known.
        let _ = socket.run_one(message::delete_link(link.queue));
    }
    made
}

/// A pod's interface whose traffic is limited.
pub(super) struct Limited<'a> {
    pub(super) ifindex: u32,
    pub(super) name: &'a str,
    /// In bytes.
    pub(super) mtu: u32,
    /// Name of the device at which waits what comes in: that of the host's side, which is in another namespace.
    pub(super) queue: &'a str,
}

fn limit_ingress(socket: &mut Socket, link: &Limited<'_>, rate: Rate) -> Result<(), Error> {
    // One that an earlier container of this namespace left behind.
    gone(socket.run_one(message::delete_link(link.queue)))?;
    socket.run(vec![new_queue(link.queue, link.mtu)])?;
    let queue = read::interface_by_name(socket, link.queue)?
        .ok_or_else(|| Error::Vanished { name: link.queue.into() })?
        .ifindex;
    socket.run(vec![
        token_bucket(queue, link.queue, link.mtu, rate),
        message::set_up(queue, link.queue),
        ingress_hook(link.ifindex, link.name),
        redirect_all(link.ifindex, link.name, queue),
    ])
}

/// Makes the device.
fn new_queue(name: &str, mtu: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
    ];
    let doing = format!("making device {name} for the pod's ingress limit (needs the kernel's ifb)");
    Request::new(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, doing)
}

/// A token bucket as the root of an interface's queues.
fn token_bucket(ifindex: u32, name: &str, mtu: u32, rate: Rate) -> Request {
    let Bucket { rate, burst, queue } = Bucket::new(rate, mtu);
    // `tc_tbf_qopt`: two `tc_ratespec` of twelve bytes (the second, for a peak rate, stays zero), limit, buffer, MTU.
    let mut parameters = [0; 36];
    parameters[1] = LINK_LAYER_ETHERNET;
    parameters[8..12].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    parameters[24..28].copy_from_slice(&queue.to_ne_bytes());
    let option = |kind, bytes: &[u8]| TcOption::Other(DefaultNla::new(kind, bytes.to_vec()));
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![
        TcAttribute::Kind("tbf".into()),
        TcAttribute::Options(vec![
            option(TCA_TBF_PARMS, &parameters),
            option(TCA_TBF_RATE64, &rate.to_ne_bytes()),
            option(TCA_TBF_BURST, &burst.to_ne_bytes()),
        ]),
    ];
    let doing = format!("limiting the traffic of {name} (needs the kernel's sch_tbf)");
    Request::new(Message::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL, doing)
}

/// From the kernel's `pkt_sched.h`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel needs no table of how long packets take.
const LINK_LAYER_ETHERNET: u8 = 1;

/// What the kernel is told of a limit.
#[derive(Debug, PartialEq, Eq)]
struct Bucket {
    /// Bytes per second.
    rate: u64,
    /// Bytes.
    burst: u32,
    /// Bytes that may wait.
    queue: u32,
}

impl Bucket {
    fn new(asked: Rate, mtu: u32) -> Self {
        let rate = (asked.bits / 8).max(1);
        let burst = if asked.burst == 0 { rate / 10 } else { asked.burst / 8 };
        // The kernel drops what is longer than its bucket.
        let burst = burst.max(u64::from(mtu) + ETHERNET_AND_TAGS);
        let queue = (rate / 20).max(QUEUE_MIN);
        let narrow = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { rate, burst: narrow(burst), queue: narrow(queue) }
    }
}

/// An Ethernet header with two VLAN tags, in bytes.
const ETHERNET_AND_TAGS: u64 = 22;
/// Bytes: one packet of the largest size that the stack hands down, and some more.
const QUEUE_MIN: u64 = 96 << 10;

/// Makes room for filters on what an interface receives.
fn ingress_hook(ifindex: u32, name: &str) -> Request {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = INGRESS_HANDLE;
    message.attributes = vec![TcAttribute::Kind("ingress".into())];
    let doing = format!("adding the ingress hook of {name}");
    Request::new(Message::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL, doing)
}

/// The one that the kernel gives that hook.
const INGRESS_HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// Of the only filter there.
const PRIORITY: u32 = 1;
/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 3;

/// Leads all that an interface receives to another device, which hands it back afterwards.
fn redirect_all(ifindex: u32, name: &str, queue: u32) -> Request {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    // A key without any bit matches everything.
    selector.keys = vec![TcU32Key::default()];
    selector.nkeys = 1;
    let mut mirror = TcMirror::default();
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.generic.action = TcActionType::Stolen;
    mirror.ifindex = queue;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".into()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.parent = INGRESS_HANDLE;
    message.header.info = (PRIORITY << 16) | u32::from(ALL_PROTOCOLS.to_be());
    message.attributes = vec![
        TcAttribute::Kind("u32".into()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    let doing =
        format!("leading what {name} receives to its limit (needs the kernel's cls_u32 and act_mirred)");
    Request::new(Message::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL, doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_becomes_bytes_and_takes_a_full_packet_at_least() {
        for (bits, burst, mtu, expected) in [
            (8_000_000, 800_000, 1500, (1_000_000, 100_000, 98_304)),
            // A tenth of a second.
            (8_000_000, 0, 1500, (1_000_000, 100_000, 98_304)),
            (8_000_000, 8, 9000, (1_000_000, 9022, 98_304)),
            (1, 0, 1500, (1, 1522, 98_304)),
            (80_000_000_000, 1 << 40, 1500, (10_000_000_000, u32::MAX, 500_000_000)),
        ] {
            let (rate, burst, queue) = {
                let bucket = Bucket::new(Rate { bits, burst }, mtu);
                (bucket.rate, bucket.burst, bucket.queue)
            };
            assert_eq!((rate, burst, queue), expected, "{bits} bit/s");
        }
    }
}
