//! Carries verdicts out on bytes, as the programs do on packets: the same functions of `core`, other means.

use super::family::Tested;
use super::memory::Memory;
use portolan_abi::exit;
use portolan_core::answer::{QUOTED, Rejection, unreachable_checksum};
use portolan_core::egress::{identifier, identifier_at};
use portolan_core::icmp::{Translation, echo_reply, quoted_at};
use portolan_core::tunnel::{Complaint, Parcel, QUOTED_OTHER, QUOTED_TCP, complaint, parcel};
use portolan_core::wire::{ETHERNET, FirstPiece, Frame, Kind, Packet, parse, piece, proto, split_ports};
use portolan_core::{Address, Exit, Hook, Rewrite, Verdict, checksum, gateway_mac, refusal};

/// A packet's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Frame for Bytes<'_> {
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        let bytes = self.0.get(at..at + 4 * N)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }

    fn len(&self) -> u32 {
        self.0.len() as u32
    }
}

/// The frame after a verdict on it; as it was where it is dropped or passed.
#[must_use]
pub fn apply<F: Tested>(
    hook: Hook,
    ifindex: u32,
    frame: &[u8],
    verdict: &Verdict<F>,
    tables: &Memory<F>,
) -> Vec<u8> {
    let mut out = frame.to_vec();
    let packet = parse::<F, _>(&Bytes(frame));
    match verdict {
        Verdict::Pass(_) | Verdict::Drop(_) => {}
        Verdict::Deliver(exit) => address(&mut out, hook, *exit),
        Verdict::Wait => tables.wait(frame),
        Verdict::Release => out = tables.release(frame),
        Verdict::Forward(rewrite, exit) if packet.kind == Kind::Fragment => {
            forward_piece(&mut out, &packet, rewrite);
            address(&mut out, hook, *exit);
        }
        Verdict::Forward(rewrite, exit) if matches!(packet.kind, Kind::Echo | Kind::EchoReply) => {
            forward_echo(&mut out, &packet, rewrite);
            address(&mut out, hook, *exit);
        }
        Verdict::Forward(rewrite, exit) => {
            forward(&mut out, &packet, rewrite, 0);
            address(&mut out, hook, *exit);
        }
        Verdict::ForwardError(translation, exit) => {
            error(&mut out, translation);
            address(&mut out, hook, *exit);
        }
        Verdict::AnswerEcho(exit) => {
            echo(&mut out, &packet);
            address(&mut out, hook, *exit);
        }
        Verdict::Encapsulate(_) => encapsulate::<F>(hook, ifindex, &mut out, tables),
        Verdict::TooBig(exit) => {
            complain::<F>(&mut out, tables);
            address(&mut out, hook, *exit);
        }
        Verdict::Reject(..) => {
            let (packet, rejection, exit) = refusal::<F, _, _>(hook, ifindex, &Bytes(frame), tables)
                .expect("what is rejected has a way back");
            reject(&mut out, &packet, &rejection);
            address(&mut out, hook, exit);
        }
    }
    out
}

fn forward_piece<F: Tested>(out: &mut [u8], later: &Packet<F>, new: &Rewrite<F::Addr>) {
    let frame = out.to_vec();
    if piece::<F, _>(&Bytes(&frame)).is_some_and(|piece| piece.first) {
        return forward(out, &parse::<F, _>(&FirstPiece(&Bytes(&frame))), new, F::FRAGMENT_HEADER);
    }
    put(out, ETHERNET, header::<F>(F::rewrite(later.header, new.src, new.dst, new.ttl)));
}

fn forward<F: Tested>(out: &mut [u8], packet: &Packet<F>, new: &Rewrite<F::Addr>, extra: usize) {
    let transport = ETHERNET + F::HEADER_LEN + extra;
    let key = &packet.key;
    put(out, ETHERNET, header::<F>(F::rewrite(packet.header, new.src, new.dst, new.ttl)));
    put(out, transport, new.ports.to_ne_bytes());
    let difference = key.src.difference(new.src) + key.dst.difference(new.dst);
    let difference = difference + checksum::difference(key.ports, new.ports);
    let udp = key.proto == u32::from(proto::UDP);
    let at = transport + if udp { 6 } else { 16 };
    let old = sum_at(out, at);
    if udp && old == 0 {
        return;
    }
    let sum = checksum::update(old, difference);
    put(out, at, (if udp && sum == 0 { 0xffff } else { sum }).to_ne_bytes());
}

fn forward_echo<F: Tested>(out: &mut [u8], packet: &Packet<F>, new: &Rewrite<F::Addr>) {
    let (at, sum) = (identifier_at::<F>(), ETHERNET + F::HEADER_LEN + 2);
    put(out, ETHERNET, header::<F>(F::rewrite(packet.header, new.src, new.dst, new.ttl)));
    let (old, identifier) = (u16::from_ne_bytes([out[at], out[at + 1]]), identifier(new.ports));
    put(out, at, identifier.to_ne_bytes());
    let mut difference = checksum::difference(u32::from(old), u32::from(identifier));
    if F::ICMP_PSEUDO {
        difference += packet.key.src.difference(new.src) + packet.key.dst.difference(new.dst);
    }
    put(out, sum, checksum::update(sum_at(out, sum), difference).to_ne_bytes());
}

fn error<F: Tested>(out: &mut [u8], new: &Translation<F>) {
    let (outer, inner) = {
        let frame = Bytes(out);
        (F::header(&frame, ETHERNET), F::header(&frame, quoted_at::<F>()))
    };
    let both = "an error that is translated has both headers";
    put(out, ETHERNET, header::<F>(new.outer(outer.expect(both))));
    put(out, quoted_at::<F>(), header::<F>(new.inner(inner.expect(both))));
    put(out, quoted_at::<F>() + F::HEADER_LEN, new.ports.to_ne_bytes());
    let at = ETHERNET + F::HEADER_LEN + 2;
    let sum = checksum::update(checksum::update(sum_at(out, at), new.difference), new.pseudo);
    put(out, at, sum.to_ne_bytes());
}

fn echo<F: Tested>(out: &mut [u8], packet: &Packet<F>) {
    let transport = ETHERNET + F::HEADER_LEN;
    let (reply, old, new) = echo_reply(packet);
    put(out, ETHERNET, header::<F>(reply));
    out[transport] = F::ECHO.1;
    let sum = checksum::update(sum_at(out, transport + 2), checksum::difference(old, new));
    put(out, transport + 2, sum.to_ne_bytes());
}

fn reject<F: Tested>(out: &mut Vec<u8>, packet: &Packet<F>, rejection: &Rejection<F>) {
    let transport = ETHERNET + F::HEADER_LEN;
    match rejection {
        Rejection::Reset(ip, segment) => {
            out.resize(transport + 20, 0);
            put(out, ETHERNET, header::<F>(*ip));
            put(out, transport, bytes(segment));
        }
        Rejection::Unreachable(ip, icmp) => {
            let quoted = Bytes(out).words::<2>(transport).expect("a UDP packet has its header");
            let icmp = unreachable_checksum(packet, *icmp, quoted);
            out.resize(quoted_at::<F>() + F::HEADER_LEN + QUOTED, 0);
            put(out, ETHERNET, header::<F>(*ip));
            put(out, transport, bytes(&icmp));
            put(out, quoted_at::<F>(), header::<F>(packet.header));
            put(out, quoted_at::<F>() + F::HEADER_LEN, bytes(&quoted));
        }
    }
}

fn encapsulate<F: Tested>(hook: Hook, ifindex: u32, out: &mut Vec<u8>, tables: &Memory<F>) {
    let Parcel { outer, inner, .. } = parcel::<F, _, _>(hook, ifindex, &Bytes(out), tables);
    put(out, ETHERNET, header::<F>(inner));
    out.splice(ETHERNET..ETHERNET, header::<F>(outer));
}

fn complain<F: Tested>(out: &mut Vec<u8>, tables: &Memory<F>) {
    let transport = ETHERNET + F::HEADER_LEN;
    let packet = parse::<F, _>(&Bytes(out));
    let frame = Bytes(out);
    let (quoted, sum) = if matches!(packet.kind, Kind::Tcp | Kind::Fragment) {
        (QUOTED_TCP, frame.words::<{ QUOTED_TCP / 4 }>(transport).map(|words| checksum::sum(&words)))
    } else {
        (QUOTED_OTHER, frame.words::<{ QUOTED_OTHER / 4 }>(transport).map(|words| checksum::sum(&words)))
    };
    let sum = sum.expect("a packet with ports has its header");
    let Complaint { header: ip, icmp } =
        complaint(&frame, (quoted, sum), tables).expect("the packet's flow is in the table");
    out.truncate(transport + quoted);
    out.splice(ETHERNET..ETHERNET, [header::<F>(ip), bytes(&icmp)].concat());
}

/// A packet without the one that it travelled in.
#[must_use]
pub fn unpack<F: Tested>(frame: &[u8]) -> Vec<u8> {
    [&frame[..ETHERNET], &frame[ETHERNET + F::HEADER_LEN..]].concat()
}

/// The Ethernet addresses that the way out needs.
fn address(out: &mut [u8], hook: Hook, exit: Exit) {
    if matches!(exit.kind, exit::POD | exit::HOST) && hook != Hook::PodEgress {
        let macs = [exit.mac, gateway_mac()].concat();
        put(out, 0, macs.into_iter().flat_map(u16::to_ne_bytes).collect::<Vec<u8>>());
    }
}

/// The bytes of an IP header: what stands in memory, since its words are in packet order.
fn header<F: Tested>(header: F::Header) -> Vec<u8> {
    F::header_bytes(header)
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn put(out: &mut [u8], at: usize, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn sum_at(out: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([out[at], out[at + 1]])
}

/// Source and destination port of a key, host byte order.
#[must_use]
pub fn ports(word: u32) -> (u16, u16) {
    let (source, destination) = split_ports(word);
    (u16::from_be(source), u16::from_be(destination))
}
