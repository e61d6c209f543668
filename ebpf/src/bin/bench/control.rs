//! What the packets of a measurement are: the contract between the bench's programs and its user side.

/// How often the programs for the machine's own costs do what they do.
pub(crate) const TIMES: u32 = 16;

/// One record. Only 32-bit words, so that it can be written as an array of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Control {
    /// Ethernet addresses as they stand in the frame.
    pub(crate) ethernet: [u32; 3],
    /// The IP header as it stands in the frame: five words of it for IPv4.
    pub(crate) ip: [u32; 10],
    /// Source and destination port as they stand in the packet; the one that varies is zero.
    pub(crate) ports: u32,
    /// Where the port that varies is: 0 for the source port, 16 for the destination port.
    pub(crate) shift: u32,
    /// The lowest value of the port that varies, host byte order.
    pub(crate) first_port: u32,
    /// Last word of the first service address, host byte order; the following ones are the other services'.
    pub(crate) address: u32,
    /// Number of services as a power of two.
    pub(crate) service_bits: u32,
    /// Number of flows less one; a power of two less one.
    pub(crate) mask: u32,
    /// The last value of the sequence `next * factor + addend` of flow numbers.
    pub(crate) next: u32,
    /// See [`Self::next`].
    pub(crate) factor: u32,
    /// See [`Self::next`].
    pub(crate) addend: u32,
    /// How many low bits of [`Self::next`] are left out: those of such a sequence are less random.
    pub(crate) down: u32,
}

/// Number of words of [`Control`].
pub(crate) const WORDS: usize = 23;
const _: () = assert!(size_of::<Control>() == 4 * WORDS);
