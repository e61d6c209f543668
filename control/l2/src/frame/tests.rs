//! Frames both ways, byte for byte, as RFC 826, RFC 5227 and RFC 4861 have them. That tcpdump and Linux read them so is shown by the
//! suite in namespaces.

use proptest::prelude::*;

use super::*;

const OURS: Mac = [0x02, 0, 0, 0, 0, 0x0a];
const CLIENT: Mac = [0x02, 0, 0, 0, 0, 0x0c];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}

/// Who has 198.51.100.10? Tell 192.0.2.1.
const REQUEST: &str =
    "ffffffffffff 02000000000c 0806 0001 0800 06 04 0001 02000000000c c0000201 000000000000 c633640a";

/// Who has 2001:db8:f::10, from 2001:db8:1::1 to its solicited-node group, with the source's Ethernet address.
const SOLICITATION: &str = "3333ff000010 02000000000c 86dd 60000000 0020 3a ff
    20010db8000100000000000000000001 ff0200000000000000000001ff000010
    87 00 SUMX 00000000 20010db8000f00000000000000000010 01 01 02000000000c";

/// The same with the right checksum.
fn solicitation() -> Vec<u8> {
    with_checksum(bytes(&SOLICITATION.replace("SUMX", "0000")))
}

/// Writes the checksum of an ICMPv6 message into its frame, by a sum of its own.
fn with_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    (frame[56], frame[57]) = (0, 0);
    let length = u32::try_from(frame.len() - 54).unwrap();
    let mut sum = length + 58;
    for pair in frame[22..].chunks(2) {
        sum += u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u32::from(*low));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap();
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn changed(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}

#[test]
fn an_arp_request_is_answered_to_who_asked() {
    let Some(Heard::Question(question)) = parse(&bytes(REQUEST)) else { panic!("it is a question") };
    assert_eq!(question, Question { target: ip("198.51.100.10"), asker: ip("192.0.2.1"), mac: CLIENT });
    let expected = "02000000000c 02000000000a 0806 0001 0800 06 04 0002
        02000000000a c633640a 02000000000c c0000201";
    assert_eq!(answer(&question, OURS), bytes(expected));
}

#[test]
fn an_arp_probe_is_answered_so_that_the_address_is_not_taken() {
    // RFC 5227 2.1.1: the sender has no address yet.
    let probe = REQUEST.replace("c0000201", "00000000");
    let Some(Heard::Question(question)) = parse(&bytes(&probe)) else { panic!("it is a question") };
    let expected = "02000000000c 02000000000a 0806 0001 0800 06 04 0002
        02000000000a c633640a 02000000000c 00000000";
    assert_eq!(answer(&question, OURS), bytes(expected));
}

#[test]
fn arp_announcements_and_replies_are_claims() {
    let claim = Some(Heard::Claim { address: ip("198.51.100.10"), mac: CLIENT });
    let announcement = REQUEST.replace("c0000201", "c633640a");
    assert_eq!(parse(&bytes(&announcement)), claim);
    let reply = announcement.replace("04 0001", "04 0002");
    assert_eq!(parse(&bytes(&reply)), claim);
    for frame in announcements(ip("198.51.100.10"), CLIENT) {
        assert_eq!(parse(&frame), claim);
    }
}

#[test]
fn an_address_is_announced_in_both_forms_of_arp() {
    let [request, reply] = &announcements(ip("198.51.100.10"), OURS)[..] else { panic!("two of them") };
    let expected = "ffffffffffff 02000000000a 0806 0001 0800 06 04 0001
        02000000000a c633640a 000000000000 c633640a";
    assert_eq!(*request, bytes(expected));
    let expected = "ffffffffffff 02000000000a 0806 0001 0800 06 04 0002
        02000000000a c633640a 02000000000a c633640a";
    assert_eq!(*reply, bytes(expected));
}

#[test]
fn arp_of_other_kinds_is_not_read() {
    let request = bytes(REQUEST);
    // Hardware, protocol, lengths, operation; a sender that is a group, or nobody.
    for (at, byte) in [(15, 6), (16, 9), (18, 8), (19, 16), (21, 3), (22, 3)] {
        assert_eq!(parse(&changed(request.clone(), at, byte)), None, "byte {at}");
    }
    assert_eq!(parse(&bytes(&REQUEST.replace("0001 02000000000c", "0001 000000000000"))), None);
    for length in 0..request.len() {
        assert_eq!(parse(&request[..length]), None);
    }
    // Frames are padded to 60 bytes.
    assert_eq!(parse(&[request.clone(), vec![0; 18]].concat()), parse(&request));
}

#[test]
fn a_solicitation_is_answered_to_who_asked() {
    let Some(Heard::Question(question)) = parse(&solicitation()) else { panic!("it is a question") };
    assert_eq!(question, Question { target: ip("2001:db8:f::10"), asker: ip("2001:db8:1::1"), mac: CLIENT });
    // Solicited and override, no router (RFC 4861 4.4).
    let expected = "02000000000c 02000000000a 86dd 60000000 0020 3a ff
        20010db8000f00000000000000000010 20010db8000100000000000000000001
        88 00 0000 60000000 20010db8000f00000000000000000010 02 01 02000000000a";
    assert_eq!(answer(&question, OURS), with_checksum(bytes(expected)));
}

#[test]
fn a_neighbour_that_asks_the_owner_itself_may_leave_its_own_address_out() {
    // RFC 4861 7.3.3: unicast, when an entry has become doubtful.
    let unicast = "02000000000a 02000000000c 86dd 60000000 0018 3a ff
        20010db8000100000000000000000001 20010db8000f00000000000000000010
        87 00 0000 00000000 20010db8000f00000000000000000010";
    let expected = Question { target: ip("2001:db8:f::10"), asker: ip("2001:db8:1::1"), mac: CLIENT };
    assert_eq!(parse(&with_checksum(bytes(unicast))), Some(Heard::Question(expected)));
}

#[test]
fn who_looks_whether_an_address_is_free_is_answered_before_all() {
    // RFC 4862 5.4.2, answered as RFC 4861 7.2.4 says: to all nodes, not solicited.
    let probe = "3333ff000010 02000000000c 86dd 60000000 0018 3a ff
        00000000000000000000000000000000 ff0200000000000000000001ff000010
        87 00 0000 00000000 20010db8000f00000000000000000010";
    let probe = with_checksum(bytes(probe));
    let Some(Heard::Question(question)) = parse(&probe) else { panic!("it is a question") };
    assert!(question.asker.is_unspecified());
    let expected = "333300000001 02000000000a 86dd 60000000 0020 3a ff
        20010db8000f00000000000000000010 ff020000000000000000000000000001
        88 00 0000 20000000 20010db8000f00000000000000000010 02 01 02000000000a";
    let expected = with_checksum(bytes(expected));
    assert_eq!(answer(&question, OURS), expected);
    assert_eq!(announcements(ip("2001:db8:f::10"), OURS), [expected]);
    // To another group, or with an address: not as it must be.
    assert_eq!(parse(&with_checksum(changed(probe, 53, 0x11))), None);
    let with_option = "3333ff000010 02000000000c 86dd 60000000 0020 3a ff
        00000000000000000000000000000000 ff0200000000000000000001ff000010
        87 00 0000 00000000 20010db8000f00000000000000000010 01 01 02000000000c";
    assert_eq!(parse(&with_checksum(bytes(with_option))), None);
}

#[test]
fn advertisements_are_claims() {
    let claim = Some(Heard::Claim { address: ip("2001:db8:f::10"), mac: CLIENT });
    assert_eq!(parse(&announcements(ip("2001:db8:f::10"), CLIENT)[0]), claim);
    let solicited = Question { target: ip("2001:db8:f::10"), asker: ip("2001:db8:1::1"), mac: OURS };
    assert_eq!(parse(&answer(&solicited, CLIENT)), claim);
    // RFC 4861 7.1.2: to a group, it is not solicited.
    let wrong = changed(announcements(ip("2001:db8:f::10"), CLIENT)[0].clone(), 58, 0x60);
    assert_eq!(parse(&with_checksum(wrong)), None);
}

#[test]
fn solicitations_that_are_not_as_they_must_be_are_not_read() {
    let right = solicitation();
    assert!(parse(&right).is_some());
    // Version, next header, hop limit, type, code, a target that is a group, an option of length zero or too long.
    for (at, byte) in [(14, 0x40), (20, 17), (21, 254), (54, 134), (55, 1), (62, 0xff), (79, 0), (79, 2)] {
        assert_eq!(parse(&with_checksum(changed(right.clone(), at, byte))), None, "byte {at}");
    }
    assert_eq!(parse(&changed(right.clone(), 57, right[57] ^ 1)), None, "a wrong checksum");
    for length in 0..right.len() {
        assert_eq!(parse(&right[..length]), None);
    }
    // A payload length that leaves something out.
    assert_eq!(parse(&changed(right, 19, 0x17)), None);
}

#[test]
fn the_group_of_an_address_has_its_last_three_bytes() {
    assert_eq!(
        solicited_node("2001:db8::1:2:3456:789a".parse().unwrap()),
        "ff02::1:ff56:789a".parse::<Ipv6Addr>().unwrap()
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_not(frame: Vec<u8>) {
        let _ = parse(&frame);
        for kind in [[8, 6], [0x86, 0xdd]] {
            let _ = parse(&[&[2; 12][..], &kind, &frame].concat());
        }
    }

    #[test]
    fn a_solicitation_with_any_options_is_read_or_not(options: Vec<u8>) {
        let mut frame = solicitation()[..78].to_vec();
        frame.extend(&options);
        let length = u16::try_from(24 + options.len()).unwrap();
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        let _ = parse(&with_checksum(frame));
    }

    #[test]
    fn every_answer_is_a_claim_of_what_was_asked_for(v6: bool, target: u128, asker: u128, probe: bool) {
        let ip = |bits: u128| -> IpAddr {
            let bits = bits & !(0xff << 120) | 0x20 << 120;
            if v6 { Ipv6Addr::from(bits).into() } else { std::net::Ipv4Addr::from((bits >> 96) as u32).into() }
        };
        let nobody = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED) };
        let asker = if probe { nobody } else { ip(asker) };
        let question = Question { target: ip(target), asker, mac: CLIENT };
        let claim = Heard::Claim { address: question.target, mac: OURS };
        prop_assert_eq!(parse(&answer(&question, OURS)), Some(claim));
    }
}
