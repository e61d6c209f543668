//! Stations that ask for addresses and note who answers.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use super::{Capture, Frames, Netns};

/// Asks for an address of each family fifty times a second, whatever it hears: each time as another station, so that every answer
/// tells which question it is to.
#[derive(Debug)]
pub struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u16>>,
}

impl Asking {
    /// Begins, from `eth0` of a client at 192.0.2.99 and 2001:db8:1::99.
    ///
    /// # Errors
    /// These are not addresses of both families.
    pub fn start(client: &Netns, v4: &str, v6: &str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, v4, v6) = (Arc::clone(&stop), v4.parse()?, v6.parse()?);
        let thread = client.spawn(move || {
            let frames = Frames::open("eth0")?;
            let mut count = 0;
            while !flag.load(Ordering::Relaxed) {
                let [high, low] = u16::to_be_bytes(count);
                let mac = [0x02, 0x99, 0, 0, high, low];
                frames.send(&arp_request([0xff; 6], mac, &[], [192, 0, 2, 99], v4))?;
                frames.send(&solicitation(mac, v6))?;
                count += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(count)
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it; for each address, who answered each question, as a capture on the client's interface has it.
    ///
    /// # Errors
    /// It could not send, or the capture cannot be read.
    pub fn end(self, capture: &Capture, vips: [&str; 2]) -> Result<[Vec<Vec<String>>; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        let count = self.thread.join().map_err(|_| anyhow::anyhow!("asking panicked"))??;
        let packets = capture.packets()?;
        Ok(vips.map(|vip| {
            let mut all = vec![Vec::new(); usize::from(count)];
            for (who, number) in packets.iter().filter_map(|packet| answer_by_number(packet, vip)) {
                all[number].push(who.to_owned());
            }
            all
        }))
    }
}

/// Who answers for an address, and which question of [`Asking`], in a line of tcpdump's.
#[must_use]
pub fn answer_by_number<'a>(packet: &'a str, vip: &str) -> Option<(&'a str, usize)> {
    let mut words = packet.split_whitespace().skip(1);
    let (who, to) = (words.next()?, words.nth(1)?.trim_end_matches(','));
    let number = usize::from_str_radix(&to.strip_prefix("02:99:00:00:")?.replace(':', ""), 16).ok()?;
    let is = packet.contains(&format!("Reply {vip} is-at")) || packet.contains(&format!("tgt is {vip},"));
    is.then_some((who, number))
}

/// An ARP request, with a tag after its Ethernet addresses.
#[must_use]
pub fn arp_request(to: [u8; 6], mac: [u8; 6], tag: &[u8], sender: [u8; 4], target: Ipv4Addr) -> Vec<u8> {
    let header = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
    let mut frame = [&to[..], &mac, tag, &header, &mac, &sender, &[0; 6], &target.octets()].concat();
    frame.resize(64, 0);
    frame
}

/// A neighbour solicitation of the client's to the group of an address.
fn solicitation(mac: [u8; 6], target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let source: Ipv6Addr = [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x99].into();
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1], &mac].concat();
    let pseudo = [&source.octets()[..], &group.octets(), &[0, 32, 0, 58], &message].concat();
    let words = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    message[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let header = [0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255];
    [&[0x33, 0x33, 0xff, a, b, c][..], &mac, &header, &source.octets(), &group.octets(), &message].concat()
}
