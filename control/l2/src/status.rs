//! What an announcer looks like from outside.

use std::net::IpAddr;

use serde::Serialize;

/// An announcer, as it is now. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This node's name.
    pub node: String,
    /// What it does.
    pub state: NodeState,
    /// What is not as it should be, and what to do about it.
    pub warnings: Vec<String>,
    /// How often it did nothing for so long that others may have given it up.
    pub lapses: u64,
    /// Datagrams that were no heartbeats of members.
    pub refused: u64,
    /// All addresses, by address.
    pub vips: Vec<VipStatus>,
    /// The other nodes, by name.
    pub members: Vec<MemberStatus>,
    /// The interfaces, by index.
    pub interfaces: Vec<InterfaceStatus>,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeState {
    /// It can own nothing: see the warnings.
    Idle,
    /// It owns nothing until it knows who else is there.
    Listening,
    /// It owns what it is first for.
    Ready,
    /// It has given everything up and ends.
    Leaving,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VipStatus {
    /// The address.
    pub address: IpAddr,
    /// The node that owns it, as far as this one knows.
    pub owner: Option<String>,
    /// This node owns it.
    pub ours: bool,
    /// Since when the owner is that.
    pub since: u64,
    /// Interfaces of this node on which it answers.
    pub interfaces: Vec<String>,
    /// Questions answered since it is this node's.
    pub answered: u64,
    /// How often it was announced unasked since it is this node's.
    pub announced: u64,
    /// Who else claimed it last, since it is this node's.
    pub conflict: Option<Conflict>,
}

/// Somebody else claimed an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// Its Ethernet address.
    pub mac: String,
    /// The interface on which it was heard.
    pub interface: String,
    /// When.
    pub at: u64,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What is known of it.
    pub state: MemberState,
    /// When it was last heard.
    pub last_heard: Option<u64>,
    /// It said that it hears this node, and takes it for one that owns addresses.
    pub counts_us: bool,
}

/// What is known of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum MemberState {
    /// Nothing was heard for so long that it is taken for gone.
    Silent,
    /// It is there and owns nothing yet.
    Listening,
    /// It is there and owns what it is first for.
    Ready,
    /// It said that it leaves.
    Leaving,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// It carries packets.
    pub operational: bool,
}
