//! Packet pointers: the only place where packet bytes are read and written.

use aya_ebpf::bindings::__sk_buff;
use portolan_core::wire::Frame;

/// The linear part of a packet.
#[derive(Clone, Copy)]
pub struct Linear {
    skb: *mut __sk_buff,
}

impl Linear {
    /// The packet of a classifier's context. Reads see what earlier writes left.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// A view of `T` at byte `at`; `None` if the linear part ends before.
    ///
    /// The view dies with the next helper that may move the packet.
    #[inline(always)]
    pub fn view<T>(&self, at: usize) -> Option<*mut T> {
        // SAFETY: the context is valid for the whole run; the verifier knows both fields as packet pointers.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        let start = data + at;
        if start + size_of::<T>() > end { None } else { Some(start as *mut T) }
    }

    /// The half word at byte `at`.
    #[inline(always)]
    pub fn half(&self, at: usize) -> Option<u16> {
        // SAFETY: as in `write`.
        self.view::<u16>(at).map(|place| unsafe { *place })
    }

    /// Writes `value` at byte `at`; whether the packet reaches that far.
    #[inline(always)]
    pub fn write<T: Copy>(&self, at: usize, value: T) -> bool {
        match self.view::<T>(at) {
            // SAFETY: `view` has compared the range with the end of the packet. Packets start at an address that
            // is 2 modulo 4, which is fine for the kernel: it checks alignment only where the machine needs it.
            Some(place) => unsafe {
                *place = value;
                true
            },
            None => false,
        }
    }
}

impl Frame for Linear {
    #[inline(always)]
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        // SAFETY: as in `write`.
        self.view::<[u32; N]>(at).map(|place| unsafe { *place })
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid for the whole run.
        unsafe { (*self.skb).len }
    }
}
