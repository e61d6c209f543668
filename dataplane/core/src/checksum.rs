//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624), on words in packet order.
//!
//! One's complement sums do not depend on the byte order as long as all operands share it.

/// Sum of the 16-bit halves of the words, not folded. Overflows above 32,768 words.
#[inline(always)]
#[must_use]
pub fn sum<const N: usize>(words: &[u32; N]) -> u32 {
    let mut total = 0;
    for word in words {
        total += (word & 0xffff) + (word >> 16);
    }
    total
}

/// What replacing `old` by `new` adds to a sum, not folded (RFC 1624 eqn. 3: `~m + m'`).
#[inline(always)]
#[must_use]
pub fn difference(old: u32, new: u32) -> u32 {
    (!old & 0xffff) + (!old >> 16) + (new & 0xffff) + (new >> 16)
}

/// Folds a sum into 16 bits.
#[inline(always)]
#[must_use]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The checksum field for data of this sum.
#[inline(always)]
#[must_use]
pub fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// Updates a checksum field by a difference.
#[inline(always)]
#[must_use]
pub fn update(field: u16, difference: u32) -> u16 {
    !fold(u32::from(!field) + u32::from(fold(difference)))
}
