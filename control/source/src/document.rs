//! One file: its documents, the objects they define, and what is wrong with them.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use portolan_model::{Invalid, Kind, Object, ObjectKey, Refused, ServiceKey, read, service_of};
use serde_json::Value;

use crate::yaml::{self, Document, Node, NodeKind, SyntaxError};
use crate::{Effect, Refusal};

/// What one file says.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    /// The objects that its documents define, in their order.
    pub(crate) claims: Vec<Claim>,
    /// Problems of documents that do not tell which object they are. Any object of this file may be meant.
    pub(crate) nameless: Vec<Problem>,
    /// Parts of good objects that were left out, with the service that the object is about.
    pub(crate) warnings: Vec<(ObjectKey, Option<ServiceKey>, Problem)>,
}

/// A document that defines an object.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) key: ObjectKey,
    /// The service that the object is about.
    pub(crate) service: Option<ServiceKey>,
    /// Where the object begins.
    pub(crate) line: u32,
    /// The object, or why it is refused.
    pub(crate) content: Result<Arc<Object>, Problem>,
}

/// Where and why.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) line: u32,
    pub(crate) field: String,
    pub(crate) reason: String,
}

impl Problem {
    /// A problem with the file as a whole.
    pub(crate) fn file(reason: impl Into<String>) -> Self {
        Self { line: 0, field: String::new(), reason: reason.into() }
    }

    pub(crate) fn refusal(&self, file: &Arc<PathBuf>, object: Option<ObjectKey>, effect: Effect) -> Refusal {
        let Self { line, field, reason } = self.clone();
        Refusal { file: file.clone(), line, object, service: None, field, reason, effect }
    }

    fn syntax(error: SyntaxError, lines_before: u32) -> Self {
        Self { line: error.line + lines_before, field: String::new(), reason: error.reason }
    }

    fn invalid(invalid: Invalid, object: &Node, lines_before: u32) -> Self {
        let Invalid { field, expected, found } = invalid;
        let line = object.line_at(&field) + lines_before;
        Self { line, field, reason: format!("expected {expected}, found {found}") }
    }
}

impl Parsed {
    /// A file of which nothing could be read.
    pub(crate) fn unreadable(problem: Problem) -> Self {
        Self { nameless: vec![problem], ..Self::default() }
    }

    /// Reads every document of a file. A bad one costs only itself.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let before = &bytes[..error.valid_up_to()];
                let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
                let line = u32::try_from(line).unwrap_or(u32::MAX);
                let reason = "not UTF-8 text".to_owned();
                return Self::unreadable(Problem { line, field: String::new(), reason });
            }
        };
        let mut parsed = Self::default();
        for (text, lines_before) in split(text) {
            parsed.document(text, lines_before);
        }
        parsed
    }

    fn document(&mut self, text: &str, lines_before: u32) {
        match yaml::parse(text) {
            Ok(None) => {}
            Ok(Some(document)) => match list_items(&document.root) {
                // Only one level: lists of lists of aliases could be walked for ever.
                Some((items, kind)) => {
                    items.iter().for_each(|item| self.object(&document, item, kind, lines_before));
                }
                None => self.object(&document, &document.root, None, lines_before),
            },
            Err(error) => self.nameless.push(Problem::syntax(error, lines_before)),
        }
    }

    /// Reads an object. `kind` is what it is if it does not say so itself.
    fn object(&mut self, document: &Document, node: &Node, kind: Option<Kind>, lines_before: u32) {
        let value = match document.value(node) {
            Ok(value) => with_kind(value, kind),
            Err(error) => return self.nameless.push(Problem::syntax(error, lines_before)),
        };
        match read(&value) {
            Ok(Some(reading)) => {
                let key = reading.object.key();
                let service = service_of(&key, &value);
                self.warnings.extend(reading.warnings.into_iter().map(|invalid| {
                    (key.clone(), service.clone(), Problem::invalid(invalid, node, lines_before))
                }));
                let line = node.line + lines_before;
                self.claims.push(Claim { key, service, line, content: Ok(Arc::new(reading.object)) });
            }
            Ok(None) => {
                let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
                tracing::debug!(kind, line = node.line + lines_before, "ignoring a document of another kind");
            }
            Err(Refused { key, invalid }) => {
                let problem = Problem::invalid(invalid, node, lines_before);
                match key {
                    Some(key) => {
                        let line = node.line + lines_before;
                        let service = service_of(&key, &value);
                        self.claims.push(Claim { key, service, line, content: Err(problem) });
                    }
                    None => self.nameless.push(problem),
                }
            }
        }
    }
}

/// The items of `kind: List` or of a list of one of our kinds, like `ServiceList`.
fn list_items(node: &Node) -> Option<(&[Rc<Node>], Option<Kind>)> {
    let item_kind = node.text("kind")?.strip_suffix("List")?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == item_kind);
    if kind.is_none() && !item_kind.is_empty() {
        return None;
    }
    match &node.get("items")?.kind {
        NodeKind::List(items) => Some((items, kind)),
        NodeKind::Scalar(Value::Null) => Some((&[], kind)),
        NodeKind::Scalar(_) | NodeKind::Map(_) => None,
    }
}

/// The API leaves `kind` and `apiVersion` out of the items of typed lists.
fn with_kind(mut value: Value, kind: Option<Kind>) -> Value {
    if let (Some(kind), Value::Object(fields)) = (kind, &mut value) {
        fields.entry("kind").or_insert_with(|| kind.as_str().into());
        fields.entry("apiVersion").or_insert_with(|| kind.api_version().into());
    }
    value
}

/// The documents of a text, each with the number of lines before it.
///
/// Split by lines, as `kubectl` does, and not by the parser: a syntax error then costs one document instead of
/// all that follow. YAML reserves `---` and `...` at the start of a line for this.
fn split(text: &str) -> Vec<(&str, u32)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut at, mut line) = (0, 0);
    for full in text.split_inclusive('\n') {
        if is_marker(full, "---") || is_marker(full, "...") {
            documents.push((&text[start..at], start_line));
            // A document may begin on the line of its marker, so the marker stays with it. That of an end does not.
            let skip = if full.starts_with('.') { full.len() } else { 0 };
            (start, start_line) = (at + skip, line + u32::from(skip > 0));
        }
        at += full.len();
        line += 1;
    }
    documents.push((&text[start..], start_line));
    documents.retain(|(text, _)| !is_blank(text));
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Only comments, directives and white space.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line == "---" || line.starts_with('#') || line.starts_with('%')
    })
}
