//! One entry of the flow table, in words.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use portolan_abi::{Flow, FlowKey, exit, state};
use portolan_core::conntrack::is_closed;
use portolan_core::wire::proto;
use portolan_core::{Family, V4, V6};
use portolan_node::maps::NodeFamily;
use serde::Serialize;

/// One direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowView {
    /// `TCP`, `UDP`, or the number of another protocol.
    pub(super) protocol: String,
    /// As the packet comes.
    pub(super) original: Ends,
    /// As it goes.
    pub(super) translated: Ends,
    pub(super) direction: Direction,
    pub(super) state: State,
    /// The source is replaced as well.
    pub(super) masqueraded: bool,
    /// Seconds since a packet was seen.
    pub(super) idle_seconds: u64,
    /// Where packets go.
    pub(super) exit: String,
    /// By which interface, if the exit is one.
    pub(super) interface_index: Option<u32>,
    /// `namespace/name:port`, if the agent told.
    pub(super) service: Option<String>,
    /// Index in the table of services; [`NO_SERVICE`](portolan_abi::NO_SERVICE): the flow leaves the cluster.
    pub(super) service_index: u32,
    /// Index in the family's table of backends.
    pub(super) backend_index: u32,
}

/// Source and destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Ends {
    pub(super) source: End,
    pub(super) destination: End,
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct End {
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// Whose packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Direction {
    /// From client to backend.
    Request,
    /// From backend to client.
    Reply,
}

/// How far the flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum State {
    /// The backend has not answered yet.
    Opening,
    /// Both sides have spoken.
    Established,
    /// One side has said that it is done.
    Closing,
    /// Both sides have said so, or one broke it off.
    Closed,
}

/// An element of the table of flows.
type Entry<F> = (FlowKey<<F as Family>::Addr>, Flow<<F as Family>::Addr>);

/// Entries of one family's table, at the time `now` in ticks.
pub(super) fn all<F: NodeFamily>(entries: &[Entry<F>], now: u32) -> Vec<FlowView> {
    entries.iter().map(|(key, flow)| FlowView::new::<F>(key, flow, now)).collect()
}

impl FlowView {
    pub(super) fn new<F: NodeFamily>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>, now: u32) -> Self {
        let (exit, interface_index) = exit_of(flow.exit, flow.ifindex);
        Self {
            protocol: protocol(key.proto),
            original: ends::<F>(key.src, key.dst, key.ports),
            translated: ends::<F>(flow.src, flow.dst, flow.ports),
            direction: if flow.state & state::REPLY == 0 { Direction::Request } else { Direction::Reply },
            state: State::of(flow.state),
            masqueraded: flow.state & state::MASQUERADE != 0,
            idle_seconds: seconds(now, flow.seen),
            exit,
            interface_index,
            service: None,
            service_index: flow.service,
            backend_index: flow.backend,
        }
    }

    /// The client and what it sends to: the same for both directions of a flow.
    pub(super) fn as_client_sees(&self) -> Ends {
        match self.direction {
            Direction::Request => self.original,
            Direction::Reply => {
                Ends { source: self.translated.destination, destination: self.translated.source }
            }
        }
    }

    /// All addresses of the entry.
    pub(super) fn addresses(&self) -> [IpAddr; 4] {
        let Ends { source, destination } = self.original;
        let Ends { source: source_after, destination: destination_after } = self.translated;
        [source, destination, source_after, destination_after].map(|end| end.address)
    }
}

impl State {
    fn of(bits: u8) -> Self {
        if is_closed(bits) {
            Self::Closed
        } else if bits & (state::CLIENT_FIN | state::BACKEND_FIN) != 0 {
            Self::Closing
        } else if bits & state::ESTABLISHED != 0 {
            Self::Established
        } else {
            Self::Opening
        }
    }
}

fn ends<F: NodeFamily>(source: F::Addr, destination: F::Addr, ports: u32) -> Ends {
    // Both ports in packet order, source first.
    let [a, b, c, d] = ports.to_ne_bytes();
    Ends {
        source: End { address: F::ip(source), port: u16::from_be_bytes([a, b]) },
        destination: End { address: F::ip(destination), port: u16::from_be_bytes([c, d]) },
    }
}

fn protocol(number: u32) -> String {
    match u8::try_from(number) {
        Ok(proto::TCP) => "TCP".to_owned(),
        Ok(proto::UDP) => "UDP".to_owned(),
        Ok(V4::ICMP | V6::ICMP) => "ICMP".to_owned(),
        _ => number.to_string(),
    }
}

/// Seconds between two times in ticks of 2^30 ns.
fn seconds(now: u32, seen: u32) -> u64 {
    let ticks = now.wrapping_sub(seen);
    // A packet may have been seen since `now`, or by a CPU whose clock is a tick ahead.
    if ticks > u32::MAX / 2 { 0 } else { (u64::from(ticks) << 30) / 1_000_000_000 }
}

fn exit_of(exit: u8, ifindex: u32) -> (String, Option<u32>) {
    match exit {
        exit::STACK => ("host stack".to_owned(), None),
        exit::POD => ("pod".to_owned(), Some(ifindex)),
        exit::UPLINK => ("uplink".to_owned(), Some(ifindex)),
        exit::HOST => ("host process".to_owned(), None),
        exit::OVERLAY => ("overlay".to_owned(), Some(ifindex)),
        exit::TUNNEL => ("encapsulated, answers return directly".to_owned(), Some(ifindex)),
        other => (format!("unknown ({other})"), None),
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.source, self.destination)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::Reply => "reply",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
        })
    }
}
