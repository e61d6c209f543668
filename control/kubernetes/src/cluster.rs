//! Writes to an API server.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch as KubePatch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use portolan_model::{Kind, ObjectKey};
use serde_json::Value;

use crate::facts::Facts;
use crate::source::resource;
use crate::{ApiConfig, ConfigError};

/// Who the API server notes as the writer of fields.
pub(crate) const FIELD_MANAGER: &str = "portolan-controller";

/// Longest note of an Event that the API server takes, in bytes.
const NOTE_MAX: usize = 1024;

/// An API server to write to; of several the next one when one does not answer.
#[derive(Debug)]
pub struct Cluster {
    config: ApiConfig,
    current: Mutex<Current>,
}

struct Current {
    turn: usize,
    client: Client,
    events: Recorder,
}

impl fmt::Debug for Current {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Current").field("turn", &self.turn).finish_non_exhaustive()
    }
}

/// Which part of an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Object,
    /// The status alone.
    Status,
}

/// A change of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// The object.
    pub object: ObjectKey,
    /// Which part of it.
    pub part: Part,
    /// A JSON merge patch (RFC 7386). With `metadata.resourceVersion` it is refused if the object has another.
    pub body: Value,
}

/// Something that happened to an object, for those who look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The object.
    pub object: ObjectKey,
    /// Its `metadata.uid`.
    pub uid: String,
    /// Whether something is wrong.
    pub is_warning: bool,
    /// Why, in one word.
    pub reason: String,
    /// Why, in words.
    pub text: String,
}

/// A write that is not known to have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The object has another version, or is there already.
    #[error("somebody else changed it first: {0}")]
    Conflict(String),
    /// There is no such object.
    #[error("it is not there: {0}")]
    Gone(String),
    /// The server does not take it.
    #[error("the API server refuses it ({code}): {message}")]
    Refused {
        /// The status of HTTP.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// It may have happened or not.
    #[error("nobody knows whether it was done: {0}")]
    Unknown(String),
}

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                409 => Self::Conflict(status.message),
                404 => Self::Gone(status.message),
                // Too many requests: as if the server were away.
                code @ 400..500 if code != 429 => Self::Refused { code, message: status.message },
                code => Self::Unknown(format!("{code}: {}", status.message)),
            },
            error => Self::Unknown(error.to_string()),
        }
    }
}

impl Cluster {
    /// # Errors
    /// There is no usable configuration. A server that does not answer is no error.
    pub async fn connect(config: ApiConfig) -> Result<Self, ConfigError> {
        let (client, _) = config.client(0).await?;
        let current = Mutex::new(Current { turn: 0, events: recorder(&client), client });
        Ok(Self { config, current })
    }

    /// How it is reached.
    pub const fn config(&self) -> &ApiConfig {
        &self.config
    }

    /// Writes one change; the object as it is then.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write(&self, patch: &Patch) -> Result<Facts, WriteError> {
        let Patch { object, part, body } = patch;
        let resource = resource(object.kind);
        let api: Api<DynamicObject> = if object.kind.is_namespaced() {
            Api::namespaced_with(self.client(), object.namespace(), &resource)
        } else {
            Api::all_with(self.client(), &resource)
        };
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let body = KubePatch::Merge(body);
        let written = match part {
            Part::Object => api.patch(object.name(), &params, &body).await,
            Part::Status => api.patch_status(object.name(), &params, &body).await,
        };
        let object = written.map_err(WriteError::from)?;
        let document = serde_json::to_value(&object).unwrap_or_default();
        Facts::of(&document).ok_or_else(|| WriteError::Unknown("the answer is not an object".to_owned()))
    }

    /// Notes something as an Event (`events.k8s.io/v1`); what repeats within minutes is counted in one.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn note(&self, note: &Note) -> Result<(), WriteError> {
        let Note { object, uid, is_warning, reason, text } = note;
        let event = Event {
            type_: if *is_warning { EventType::Warning } else { EventType::Normal },
            reason: reason.clone(),
            note: Some(shorten(text)),
            action: ACTION.to_owned(),
            secondary: None,
        };
        let namespace = object.kind.is_namespaced().then(|| object.namespace().to_owned());
        let reference = ObjectReference {
            api_version: Some(object.kind.api_version().to_owned()),
            kind: Some(object.kind.as_str().to_owned()),
            name: Some(object.name().to_owned()),
            namespace,
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        };
        let events = self.lock().events.clone();
        events.publish(&event, &reference).await.map_err(WriteError::from)
    }

    pub(crate) fn client(&self) -> Client {
        self.lock().client.clone()
    }

    /// Makes the next server's turn, if there are several.
    ///
    /// # Errors
    /// The configuration is not usable any more; the current server stays.
    pub async fn turn(&self) -> Result<(), ConfigError> {
        if self.config.servers.len() < 2 {
            return Ok(());
        }
        let turn = self.lock().turn + 1;
        let (client, server) = self.config.client(turn).await?;
        tracing::warn!(%server, "writing to the next API server");
        *self.lock() = Current { turn, events: recorder(&client), client };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What Events say that was done.
const ACTION: &str = "Allocate";

fn recorder(client: &Client) -> Recorder {
    Recorder::new(
        client.clone(),
        Reporter { controller: "portolan.dev/controller".to_owned(), instance: None },
    )
}

fn shorten(text: &str) -> String {
    if text.len() <= NOTE_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(NOTE_MAX - '…'.len_utf8());
    format!("{}…", &text[..end])
}

/// What the controller writes, as `group/plural verb`, sorted: what a role has to allow beside the
/// [lists and watches](crate::Interest::CONTROLLER), and beside the Lease.
#[must_use]
pub fn writes() -> Vec<String> {
    let patches = [(Kind::Service, ""), (Kind::Service, "/status"), (Kind::LoadBalancerPool, "/status")];
    let patches = patches.map(|(kind, part)| {
        let resource = resource(kind);
        format!("{}/{}{part} patch", resource.group, resource.plural)
    });
    let events = ["create", "patch"].map(|verb| format!("events.k8s.io/events {verb}"));
    let mut all: Vec<String> = patches.into_iter().chain(events).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(shorten("short"), "short");
        let cut = shorten(&"ü".repeat(600));
        assert!(cut.len() <= NOTE_MAX && cut.ends_with('…'), "{}", cut.len());
    }
}
