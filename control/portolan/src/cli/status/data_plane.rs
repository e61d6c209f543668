//! What is in place while no agent answers, read from the pins.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use portolan_abi::counter;
use portolan_node::{Tables, maps};
use serde::Serialize;

use super::super::text::{BAD, GOOD, WARN, clean, count, join, paint};
use super::{AskError, entry};

/// The data plane without its agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DataPlane {
    /// Always false; tells this from the agent's own answer, which does not have it.
    pub(super) agent_answers: bool,
    /// Why there is no answer, and what to do.
    pub(super) reason: String,
    /// Directory of the pins.
    pub(super) pins: PathBuf,
    /// Pinned links of programs: `interface-direction`. Attachments by clsact have none.
    pub(super) links: Vec<String>,
    /// Tables that are pinned.
    pub(super) tables: Vec<String>,
    /// Tables that should be pinned and are not.
    pub(super) missing_tables: Vec<String>,
    /// Packets that went on.
    pub(super) forwarded: u64,
    /// Packets that were dropped or rejected.
    pub(super) dropped: u64,
    /// Packets by outcome.
    pub(super) packets: BTreeMap<String, u64>,
    /// What could not be read.
    pub(super) errors: Vec<String>,
}

impl DataPlane {
    /// Reads the pins. What cannot be read is among the errors.
    pub(super) fn read(pins: &Path, reason: &AskError) -> Self {
        let mut errors = Vec::new();
        let pinned = names(pins, &mut errors);
        let (tables, missing_tables) = maps::name::all().partition(|name| pinned.contains(name));
        let links = names(&pins.join("links"), &mut errors);
        let mut view = Self {
            agent_answers: false,
            reason: reason.to_string(),
            pins: pins.to_owned(),
            links,
            tables,
            missing_tables,
            forwarded: 0,
            dropped: 0,
            packets: BTreeMap::new(),
            errors,
        };
        if view.missing_tables.is_empty() {
            match Tables::open(pins).and_then(|tables| tables.counters()) {
                Ok(packets) => view.count(&packets),
                Err(error) => view.errors.push(format!("{:#}", anyhow::Error::from(error))),
            }
        }
        view
    }

    /// Takes in the counters, in the order of [`counter::ALL`].
    pub(super) fn count(&mut self, packets: &[u64]) {
        for (outcome, packets) in counter::ALL.iter().zip(packets) {
            *(if outcome.is_drop() { &mut self.dropped } else { &mut self.forwarded }) += packets;
            self.packets.insert(outcome.name.to_owned(), *packets);
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = entry("Agent", &paint(&clean(&self.reason), BAD));
        text.push_str(&entry("Data plane", &self.state()));
        text.push_str(&entry("Links", &self.links()));
        let all = self.tables.len() + self.missing_tables.len();
        let missing = match self.missing_tables.as_slice() {
            [] => String::new(),
            missing if self.tables.is_empty() && !missing.is_empty() => String::new(),
            missing => format!("; missing: {}", join(missing)),
        };
        let tables = format!("{} of {all} pinned in {}{missing}", self.tables.len(), self.pins.display());
        text.push_str(&entry("Tables", &clean(&tables)));
        if !self.packets.is_empty() {
            let packets = format!(
                "{} went on, {} dropped (`portolan drop list` says why)",
                self.forwarded, self.dropped
            );
            text.push_str(&entry("Packets", &packets));
        }
        for error in &self.errors {
            text.push_str(&entry("Error", &paint(&clean(error), BAD)));
        }
        text
    }

    fn state(&self) -> String {
        if !self.errors.is_empty() {
            return paint("not all of it could be read", WARN);
        }
        match (self.tables.len(), self.missing_tables.len()) {
            (0, _) => paint("not there: no agent has run on this node with this version's tables", BAD),
            (_, 0) => paint("in place: what is set up goes on without the agent", GOOD),
            _ => paint("incomplete: starting the agent makes what is missing", BAD),
        }
    }

    fn links(&self) -> String {
        if self.links.is_empty() {
            return "none pinned (attachments by clsact leave none)".to_owned();
        }
        clean(&format!("{} of programs pinned: {}", count(self.links.len(), "link"), join(&self.links)))
    }
}

/// Names of the files in a directory, sorted; none if it does not exist.
fn names(directory: &Path, errors: &mut Vec<String>) -> Vec<String> {
    let read = || -> io::Result<Vec<String>> {
        let entries: io::Result<Vec<_>> = std::fs::read_dir(directory)?.collect();
        Ok(entries?.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    };
    match read() {
        Ok(mut names) => {
            names.sort();
            names
        }
        Err(error) => {
            match error.kind() {
                io::ErrorKind::NotFound => {}
                io::ErrorKind::PermissionDenied => {
                    errors.push(format!("reading {}: run this as root", directory.display()));
                }
                _ => errors.push(format!("reading {}: {error}", directory.display())),
            }
            Vec::new()
        }
    }
}
