//! Definitions of all tables. Sizes are defaults: the loader may set others.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use portolan_abi::{
    Affinity, AffinityKey, Backend, Config, Early, EarlyKey, Endpoint, Event, FlowBucket, FlowHash, Fragment,
    FragmentKey, Frontend, FrontendKey, Realm, Service, SlabLine, Trace, Words, counter,
};
use portolan_core::{Family, V4, V6};

/// `BPF_F_MMAPABLE`: user space publishes by plain stores.
const MMAPABLE: usize = 1 << 10;

/// Number of services, one for each port and family.
const SERVICES: usize = 1 << 17;
/// Lines of 16 slots of the slab.
const SLAB_LINES: usize = 1 << 16;
/// Number of backends of one family.
const BACKENDS: usize = 1 << 19;
/// Number of frontends and address marks of one family.
const FRONTENDS: usize = 1 << 18;
/// Number of pods of this node: far above the 110 that a kubelet allows by default.
const ENDPOINTS: usize = 1 << 12;
/// Buckets of eight entries of flows of one family, two for each flow. Half of them stay free.
const FLOW_BUCKETS: usize = 1 << 16;

/// Source ranges of all services of one family.
const SOURCES: usize = 1 << 14;
/// Prefixes of the cluster in one family: two for each node, and a few.
const REALMS: usize = 1 << 15;
/// Bytes of events that wait for who watches.
const EVENT_BYTES: usize = 1 << 18;
/// Packets of one family whose pieces are remembered.
const FRAGMENTS: usize = 1 << 12;
/// Pieces that wait for the first one of their packet.
const EARLY_SLOTS: usize = 1 << 10;
/// Clients of one family that services with session affinity remember.
const CLIENTS: usize = 1 << 16;

/// What the node is: one record.
#[btf_map]
pub static CONFIG: Array<Config, 1, MMAPABLE> = Array::new();
/// How flows are spread over the buckets of their tables: one record.
#[btf_map]
pub static FLOW_HASH: Array<FlowHash, 1, MMAPABLE> = Array::new();
/// Packets by outcome.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { counter::CAPACITY as usize }> = PerCpuArray::new();
/// Services by index.
#[btf_map]
pub static SERVICES_ALL: Array<Service, SERVICES, MMAPABLE> = Array::new();
/// Rings of backend indexes.
#[btf_map]
pub static SLAB: Array<SlabLine, SLAB_LINES, MMAPABLE> = Array::new();

/// Which packets are watched: one record.
#[btf_map]
pub static TRACE: Array<Trace, 1, MMAPABLE> = Array::new();
/// The packet that each CPU is at, while packets are watched.
#[btf_map]
pub static TRACED: PerCpuArray<Event, 1> = PerCpuArray::new();
/// Packets for who watches. Without a type: a ring buffer has no values in the eyes of other loaders.
#[btf_map]
pub static EVENTS: RingBuf<(), EVENT_BYTES> = RingBuf::new();

/// Pieces that wait.
#[btf_map]
pub static EARLY: LruHashMap<EarlyKey, Early, EARLY_SLOTS> = LruHashMap::new();
/// The piece that each CPU is at: too large for the stack.
#[btf_map]
pub static PIECE: PerCpuArray<Early, 1> = PerCpuArray::new();

/// What a source range is a prefix of: [`portolan_abi::SourceKey`] without its length.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Source<A> {
    /// Index of the service.
    pub service: u32,
    /// The client.
    pub addr: A,
}

/// The tables that exist once for each family.
pub trait Kernel: Family {
    /// Frontends and address marks.
    fn frontends() -> &'static HashMap<FrontendKey<Self::Addr>, Frontend, FRONTENDS>;
    /// Backends by index.
    fn backends() -> &'static Array<Backend<Self::Addr>, BACKENDS, MMAPABLE>;
    /// Pods of this node by address.
    fn endpoints() -> &'static HashMap<Self::Addr, Endpoint, ENDPOINTS>;
    /// Prefixes of the cluster.
    fn realms() -> &'static LpmTrie<Self::Addr, Realm, REALMS>;
    /// Source ranges of services.
    fn sources() -> &'static LpmTrie<Source<Self::Addr>, u32, SOURCES>;
    /// Backends that clients of services with session affinity had last.
    fn affinity() -> &'static LruHashMap<AffinityKey<Self::Addr>, Affinity, CLIENTS>;
    /// Packets that were cut.
    fn fragments() -> &'static LruHashMap<FragmentKey<Self::Addr>, Fragment<Self::Addr>, FRAGMENTS>;
    /// Flows.
    fn flows() -> &'static Array<FlowBucket<Self::Addr>, FLOW_BUCKETS, MMAPABLE>;
}

/// Defines one family's tables.
macro_rules! kernel {
    ($family:ty, $addr:ty, $frontends:ident, $backends:ident, $endpoints:ident, $realms:ident, $sources:ident, $affinity:ident,
     $fragments:ident, $flows:ident) => {
        #[btf_map]
        static $frontends: HashMap<FrontendKey<$addr>, Frontend, FRONTENDS> = HashMap::new();
        #[btf_map]
        static $backends: Array<Backend<$addr>, BACKENDS, MMAPABLE> = Array::new();
        #[btf_map]
        static $endpoints: HashMap<$addr, Endpoint, ENDPOINTS> = HashMap::new();
        #[btf_map]
        static $realms: LpmTrie<$addr, Realm, REALMS> = LpmTrie::new();
        #[btf_map]
        static $sources: LpmTrie<Source<$addr>, u32, SOURCES> = LpmTrie::new();
        #[btf_map]
        static $affinity: LruHashMap<AffinityKey<$addr>, Affinity, CLIENTS> = LruHashMap::new();
        #[btf_map]
        static $fragments: LruHashMap<FragmentKey<$addr>, Fragment<$addr>, FRAGMENTS> = LruHashMap::new();
        #[btf_map]
        static $flows: Array<FlowBucket<$addr>, FLOW_BUCKETS, MMAPABLE> = Array::new();

        impl Kernel for $family {
            #[inline(always)]
            fn frontends() -> &'static HashMap<FrontendKey<$addr>, Frontend, FRONTENDS> {
                &$frontends
            }

            #[inline(always)]
            fn backends() -> &'static Array<Backend<$addr>, BACKENDS, MMAPABLE> {
                &$backends
            }

            #[inline(always)]
            fn endpoints() -> &'static HashMap<$addr, Endpoint, ENDPOINTS> {
                &$endpoints
            }

            #[inline(always)]
            fn realms() -> &'static LpmTrie<$addr, Realm, REALMS> {
                &$realms
            }

            #[inline(always)]
            fn sources() -> &'static LpmTrie<Source<$addr>, u32, SOURCES> {
                &$sources
            }

            #[inline(always)]
            fn affinity() -> &'static LruHashMap<AffinityKey<$addr>, Affinity, CLIENTS> {
                &$affinity
            }

            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FragmentKey<$addr>, Fragment<$addr>, FRAGMENTS> {
                &$fragments
            }

            #[inline(always)]
            fn flows() -> &'static Array<FlowBucket<$addr>, FLOW_BUCKETS, MMAPABLE> {
                &$flows
            }
        }
    };
}

kernel!(
    V4,
    Words<1>,
    FRONTENDS_V4,
    BACKENDS_V4,
    ENDPOINTS_V4,
    REALMS_V4,
    SOURCES_V4,
    AFFINITY_V4,
    FRAGMENTS_V4,
    FLOWS_V4
);
kernel!(
    V6,
    Words<4>,
    FRONTENDS_V6,
    BACKENDS_V6,
    ENDPOINTS_V6,
    REALMS_V6,
    SOURCES_V6,
    AFFINITY_V6,
    FRAGMENTS_V6,
    FLOWS_V6
);

/// Counts a packet. An index beyond the array counts nothing.
#[inline(always)]
pub fn count(outcome: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(outcome) {
        // SAFETY: the array is per CPU, and a classifier is not interrupted by another one on its CPU.
        unsafe { *counter += 1 }
    }
}
