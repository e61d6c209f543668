//! The kinds of our own API group, `portolan.dev/v1alpha1`, as JSON or YAML gives them.
//!
//! Docstrings of the fields are what `kubectl explain` shows: the CRDs are made of these types ([`crate::crds`]).
//! Types are as loose as the other wire structs' so that a refusal names field and value; what the API server
//! can check by itself stands in the attributes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::wire::{Meta, nullable};

/// The group before the `/` of `apiVersion`.
pub(crate) const GROUP: &str = "portolan.dev";
/// The text of `apiVersion`.
pub(crate) const API_VERSION: &str = "portolan.dev/v1alpha1";

/// An object of one of our kinds: what is read of it.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "S: Default + Deserialize<'de>"))]
pub(crate) struct Custom<S> {
    #[serde(deserialize_with = "nullable")]
    pub(crate) metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub(crate) spec: S,
}

/// Public addresses that services of type LoadBalancer may be given.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = ["addresses"]))]
pub(crate) struct LoadBalancerPoolSpec {
    /// The addresses that may be given, of either family: prefixes as 198.51.100.0/24, and ranges as
    /// 198.51.100.10-198.51.100.19, both ends included.
    #[serde(deserialize_with = "nullable")]
    #[schemars(length(min = 1, max = 256))]
    pub(crate) addresses: Vec<String>,
    /// Only services with these labels may have addresses of this pool. Absent: all.
    #[serde(deserialize_with = "nullable")]
    pub(crate) service_selector: LabelSelector,
    /// Only services of these namespaces may have addresses of this pool. Absent: of all. Namespaces are named by the label
    /// kubernetes.io/metadata.name, in matchLabels or by the operator In; other labels are not supported.
    #[serde(deserialize_with = "nullable")]
    pub(crate) namespace_selector: LabelSelector,
    /// Whether services get addresses of this pool without asking for the pool or for an address.
    #[schemars(extend("default" = true))]
    pub(crate) auto_assign: Option<bool>,
    /// Pools with a higher priority are used first; of equal ones, the first by name.
    #[schemars(range(min = -2147483648, max = 2147483647), extend("default" = 0))]
    pub(crate) priority: Option<i64>,
    /// Never give the first and the last address of a prefix, which some networks treat as network and broadcast
    /// address. Prefixes of one or two addresses are not concerned.
    #[schemars(extend("default" = false))]
    pub(crate) avoid_first_last: Option<bool>,
    /// How nodes tell the network of this pool's addresses: L2 (ARP and NDP), BGP, or both.
    #[schemars(extend(
        "default" = ["L2", "BGP"],
        "items" = {"type": "string", "enum": ["L2", "BGP"]},
        "x-kubernetes-list-type" = "set",
    ))]
    pub(crate) announce: Option<Vec<String>>,
}

/// A selector of labels; everything in it must hold.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LabelSelector {
    /// Labels and the value that each must have.
    #[serde(deserialize_with = "nullable")]
    pub(crate) match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(deserialize_with = "nullable")]
    pub(crate) match_expressions: Vec<LabelRequirement>,
}

/// A requirement on one label.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["key", "operator"]))]
pub(crate) struct LabelRequirement {
    /// The label's name.
    #[serde(deserialize_with = "nullable")]
    pub(crate) key: String,
    /// In and NotIn compare with the values; Exists and DoesNotExist have none.
    #[serde(deserialize_with = "nullable")]
    #[schemars(extend("enum" = ["In", "NotIn", "Exists", "DoesNotExist"]))]
    pub(crate) operator: String,
    /// What the label's value is compared with.
    #[serde(deserialize_with = "nullable")]
    pub(crate) values: Vec<String>,
}

/// A router that addresses are announced to by BGP.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = ["peerAddress", "peerASN"]))]
pub(crate) struct BgpPeerSpec {
    /// The router's address. Link-local addresses are not supported.
    pub(crate) peer_address: Option<String>,
    /// The router's AS number.
    #[serde(rename = "peerASN")]
    #[schemars(range(min = 1, max = 4294967294_i64))]
    pub(crate) peer_asn: Option<i64>,
    /// The AS number that this side shows to it. Absent: the one that agents are started with.
    #[serde(rename = "myASN")]
    #[schemars(range(min = 1, max = 4294967294_i64))]
    pub(crate) my_asn: Option<i64>,
    /// The router's TCP port.
    #[schemars(range(min = 1, max = 65535), extend("default" = 179))]
    pub(crate) peer_port: Option<i64>,
    /// How long either side waits for a message, as 90s or 1m30s, in whole seconds: 3s or more, or 0s for ever. The lower of
    /// both sides' counts.
    #[schemars(extend("default" = "90s"))]
    pub(crate) hold_time: Option<String>,
    /// How often to say that one is there, as 30s. Absent: a third of the hold time.
    pub(crate) keepalive_time: Option<String>,
    /// The address to connect from, of the router's family. Absent: the kernel's choice.
    pub(crate) source_address: Option<String>,
    /// How many routers packets to a peer of another AS may pass, itself included. Absent: 1.
    #[schemars(range(min = 1, max = 255))]
    pub(crate) ebgp_multi_hop: Option<i64>,
    /// The router is at most so many hops away; packets from further are refused (RFC 5082). It must do the same.
    #[schemars(range(min = 1, max = 254))]
    pub(crate) ttl_security: Option<i64>,
    /// Where the key of TCP MD5 signatures (RFC 2385) is. Absent: they are not used.
    pub(crate) password: Option<Password>,
    /// Families of addresses to announce. Absent: both.
    #[schemars(extend(
        "items" = {"type": "string", "enum": ["IPv4", "IPv6"]},
        "minItems" = 1,
        "x-kubernetes-list-type" = "set",
    ))]
    pub(crate) families: Option<Vec<String>>,
    /// How long the router keeps routes while an agent restarts (RFC 4724), as 2m, 4095s at most. 0s: not at all.
    #[schemars(extend("default" = "120s"))]
    pub(crate) graceful_restart_time: Option<String>,
    /// Wait for the router's connection and never connect.
    #[schemars(extend("default" = false))]
    pub(crate) passive: Option<bool>,
    /// The next hop of IPv4 routes. Absent: the session's own address.
    #[serde(rename = "nextHopIPv4")]
    #[schemars(extend("format" = "ipv4"))]
    pub(crate) next_hop_v4: Option<String>,
    /// The next hop of IPv6 routes. Absent: the session's own address.
    #[serde(rename = "nextHopIPv6")]
    #[schemars(extend("format" = "ipv6"))]
    pub(crate) next_hop_v6: Option<String>,
    /// Only nodes that one of these selects have a session with this router. Absent: all.
    #[serde(deserialize_with = "nullable")]
    pub(crate) node_selectors: Vec<LabelSelector>,
}

/// Where a password is: in a Secret or in a file.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.secretRef) != has(self.file)",
    "message": "a password comes from secretRef or from file",
}]))]
pub(crate) struct Password {
    /// The Secret whose entry `password` it is.
    pub(crate) secret_ref: Option<SecretName>,
    /// The file on each node that holds it, by its absolute path: for agents that read objects from a directory.
    pub(crate) file: Option<String>,
}

/// A Secret by namespace and name.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["namespace", "name"]))]
pub(crate) struct SecretName {
    /// Its namespace.
    #[serde(deserialize_with = "nullable")]
    pub(crate) namespace: String,
    /// Its name.
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
}

/// What is announced to which routers, and how it is tagged.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BgpAdvertisementSpec {
    /// Names of the pools whose addresses are announced. Empty: of all.
    #[serde(deserialize_with = "nullable")]
    pub(crate) pools: Vec<String>,
    /// Names of the BGPPeers that they are announced to. Empty: to all.
    #[serde(deserialize_with = "nullable")]
    pub(crate) peers: Vec<String>,
    /// Only nodes that one of these selects announce. Absent: all.
    #[serde(deserialize_with = "nullable")]
    pub(crate) node_selectors: Vec<LabelSelector>,
    /// Tags of the routes: 64512:100 (RFC 1997), a well-known name as no-export, or 64512:1:2 (RFC 8092).
    #[serde(deserialize_with = "nullable")]
    #[schemars(length(max = 128))]
    pub(crate) communities: Vec<String>,
    /// How much routers of the same AS prefer these routes: the highest wins. Other ASes are not told.
    #[schemars(range(min = 0, max = 4294967295_i64))]
    pub(crate) local_pref: Option<i64>,
    /// Announce prefixes of this length instead of single IPv4 addresses.
    #[schemars(range(min = 0, max = 32), extend("default" = 32))]
    pub(crate) aggregation_length: Option<i64>,
    /// Announce prefixes of this length instead of single IPv6 addresses.
    #[serde(rename = "aggregationLengthV6")]
    #[schemars(range(min = 0, max = 128), extend("default" = 128))]
    pub(crate) aggregation_length_v6: Option<i64>,
    /// Announce each node's podCIDRs as well.
    #[serde(rename = "podCIDRs")]
    #[schemars(extend("default" = false))]
    pub(crate) pod_cidrs: Option<bool>,
}

/// Something that is so, or is not so, of an object, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["type", "status", "reason", "message"]))]
pub struct StatusCondition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    #[schemars(extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people, and what to do about it.
    pub message: String,
    /// When the status last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: Option<String>,
}

/// How full a pool is, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LoadBalancerPoolStatus {
    /// Its IPv4 addresses; absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<AddressCount>,
    /// Its IPv6 addresses; absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<AddressCount>,
    /// What is so of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<StatusCondition>,
}

/// Addresses of one family; a number that is larger than 9223372036854775807 is told as that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressCount {
    /// All that services may be given.
    pub total: i64,
    /// Those that services have.
    pub assigned: i64,
    /// Those that are left.
    pub available: i64,
}

/// What is so of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ObjectStatus {
    /// What is so of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<StatusCondition>,
}
