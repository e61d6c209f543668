//! What is told about a document or a part of one that was refused.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use portolan_model::{ObjectKey, ServiceKey};

/// A document, or a part of one, that is not used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The line in it, from 1; 0: the whole file.
    pub line: u32,
    /// The object, as far as the document tells.
    pub object: Option<ObjectKey>,
    /// The service that the object is about: itself, or that of an EndpointSlice.
    pub service: Option<ServiceKey>,
    /// Path of the field inside the object; empty: the object or document itself.
    pub field: String,
    /// What is wrong and what would be right.
    pub reason: String,
    /// What is served instead.
    pub effect: Effect,
}

/// What is served in place of what was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Nothing: there never was a good version.
    NotServed,
    /// The last good version.
    LastGoodServed,
    /// The rest of the object.
    RestServed,
    /// The version of the file that defines the object first.
    OtherServed,
}

impl Effect {
    /// The effect in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Effect::NotServed => "it is not served",
            Effect::LastGoodServed => "the last good version keeps serving",
            Effect::RestServed => "the rest of it is served",
            Effect::OtherServed => "the other one is served",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.file.display())?;
        if self.line > 0 {
            write!(out, ":{}", self.line)?;
        }
        if let Some(object) = &self.object {
            write!(out, ": {object}")?;
        }
        if !self.field.is_empty() {
            write!(out, ": {}", self.field)?;
        }
        write!(out, ": {} ({})", self.reason, self.effect.as_str())
    }
}
