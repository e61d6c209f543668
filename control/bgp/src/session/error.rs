//! Why a session is not there, and what to do about it.

use super::State;
use crate::wire::{Malformed, Notification};

/// Why there is no session, or no longer. The text is for operators and says what to do where that is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// There is no TCP connection.
    #[error("connecting to port {port}: {reason}")]
    Connect {
        /// The peer's.
        port: u16,
        /// What the system said, and what to look at.
        reason: String,
    },
    /// The connection went away without a word.
    #[error("{}", closed(*.state, .reason.as_deref(), *.local_asn))]
    Closed {
        /// The session's state until then.
        state: State,
        /// What the system said, if it was more than an end.
        reason: Option<String>,
        /// The AS number that the peer was or would have been shown.
        local_asn: u32,
    },
    /// The peer ended it.
    #[error("the peer says: {notification}{}", advice(.notification))]
    Notified {
        /// Its reason.
        notification: Notification,
    },
    /// The peer's OPEN cannot be agreed to.
    #[error("{reason}")]
    Disagreement {
        /// About what, and what to do.
        reason: String,
    },
    /// The peer sent something that cannot be read.
    #[error("the peer sent what BGP does not allow: {0}")]
    Malformed(Malformed),
    /// The peer sent a message that does not belong there.
    #[error("the peer sent {message} in state {state:?}")]
    Unexpected {
        /// What it sent.
        message: &'static str,
        /// The state here.
        state: State,
    },
    /// The peer was silent for too long.
    #[error(
        "hold timer expired: nothing from the peer for {seconds} s; check the link, and the router's load"
    )]
    HoldTimer {
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// The peer takes no bytes (RFC 9687).
    #[error("the peer has read nothing for {seconds} s; check the router's load")]
    Stalled {
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// The peer opened another connection and keeps routes meanwhile (RFC 4724 §4.2).
    #[error("the peer restarted")]
    PeerRestarted,
}

fn closed(state: State, reason: Option<&str>, local_asn: u32) -> String {
    let how = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    match state {
        State::OpenSent => format!(
            "the peer closed the connection{how} before it said who it is: \
             is this node's address configured there, as a neighbor of AS {local_asn}?"
        ),
        _ => format!("the peer closed the connection{how}"),
    }
}

fn advice(notification: &Notification) -> String {
    notification.advice().map(|advice| format!("; {advice}")).unwrap_or_default()
}
