//! What nodes tell each other, one datagram each time.
//!
//! ```text
//!  0  magic "PtL2"                4 bytes
//!  4  version, 1                  1
//!  5  flags                       1   1: ready, 2: leaving, 4: counts with the receiver
//!  6  length of the name          1
//!  7  reserved                    1   sent as 0, not read
//!  8  incarnation                 8   big endian; greater after each start
//! 16  sequence                    8   big endian; greater with each message
//! 24  the sender's name           1 to 253, UTF-8
//! ```
//! Flags that a receiver does not know and bytes behind the name are for later versions, and are not read: nodes of two
//! versions must go on to hear each other while they are upgraded one by one.

use crate::config::MAX_NAME;

/// A heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// Who sent it.
    pub(crate) name: String,
    /// The sender's life: another one after each start.
    pub(crate) incarnation: u64,
    /// Its number in that life.
    pub(crate) sequence: u64,
    /// The sender takes addresses.
    pub(crate) ready: bool,
    /// The sender takes none any more, and ends.
    pub(crate) leaving: bool,
    /// The sender takes the receiver for a node that owns what is its to own.
    pub(crate) counts_you: bool,
}

/// Why a datagram is no heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// It ends too early.
    #[error("it has {0} bytes, too few")]
    Short(usize),
    /// It is something else.
    #[error("it does not begin as heartbeats do")]
    Magic,
    /// It is of a version that means something else.
    #[error("it is of version {0}, and this node knows version 1: upgrade the older one")]
    Version(u8),
    /// There is no name, or it is too long or not UTF-8.
    #[error("its name is none")]
    Name,
}

const MAGIC: [u8; 4] = *b"PtL2";
const VERSION: u8 = 1;
const READY: u8 = 1;
const LEAVING: u8 = 2;
const COUNTS_YOU: u8 = 4;
const HEADER: usize = 24;

/// More than any heartbeat of this version has, in bytes.
pub(crate) const MAX_LEN: usize = 1024;

impl Heartbeat {
    /// Its bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let flags = [(self.ready, READY), (self.leaving, LEAVING), (self.counts_you, COUNTS_YOU)];
        let flags = flags.into_iter().fold(0, |sum, (set, flag)| if set { sum | flag } else { sum });
        // Names are checked before they come here.
        let length = u8::try_from(self.name.len()).unwrap_or(u8::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.name.len());
        bytes.extend(MAGIC);
        bytes.extend([VERSION, flags, length, 0]);
        bytes.extend(self.incarnation.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.name.bytes());
        bytes
    }

    /// Reads one.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(DecodeError::Short(bytes.len()));
        };
        let [m0, m1, m2, m3, version, flags, length, _, numbers @ ..] = *header;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(DecodeError::Magic);
        }
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let length = usize::from(length);
        let name = rest.get(..length).ok_or(DecodeError::Short(bytes.len()))?;
        let name = std::str::from_utf8(name).map_err(|_| DecodeError::Name)?;
        if !(1..=MAX_NAME).contains(&length) {
            return Err(DecodeError::Name);
        }
        let [incarnation, sequence] = [0, 8].map(|at| {
            let bytes = numbers.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_be_bytes(bytes.unwrap_or_default())
        });
        Ok(Self {
            name: name.to_owned(),
            incarnation,
            sequence,
            ready: flags & READY != 0,
            leaving: flags & LEAVING != 0,
            counts_you: flags & COUNTS_YOU != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heartbeat() -> Heartbeat {
        Heartbeat {
            name: "node1".to_owned(),
            incarnation: 0x0102_0304_0506_0708,
            sequence: 9,
            ready: true,
            leaving: false,
            counts_you: true,
        }
    }

    #[test]
    fn bytes_are_as_documented() {
        let expected =
            *b"PtL2\x01\x05\x05\x00\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00\x00\x00\x00\x09node1";
        assert_eq!(heartbeat().encode(), expected);
        assert_eq!(Heartbeat::decode(&expected), Ok(heartbeat()));
    }

    #[test]
    fn what_later_versions_add_is_not_read() {
        let mut bytes = heartbeat().encode();
        bytes[5] |= 0xf8;
        bytes[7] = 1;
        bytes.extend(b"more");
        assert_eq!(Heartbeat::decode(&bytes), Ok(heartbeat()));
    }

    #[test]
    fn what_is_none_is_refused_with_the_reason() {
        let changed = |at: usize, byte: u8| {
            let mut bytes = heartbeat().encode();
            bytes[at] = byte;
            Heartbeat::decode(&bytes).expect_err("it is none")
        };
        assert_eq!(changed(0, b'p'), DecodeError::Magic);
        assert_eq!(changed(4, 2), DecodeError::Version(2));
        assert_eq!(changed(6, 0), DecodeError::Name);
        assert_eq!(changed(6, 6), DecodeError::Short(29));
        assert_eq!(changed(24, 0xff), DecodeError::Name);
        for length in 0..29 {
            let cut = &heartbeat().encode()[..length];
            assert_eq!(Heartbeat::decode(cut), Err(DecodeError::Short(length)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Heartbeat::decode(&bytes);
            let marked = [MAGIC.as_slice(), &[VERSION], &bytes].concat();
            let _ = Heartbeat::decode(&marked);
        }

        #[test]
        fn what_was_encoded_is_decoded(
            name in "[a-z0-9.-]{1,253}", incarnation: u64, sequence: u64, ready: bool, leaving: bool, counts_you: bool,
        ) {
            let heartbeat = Heartbeat { name, incarnation, sequence, ready, leaving, counts_you };
            prop_assert_eq!(Heartbeat::decode(&heartbeat.encode()), Ok(heartbeat));
        }
    }
}
