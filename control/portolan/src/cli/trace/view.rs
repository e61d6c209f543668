//! One packet that a program saw, in words.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use portolan_abi::{Event, SHOWN_WORDS, counter};
use portolan_core::wire::{Frame, Kind, Packet, parse, split_ports, tcp};
use portolan_core::{Family, Hook, V4, V6};
use portolan_node::link::Interface;
use portolan_node::maps::NodeFamily;
use serde::Serialize;

use crate::api::PodView;
use crate::cli::flow::Ends;
use crate::cli::text::{BAD, FAINT, GOOD, clean, paint};

/// Length of an Ethernet header, and where it says what follows.
const ETHERTYPE: usize = 12;

/// What a program saw and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PacketSeen {
    /// Microseconds since the first packet shown.
    pub(super) microseconds: u64,
    /// Name of the program.
    pub(super) program: &'static str,
    /// Interface that it is attached to.
    pub(super) interface: String,
    /// `namespace/name` of the pod behind that, if it is one.
    pub(super) pod: Option<String>,
    /// Length in bytes.
    pub(super) length: u32,
    /// The packet as it came.
    pub(super) packet: Headers,
    /// The packet as it left, if it was changed.
    pub(super) became: Option<Headers>,
    /// Whose traffic it is, if it is a service's.
    pub(super) service: Option<ServiceSeen>,
    /// Name of the outcome, as counters have it.
    pub(super) outcome: &'static str,
    /// It did not reach who it was sent to.
    pub(super) dropped: bool,
    /// What the outcome means and, if it is a drop, what would change it.
    pub(super) meaning: &'static str,
}

/// The service that a packet was sent to, or answers for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceSeen {
    /// The address and port that the client asks, or the NodePort.
    pub(super) frontend: String,
    /// `namespace/name:port`.
    pub(super) service: String,
    /// The backend's address and port, if the packet was translated.
    pub(super) backend: Option<String>,
    /// `namespace/name` of the backend, if it is a pod of this node.
    pub(super) backend_pod: Option<String>,
}

/// What a packet's headers say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Headers {
    /// `TCP`, `UDP`, or what else it is.
    pub(super) kind: String,
    /// Address, with the port if there is one.
    pub(super) source: String,
    /// The same.
    pub(super) destination: String,
    /// Letters of TCP's flags, as tcpdump has them.
    pub(super) flags: String,
}

/// What interfaces are called and whose they are, whose addresses pods have, and what services are called.
#[derive(Default)]
pub(super) struct Names {
    interfaces: HashMap<u32, String>,
    pods: HashMap<String, String>,
    addresses: HashMap<IpAddr, String>,
    services: Ends,
}

impl Names {
    pub(super) fn new(interfaces: &[Interface], pods: &[PodView], services: Ends) -> Self {
        let interfaces = interfaces.iter().map(|link| (link.ifindex, link.name.clone())).collect();
        let name = |pod: &PodView| format!("{}/{}", pod.namespace, pod.name);
        let addresses = pods.iter().flat_map(|pod| pod.addresses.iter().map(move |addr| (*addr, name(pod))));
        Self {
            interfaces,
            pods: pods.iter().map(|pod| (pod.host_interface.clone(), name(pod))).collect(),
            addresses: addresses.collect(),
            services,
        }
    }

    /// Who is asked, by where the packet was going; or who answers, by where it now comes from.
    fn service(&self, before: &Headers, after: Option<&Headers>) -> Option<ServiceSeen> {
        let end = |text: &str| text.parse::<SocketAddr>().ok();
        let asked = end(&before.destination).and_then(|to| self.services.frontend(&before.kind, to));
        let backend = match asked {
            Some(_) => after.and_then(|after| end(&after.destination)),
            None => end(&before.source),
        };
        let answering = || self.services.frontend(&before.kind, end(&after?.source)?);
        let (frontend, service) = asked.or_else(answering)?;
        Some(ServiceSeen {
            frontend,
            service: service.to_owned(),
            backend: backend.map(|backend| backend.to_string()),
            backend_pod: backend.and_then(|backend| self.addresses.get(&backend.ip()).cloned()),
        })
    }

    /// An event in words; `origin` is the time of the first one.
    pub(super) fn describe(&self, event: &Event, origin: u64) -> PacketSeen {
        // Interfaces that came meanwhile have no name yet.
        let interface = self.interfaces.get(&event.ifindex).cloned();
        let interface = interface.unwrap_or_else(|| format!("interface {}", event.ifindex));
        let unknown = counter::Outcome { index: event.outcome, name: "unknown", meaning: "" };
        let outcome = counter::ALL.get(event.outcome as usize).unwrap_or(&unknown);
        let before = headers(&event.before, event.before_len, event.len);
        let after = (event.after_len > 0).then(|| headers(&event.after, event.after_len, event.len));
        let became = after.filter(|after| *after != before);
        PacketSeen {
            microseconds: event.time.saturating_sub(origin) / 1000,
            program: event.hook.checked_sub(1).and_then(hook).map_or("unknown", Hook::program),
            pod: self.pods.get(&interface).cloned(),
            interface,
            length: event.len,
            service: self.service(&before, became.as_ref()),
            became,
            packet: before,
            outcome: outcome.name,
            dropped: outcome.is_drop(),
            meaning: outcome.meaning.trim(),
        }
    }
}

fn hook(number: u32) -> Option<Hook> {
    let all = [Hook::Pod, Hook::PodEgress, Hook::Uplink, Hook::UplinkEgress, Hook::Service, Hook::Loopback];
    all.into_iter().find(|hook| *hook as u32 == number)
}

/// The beginning of a packet.
struct Beginning {
    bytes: Vec<u8>,
    len: u32,
}

impl Frame for Beginning {
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        let bytes = self.bytes.get(at..at + 4 * N)?;
        let (words, _) = bytes.as_chunks::<4>();
        Some(std::array::from_fn(|number| u32::from_ne_bytes(words[number])))
    }

    fn len(&self) -> u32 {
        self.len
    }
}

fn headers(words: &[u32; SHOWN_WORDS], shown: u32, len: u32) -> Headers {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.truncate(shown as usize);
    let kind = bytes.get(ETHERTYPE..ETHERTYPE + 2).map_or(0, |kind| u16::from_be_bytes([kind[0], kind[1]]));
    let frame = Beginning { bytes, len };
    match kind {
        V4::ETHERTYPE => ip(&parse::<V4, _>(&frame)),
        V6::ETHERTYPE => ip(&parse::<V6, _>(&frame)),
        _ => Headers {
            kind: format!("EtherType {kind:#06x}"),
            source: String::new(),
            destination: String::new(),
            flags: String::new(),
        },
    }
}

fn ip<F: NodeFamily>(packet: &Packet<F>) -> Headers {
    let (source, destination) = split_ports(packet.key.ports);
    let end = |address: IpAddr, port: u16| match packet.has_ports() {
        true => SocketAddr::new(address, u16::from_be(port)).to_string(),
        false => address.to_string(),
    };
    let kind = match packet.kind {
        Kind::Tcp => "TCP".to_owned(),
        Kind::Udp => "UDP".to_owned(),
        Kind::Echo => "ICMP echo request".to_owned(),
        Kind::EchoReply => "ICMP echo reply".to_owned(),
        Kind::IcmpError => "ICMP error".to_owned(),
        Kind::Fragment => "fragment".to_owned(),
        Kind::Options => "IP with options".to_owned(),
        Kind::Truncated => "truncated".to_owned(),
        Kind::Malformed => "malformed".to_owned(),
        Kind::Protocol if packet.key.proto == u32::from(F::ICMP) => "ICMP".to_owned(),
        Kind::Protocol => format!("protocol {}", packet.key.proto),
    };
    Headers {
        kind,
        source: end(F::ip(packet.key.src), source),
        destination: end(F::ip(packet.key.dst), destination),
        flags: flags(packet.segment.flags),
    }
}

/// TCP's flags as tcpdump writes them.
fn flags(bits: u8) -> String {
    let letters = [(tcp::SYN, 'S'), (tcp::FIN, 'F'), (tcp::RST, 'R'), (tcp::ACK, '.')];
    letters.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, letter)| letter).collect()
}

/// For people: one line.
pub(super) fn line(packet: &PacketSeen) -> String {
    let seconds = packet.microseconds as f64 / 1e6;
    let place = match &packet.pod {
        Some(pod) => format!("{} of pod {pod}", packet.program),
        None => format!("{} on {}", packet.program, packet.interface),
    };
    let mut line = format!("{seconds:>10.6}  {}  {}", clean(&place), text(&packet.packet));
    if let Some(became) = &packet.became {
        line += &format!("  ⇒  {} → {}", became.source, became.destination);
    }
    if let Some(service) = &packet.service {
        line += &format!("  {}", paint(&clean(&told(service)), FAINT));
    }
    let style = match (packet.dropped, packet.outcome) {
        (true, _) => BAD,
        (_, outcome) if outcome.starts_with("to-") => GOOD,
        _ => FAINT,
    };
    line += &format!("  {}", paint(packet.outcome, style));
    if packet.dropped {
        line += &format!("  {}", paint(packet.meaning, FAINT));
    }
    line + "\n"
}

/// As `explain` tells it.
fn told(seen: &ServiceSeen) -> String {
    let pod = seen.backend_pod.as_ref().map_or_else(String::new, |pod| format!(", pod {pod}"));
    let backend = seen.backend.as_ref().map_or_else(String::new, |it| format!(", backend {it}{pod}"));
    format!("({} is a frontend of service {}{backend})", seen.frontend, seen.service)
}

fn text(headers: &Headers) -> String {
    let flags = if headers.flags.is_empty() { String::new() } else { format!(" [{}]", headers.flags) };
    match headers.source.is_empty() {
        true => headers.kind.clone(),
        false => format!("{}{flags} {} → {}", headers.kind, headers.source, headers.destination),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::plain;

    /// A SYN from 10.244.1.5:40000 to `to`, in the words of an event.
    fn syn(to: [u8; 4], port: u16) -> [u32; SHOWN_WORDS] {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 244, 1, 5]);
        bytes.extend(to);
        bytes.extend(40_000u16.to_be_bytes());
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, tcp::SYN, 0, 0, 0, 0, 0, 0]);
        bytes.resize(4 * SHOWN_WORDS, 0);
        let (words, _) = bytes.as_chunks::<4>();
        std::array::from_fn(|number| u32::from_ne_bytes(words[number]))
    }

    fn event(outcome: u32, after: Option<[u32; SHOWN_WORDS]>) -> Event {
        Event {
            time: 5_000_000,
            ifindex: 7,
            hook: Hook::Pod as u32 + 1,
            outcome,
            len: 54,
            before_len: 54,
            after_len: if after.is_some() { 54 } else { 0 },
            before: syn([10, 96, 0, 10], 80),
            after: after.unwrap_or([0; SHOWN_WORDS]),
        }
    }

    fn names() -> Names {
        Names {
            interfaces: HashMap::from([(7, "ptl7".to_owned())]),
            pods: HashMap::from([("ptl7".to_owned(), "shop/client".to_owned())]),
            ..Names::default()
        }
    }

    #[test]
    fn a_translated_packet_is_shown_before_and_after() {
        let seen = names().describe(&event(counter::TO_POD, Some(syn([10, 244, 1, 9], 8080))), 3_000_000);
        assert_eq!(
            plain(&line(&seen)),
            "  0.002000  from_pod of pod shop/client  TCP [S] 10.244.1.5:40000 → 10.96.0.10:80  ⇒  10.244.1.5:40000 → \
             10.244.1.9:8080  to-pod\n"
        );
    }

    #[test]
    fn a_dropped_packet_is_shown_with_what_would_change_it() {
        let seen = Names::default().describe(&event(counter::REJECTED_UNKNOWN_PORT, None), 5_000_000);
        let text = plain(&line(&seen));
        assert!(seen.dropped && seen.became.is_none(), "{seen:?}");
        assert!(
            text.contains("from_pod on interface 7") && text.contains("Check the service's ports"),
            "{text}"
        );
    }

    #[test]
    fn what_passes_unchanged_is_shown_once() {
        let seen = names().describe(&event(counter::PASSED, Some(syn([10, 96, 0, 10], 80))), 0);
        assert_eq!((seen.became.is_none(), seen.outcome), (true, "passed"));
    }
}
