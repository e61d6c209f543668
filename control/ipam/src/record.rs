//! The lines of the log: one checksummed JSON object each, so that a torn write is seen and an operator can read the rest.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::attachment::AttachmentId;
use crate::ledger::Allocation;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its number. Each line's is one higher than that of the line before.
    pub(crate) seq: u64,
    /// The highest number known to be on disk when this line was written: a damaged line up to here was promised to somebody.
    pub(crate) durable: u64,
    /// What happened.
    pub(crate) op: Op,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Op {
    /// First line of a snapshot, which goes up to and including line `last`.
    Snapshot { version: u32, last: u64 },
    /// The attachment has these addresses from now on.
    Allocate(Box<Allocation>),
    /// The attachment is gone; its addresses rest since `at` (seconds of Unix time).
    Release { id: AttachmentId, at: u64 },
    /// Snapshot only: a free address that rests since `at`.
    Resting { address: IpAddr, at: u64 },
    /// Snapshot only: the address given last in its family.
    Last { address: IpAddr },
}

/// The only layout there has been.
pub(crate) const VERSION: u32 = 1;

impl Record {
    /// Appends the line to `out`: eight hexadecimal digits of CRC-32, a space, JSON, a line feed.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        // Serialising fails only for maps with keys that are no strings, and there are none.
        let json = serde_json::to_string(self).unwrap_or_default();
        out.extend_from_slice(format!("{:08x} {json}\n", crc32(json.as_bytes())).as_bytes());
    }

    /// Reads one line, without its line feed. `None`: damaged.
    fn decode(line: &[u8]) -> Option<Self> {
        let (checksum, json) = (line.get(..8)?, line.get(9..)?);
        let checksum = u32::from_str_radix(std::str::from_utf8(checksum).ok()?, 16).ok()?;
        if checksum != crc32(json) || line[8] != b' ' {
            return None;
        }
        serde_json::from_slice(json).ok()
    }
}

/// The undamaged lines from the start of `log`.
///
/// # Errors
/// The number of a damaged line that somebody had been promised: what follows a crash is damaged only past that.
pub(crate) fn read(log: &[u8]) -> Result<Vec<Record>, u64> {
    let mut records: Vec<Record> = Vec::new();
    let mut lost: Option<u64> = None;
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let record = line.strip_suffix(b"\n").and_then(Record::decode);
        let expected = records.last().map_or(0, |last| last.seq + 1);
        match (record, lost) {
            (Some(record), Some(lost)) if record.durable >= lost => return Err(lost),
            (Some(_), Some(_)) => {}
            (Some(record), None) if records.is_empty() || record.seq == expected => records.push(record),
            (_, None) => lost = Some(expected),
            (None, Some(_)) => {}
        }
    }
    match (records.first().map(|first| &first.op), lost) {
        // A snapshot is flushed before it gets its name.
        (Some(Op::Snapshot { last, .. }), lost) => {
            let end = records.last().map_or(0, |record| record.seq);
            if end < *last { Err(lost.unwrap_or(end + 1)) } else { Ok(records) }
        }
        (None, None) => Ok(records),
        _ => Err(0),
    }
}

/// CRC-32 as in IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc = (crc >> 8) ^ CRC_TABLE[usize::from(crc as u8 ^ byte)];
    }
    !crc
}

/// The remainder of each byte.
static CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, durable: u64) -> Record {
        let op = match seq {
            0 => Op::Snapshot { version: VERSION, last: 0 },
            _ => Op::Last { address: "10.0.0.1".parse().unwrap() },
        };
        Record { seq, durable, op }
    }

    fn log(records: &[Record]) -> Vec<u8> {
        let mut log = Vec::new();
        records.iter().for_each(|record| record.encode(&mut log));
        log
    }

    #[test]
    fn checksum_is_the_well_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_log_cut_anywhere_gives_its_whole_lines() {
        let whole = log(&[record(0, 0), record(1, 0), record(2, 0)]);
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in first..=whole.len() {
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(read(&whole[..cut]).unwrap().len(), lines, "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_line_that_nobody_was_promised_ends_the_log() {
        let mut damaged = log(&[record(0, 0), record(1, 0), record(2, 0)]);
        let second = damaged.iter().position(|byte| *byte == b'\n').unwrap() + 12;
        damaged[second] ^= 1;
        assert_eq!(read(&damaged).unwrap(), [record(0, 0)]);
    }

    #[test]
    fn a_line_that_reads_well_and_was_altered_is_damaged() {
        let whole = String::from_utf8(log(&[record(0, 0), record(1, 0)])).unwrap();
        let altered = whole.replace("10.0.0.1", "10.0.0.2");
        assert_ne!(whole, altered);
        assert_eq!(read(altered.as_bytes()).unwrap(), [record(0, 0)]);
    }

    #[test]
    fn a_damaged_line_that_was_promised_is_reported() {
        let mut damaged = log(&[record(0, 0), record(1, 0), record(2, 1)]);
        let second = damaged.iter().position(|byte| *byte == b'\n').unwrap() + 12;
        damaged[second] ^= 1;
        assert_eq!(read(&damaged), Err(1));
    }

    #[test]
    fn a_cut_snapshot_is_reported_and_an_empty_file_is_not() {
        let snapshot = Record { seq: 0, durable: 0, op: Op::Snapshot { version: VERSION, last: 1 } };
        assert_eq!(read(&log(&[snapshot])), Err(1));
        assert_eq!(read(b""), Ok(Vec::new()));
        assert_eq!(read(b"some other file\n"), Err(0));
    }
}
