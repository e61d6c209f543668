//! YAML documents as trees whose every node knows its line.
//!
//! The tree is built from the parser's events by hand because the usual serde bridges lose lines once a value is
//! validated, and expand aliases without a bound: here an alias shares its node, and copying for the reader is
//! limited ([`COPIES_MAX`]).

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Number, Value};

/// Deepest nesting. A Kubernetes object has about ten levels; recursion over the tree stays shallow.
const DEPTH_MAX: u16 = 64;

/// How many nodes aliases may add to a document. A manifest uses a handful of aliases of a few nodes each; ten
/// nested lists of ten aliases would make ten thousand million nodes out of one line each.
const COPIES_MAX: usize = 100_000;

/// What is wrong with a document's syntax.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub(crate) struct SyntaxError {
    /// Line in the text that was parsed, from 1.
    pub(crate) line: u32,
    /// In words.
    pub(crate) reason: String,
}

/// One document.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) root: Rc<Node>,
    /// How many nodes may still be copied.
    left: Cell<usize>,
}

/// A value, where it begins, and how deep it is.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) line: u32,
    depth: u16,
    pub(crate) kind: NodeKind,
}

#[derive(Debug)]
pub(crate) enum NodeKind {
    Scalar(Value),
    List(Vec<Rc<Node>>),
    /// Sorted by name; names are unique.
    Map(Vec<Field>),
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    name: String,
    line: u32,
    value: Rc<Node>,
}

/// Parses one document; `None` if it is empty or holds only comments.
pub(crate) fn parse(text: &str) -> Result<Option<Document>, SyntaxError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| SyntaxError {
            line: line_of(error.marker().line()),
            reason: format!("not YAML: {}", error.info()),
        })?;
        builder.take(event, span)?;
    }
    let left = Cell::new(builder.nodes + COPIES_MAX);
    let root = builder.root.filter(|root| !matches!(root.kind, NodeKind::Scalar(Value::Null)));
    Ok(root.map(|root| Document { root, left }))
}

impl Document {
    /// Copies a node of this document, with all aliases written out. Each node is meant to be copied once.
    ///
    /// # Errors
    /// All copies together have [`COPIES_MAX`] nodes more than the text.
    pub(crate) fn value(&self, node: &Node) -> Result<Value, SyntaxError> {
        copy(node, &self.left).ok_or_else(|| too_many_copies(node.line))
    }
}

impl Node {
    /// The value of a field, if this is a map that has it.
    pub(crate) fn get(&self, name: &str) -> Option<&Rc<Node>> {
        let NodeKind::Map(fields) = &self.kind else { return None };
        let at = fields.binary_search_by(|field| field.name.as_str().cmp(name)).ok()?;
        Some(&fields[at].value)
    }

    /// The text of a field, if this is a map in which it is text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match &self.get(name)?.kind {
            NodeKind::Scalar(Value::String(text)) => Some(text),
            NodeKind::Scalar(_) | NodeKind::List(_) | NodeKind::Map(_) => None,
        }
    }

    /// The line of the field at a path like `spec.ports[1].port`, or of its nearest parent that is there.
    pub(crate) fn line_at(&self, path: &str) -> u32 {
        let mut here = (self, self.line);
        let mut rest = path;
        while let Some((next, after)) = here.0.step(rest) {
            (here, rest) = (next, after);
        }
        here.1
    }

    /// One step along a path: the node, the line where it is named, and the rest of the path.
    fn step<'n, 'p>(&'n self, path: &'p str) -> Option<((&'n Node, u32), &'p str)> {
        match &self.kind {
            NodeKind::Scalar(_) => None,
            NodeKind::List(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some(((item, item.line), rest.strip_prefix('.').unwrap_or(rest)))
            }
            // Names may contain dots (labels do), so the longest that fits is meant.
            NodeKind::Map(fields) => fields
                .iter()
                .filter_map(|field| Some((field, field.rest_of(path)?)))
                .max_by_key(|(field, _)| field.name.len())
                .map(|(field, rest)| ((&*field.value, field.line), rest)),
        }
    }
}

impl Field {
    /// What follows this field's name in a path that begins with it: `name.rest`, `name[0]` or `[name]rest`.
    fn rest_of<'p>(&self, path: &'p str) -> Option<&'p str> {
        if let Some(bracketed) = path.strip_prefix('[') {
            return bracketed.strip_prefix(self.name.as_str())?.strip_prefix(']');
        }
        let rest = path.strip_prefix(self.name.as_str())?;
        if rest.is_empty() || rest.starts_with('[') { Some(rest) } else { rest.strip_prefix('.') }
    }
}

fn copy(node: &Node, left: &Cell<usize>) -> Option<Value> {
    left.set(left.get().checked_sub(1)?);
    Some(match &node.kind {
        NodeKind::Scalar(value) => value.clone(),
        NodeKind::List(items) => {
            Value::Array(items.iter().map(|item| copy(item, left)).collect::<Option<_>>()?)
        }
        NodeKind::Map(fields) => {
            let copied = fields.iter().map(|field| Some((field.name.clone(), copy(&field.value, left)?)));
            Value::Object(copied.collect::<Option<Map<_, _>>>()?)
        }
    })
}

/// Takes events in and keeps the collections that are still open.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
    nodes: usize,
    /// How many fields `<<` has copied.
    merged: usize,
}

struct Open {
    line: u32,
    anchor: usize,
    content: OpenContent,
}

enum OpenContent {
    List(Vec<Rc<Node>>),
    Map { fields: Vec<Field>, name: Option<(String, u32)>, merged: Vec<Field> },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let line = line_of(span.start.line());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref());
                self.add(Node { line, depth: 1, kind: NodeKind::Scalar(value) }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(line, anchor, OpenContent::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                let content = OpenContent::Map { fields: Vec::new(), name: None, merged: Vec::new() };
                self.open(line, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.put(node, line),
                None => Err(SyntaxError { line, reason: "an alias stands inside its own anchor".into() }),
            },
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(SyntaxError { line, reason: "a second document begins without a line ---".into() })
            }
            Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::StreamStart
            | Event::StreamEnd
            | Event::Nothing => Ok(()),
        }
    }

    fn open(&mut self, line: u32, anchor: usize, content: OpenContent) -> Result<(), SyntaxError> {
        if self.open.len() >= usize::from(DEPTH_MAX) {
            return Err(too_deep(line));
        }
        self.open.push(Open { line, anchor, content });
        Ok(())
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        // The parser's events are balanced.
        let Some(Open { line, anchor, content }) = self.open.pop() else { return Ok(()) };
        let (depth, kind) = match content {
            OpenContent::List(items) => (deepest(items.iter()), NodeKind::List(items)),
            OpenContent::Map { fields, merged, .. } => {
                let fields = unique(fields, merged)?;
                (deepest(fields.iter().map(|field| &field.value)), NodeKind::Map(fields))
            }
        };
        if depth >= DEPTH_MAX {
            return Err(too_deep(line));
        }
        self.add(Node { line, depth: depth + 1, kind }, anchor)
    }

    /// Takes a new node in; an anchor of 0 means none.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        let line = node.line;
        let node = Rc::new(node);
        self.nodes += 1;
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.put(node, line)
    }

    /// Puts a node where the innermost open collection waits for one.
    fn put(&mut self, node: Rc<Node>, line: u32) -> Result<(), SyntaxError> {
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(OpenContent::List(items)) => items.push(node),
            Some(OpenContent::Map { fields, name, merged }) => match name.take() {
                None => *name = Some((field_name(&node, line)?, line)),
                Some((name, line)) if name == "<<" => merge(&node, merged, line, &mut self.merged)?,
                Some((name, line)) => fields.push(Field { name, line, value: node }),
            },
        }
        Ok(())
    }
}

fn field_name(node: &Node, line: u32) -> Result<String, SyntaxError> {
    match &node.kind {
        NodeKind::Scalar(Value::String(name)) => Ok(name.clone()),
        NodeKind::Scalar(other) => Ok(other.to_string()),
        NodeKind::List(_) | NodeKind::Map(_) => {
            Err(SyntaxError { line, reason: "a field's name is not text".into() })
        }
    }
}

/// `<<: *anchor` takes over the fields of a map, or of each map in a list.
fn merge(node: &Node, merged: &mut Vec<Field>, line: u32, copied: &mut usize) -> Result<(), SyntaxError> {
    match &node.kind {
        NodeKind::Map(fields) => {
            *copied += fields.len();
            if *copied > COPIES_MAX {
                return Err(too_many_copies(line));
            }
            merged.extend(fields.iter().cloned());
            Ok(())
        }
        NodeKind::List(items) if items.iter().all(|item| matches!(item.kind, NodeKind::Map(_))) => {
            items.iter().try_for_each(|item| merge(item, merged, line, copied))
        }
        NodeKind::List(_) | NodeKind::Scalar(_) => {
            Err(SyntaxError { line, reason: "<< needs fields or a list of fields".into() })
        }
    }
}

/// A map's own fields, which must differ, and those of `<<` that are not among them; the first mention counts.
fn unique(mut own: Vec<Field>, merged: Vec<Field>) -> Result<Vec<Field>, SyntaxError> {
    own.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some([first, second]) = own.array_windows().find(|[a, b]| a.name == b.name) {
        let reason = format!("field {:?} is there twice, first in line {}", first.name, first.line);
        return Err(SyntaxError { line: second.line, reason });
    }
    if !merged.is_empty() {
        own.extend(merged);
        own.sort_by(|a, b| a.name.cmp(&b.name));
        own.dedup_by(|later, first| later.name == first.name);
    }
    Ok(own)
}

fn deepest<'n>(nodes: impl Iterator<Item = &'n Rc<Node>>) -> u16 {
    nodes.map(|node| node.depth).max().unwrap_or(0)
}

fn too_many_copies(line: u32) -> SyntaxError {
    let reason = format!("aliases add more than {COPIES_MAX} values; write the document without them");
    SyntaxError { line, reason }
}

fn too_deep(line: u32) -> SyntaxError {
    SyntaxError { line, reason: format!("nested deeper than {DEPTH_MAX} levels") }
}

fn line_of(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

/// The YAML 1.2 core schema: what is quoted or tagged `!!str` is text.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let tagged_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
    if style != ScalarStyle::Plain || tagged_text {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let numeric = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.');
    if !text.starts_with(numeric) {
        return None;
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok().map(Number::from);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return i64::from_str_radix(octal, 8).ok().map(Number::from);
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Some(Number::from(whole));
    }
    let decimal = text.contains(|c: char| c.is_ascii_digit()) && !text.contains(['i', 'n', 'I', 'N']);
    decimal.then(|| text.parse::<f64>().ok().and_then(Number::from_f64)).flatten()
}

#[cfg(test)]
mod tests;
