//! Outcomes of the packet path. Every packet a program sees is counted in exactly one of them.

/// Defines an outcome for each line: its index in the counters' array, its name and its meaning.
macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $constant:ident = $index:literal, $name:literal;)*) => {
        $($(#[doc = $doc])+ pub const $constant: u32 = $index;)*

        /// Every outcome: index, name as the operator sees it, meaning.
        pub const ALL: &[Outcome] =
            &[$(Outcome { index: $index, name: $name, meaning: concat!($($doc),+) }),*];

        const _: () = {
            let mut at = 0;
            while at < ALL.len() {
                assert!(ALL[at].index as usize == at, "outcomes are numbered in order without gaps");
                at += 1;
            }
        };
    };
}

/// One outcome, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Index in the counters' array.
    pub index: u32,
    /// Short name, also the metric's label.
    pub name: &'static str,
    /// What it means and, for a drop, what would change it.
    pub meaning: &'static str,
}

impl Outcome {
    /// Whether packets of this outcome did not reach who they were sent to.
    #[must_use]
    pub const fn is_drop(&self) -> bool {
        is_drop(self.index)
    }
}

/// Size of the counters' array; room for outcomes of later versions.
pub const CAPACITY: u32 = 64;

outcomes! {
    /// Not ours: left to the host's network stack.
    PASSED = 0, "passed";
    /// A fragment that is no service traffic: left to the host's network stack.
    PASSED_FRAGMENT = 1, "passed-fragment";
    /// IP options or extension headers, no service traffic: left to the host's network stack.
    PASSED_OPTIONS = 2, "passed-options";
    /// A protocol without ports, no service traffic: left to the host's network stack.
    PASSED_PROTOCOL = 3, "passed-protocol";
    /// Delivered to a pod of this node.
    TO_POD = 4, "to-pod";
    /// Sent out of an uplink.
    TO_UPLINK = 5, "to-uplink";
    /// Delivered to a process of the host.
    TO_HOST = 6, "to-host";
    /// Translated and left to the host's network stack.
    TO_STACK = 7, "to-stack";
    /// ICMP echo to a service address, answered.
    ECHO_ANSWERED = 8, "echo-answered";
    /// The service has no backend: the client was told at once. Add an endpoint that is ready.
    REJECTED_NO_BACKEND = 9, "rejected-no-backend";
    /// The service address has no such port: the client was told at once. Check the service's ports.
    REJECTED_UNKNOWN_PORT = 10, "rejected-unknown-port";
    /// The packet ends before its headers do. Capture it on its way here: its sender or a device between is at fault.
    DROP_TRUNCATED = 11, "truncated";
    /// A header contradicts itself. Capture it on its way here: its sender is at fault.
    DROP_MALFORMED = 12, "malformed";
    /// A fragment to a service address whose packet no service takes, or whose first fragment did not come.
    /// Send less at once, or look for what loses fragments on the way.
    DROP_FRAGMENT = 13, "fragment";
    /// IP options or extension headers to a service or in its answer: they are not translated. Send without them, or to a
    /// backend itself.
    DROP_OPTIONS = 14, "options";
    /// A protocol that services do not have: they are TCP and UDP. Use one of these, or ask a backend itself.
    DROP_PROTOCOL = 15, "protocol";
    /// A pod sent neither IPv4 nor IPv6 (ARP, say). Pods have static neighbours and need none of it: stop what sends it,
    /// if there is much of it.
    DROP_NOT_IP = 16, "not-ip";
    /// A pod sent with an address that is not its own. Have it send with one that `portolan pod list` shows.
    DROP_SPOOFED_ADDRESS = 17, "spoofed-address";
    /// A pod sent with a MAC address that is not its own. Remove what bridges or changes it inside of the pod.
    DROP_SPOOFED_MAC = 18, "spoofed-mac";
    /// Link-local control traffic of a pod or on the service device (duplicate address detection, MLD), which has no
    /// use there. Ignore it.
    DROP_LINK_LOCAL = 19, "link-local";
    /// A pod sent to a multicast or broadcast address. Address its receivers one by one.
    DROP_MULTICAST = 20, "multicast";
    /// A loopback address on a wire (RFC 1122 3.2.1.3, RFC 4291 2.5.3). Use an address of the node or pod that is meant.
    DROP_LOOPBACK = 21, "loopback";
    /// An address of the service range that no service has. Check it against `portolan service list`.
    DROP_UNKNOWN_SERVICE = 22, "unknown-service";
    /// Traffic policy Local, and no backend on this node. Run one here, ask another node, or set the policy to Cluster.
    DROP_NO_LOCAL_BACKEND = 23, "no-local-backend";
    /// No route to the backend. Check the node's routes.
    DROP_NO_ROUTE = 24, "no-route";
    /// No free source port to masquerade with. Widen the masquerade range.
    DROP_NO_PORT = 25, "no-port";
    /// The time to live ran out (RFC 1812 5.3.1). Look for a loop in the routes, unless this was a traceroute.
    DROP_TTL = 26, "ttl";
    /// The node has no address in this family to masquerade with. Give it one.
    DROP_NO_NODE_ADDRESS = 27, "no-node-address";
    /// ICMP echo to a service address none of whose services has a backend. Add an endpoint that is ready.
    DROP_ECHO = 28, "echo-no-backend";
    /// Must stay 0: a table index led nowhere. Run `portolan audit` and report it.
    DROP_DANGLING = 29, "dangling-index";
    /// Must stay 0: the kernel refused to change a packet. Report it.
    DROP_KERNEL = 30, "kernel-refused";
    /// Must stay 0: the flow table refused an entry. Raise its size.
    DROP_FLOW_TABLE = 31, "flow-table";
    /// The client is in none of the service's `loadBalancerSourceRanges`. Add its range, if it may come.
    DROP_SOURCE_RANGE = 32, "source-range";
    /// IP inside of IP to a pod that no other node of the cluster sent, or with something inside that is not for a
    /// service on this node. If nodes sent it: give all nodes the same `--external-mode`.
    DROP_TUNNEL = 33, "tunnel";
    /// With the header that takes it to its backend's node it would not fit the uplink: the client was told the size
    /// that does. Raise the uplink's MTU, if clients do not heed it.
    REJECTED_TOO_BIG = 34, "rejected-too-big";
    /// A fragment that came before the first one of its packet: it waits for that.
    FRAGMENT_WAITS = 35, "fragment-waits";
    /// A first fragment that others were waiting for: all of them are decided on anew, in order.
    FRAGMENTS_RELEASED = 36, "fragments-released";
    /// A connection whose backend left its service: who sent on it was told at once, and may connect again. Set
    /// `--departed-backends keep`, if such connections shall go on.
    REJECTED_DEPARTED = 37, "rejected-departed";
    /// Sent to another node's pod by the overlay.
    TO_OVERLAY = 38, "to-overlay";
    /// In the overlay, a packet that no node of the cluster sent; to the overlay, one for an address that no node has, or that a
    /// pod made itself. Check that Node objects have every node's address and podCIDRs.
    DROP_OVERLAY = 39, "overlay";
    /// A pod sent what a DHCP server answers with. Addresses come from the node: stop what sends it.
    DROP_DHCP = 40, "dhcp";
}

/// The first outcome that is a drop; a rejection counts as one for the client.
const FIRST_DROP: u32 = REJECTED_NO_BACKEND;

/// Whether packets of an outcome did not reach who they were sent to.
#[inline(always)]
#[must_use]
pub const fn is_drop(outcome: u32) -> bool {
    outcome >= FIRST_DROP && !matches!(outcome, FRAGMENT_WAITS | FRAGMENTS_RELEASED | TO_OVERLAY)
}
