//! Pieces of packets that were cut on their way.

use portolan_abi::FragmentKey;

use super::{ETHERNET, Frame, Kind};
use crate::Family;

/// What a piece says of the packet that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragmented {
    /// Identification, as it stands in the packet.
    pub id: u32,
    /// Protocol of what was cut.
    pub proto: u8,
    /// Whether it is the first piece.
    pub first: bool,
}

/// A piece, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<A> {
    /// Its packet.
    pub key: FragmentKey<A>,
    /// Whether it is the first.
    pub first: bool,
}

/// Reads what [`parse`](super::parse) found to be a [`Kind::Fragment`](super::Kind::Fragment); `None` if it ends before
/// it says what it is.
#[inline(always)]
pub fn piece<F: Family, P: Frame>(frame: &P) -> Option<Piece<F::Addr>> {
    let header = F::header(frame, ETHERNET)?;
    let said = F::fragmented(frame, &header)?;
    let fields = F::fields(&header);
    let key = FragmentKey { src: fields.src, dst: fields.dst, id: said.id, proto: u32::from(said.proto) };
    Some(Piece { key, first: said.first })
}

/// Whether a packet that ends nowhere too early is a piece of one.
#[inline(always)]
pub fn is_piece<F: Family, P: Frame>(frame: &P) -> bool {
    matches!(F::header(frame, ETHERNET), Some(header) if F::fields(&header).kind == Kind::Fragment)
}

/// The first piece of a packet, as if it were the whole.
#[derive(Clone, Copy, Debug)]
pub struct FirstPiece<'a, P>(pub &'a P);

impl<P: Frame> Frame for FirstPiece<'_, P> {
    const FIRST_PIECE: bool = true;

    #[inline(always)]
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        self.0.words(at)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.0.len()
    }
}
