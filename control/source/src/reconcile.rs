//! From the files as they are to the objects that should be served: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use portolan_model::{Event, Object, ObjectKey};

use crate::document::{Claim, Parsed, Problem};
use crate::{Effect, Refusal};

/// One file as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// As it was in the last state: it need not be read again.
    Unchanged,
    /// It is there but cannot be read, for this reason. Its objects keep serving.
    Unreadable(String),
}

/// What the files said and which objects are served.
#[derive(Debug, Default)]
pub struct State {
    files: BTreeMap<Arc<PathBuf>, Parsed>,
    served: BTreeMap<ObjectKey, Served>,
}

#[derive(Clone, Debug)]
struct Served {
    object: Arc<Object>,
    file: Arc<PathBuf>,
    /// Where its document began when it was last good.
    line: u32,
}

/// The next state and what leads to it.
#[derive(Debug)]
pub struct Outcome {
    /// The state to reconcile with next time.
    pub state: State,
    /// What changed, deletions first, each by key.
    pub events: Vec<Event>,
    /// Everything that is refused now, by file and line.
    pub refusals: Vec<Refusal>,
}

/// Takes the complete list of files in and tells what should change.
///
/// The first file by name that defines an object owns it. An object whose document went bad keeps its last good
/// version; where a bad document does not tell which object it is, every object keeps serving that the file
/// defined before and no longer does. An object is deleted only when its document is really gone.
pub fn reconcile(previous: State, files: Vec<(PathBuf, Content)>) -> Outcome {
    let State { files: mut parsed_before, served: before } = previous;
    let mut parsed: BTreeMap<Arc<PathBuf>, Parsed> = BTreeMap::new();
    for (path, content) in files {
        let known = parsed_before.remove_entry(&path);
        let current = match content {
            Content::Bytes(bytes) => Some(Parsed::of(&bytes)),
            Content::Unreadable(reason) => Some(Parsed::unreadable(Problem::file(reason))),
            Content::Unchanged => None,
        };
        let (path, known) = known.map_or_else(|| (Arc::new(path), None), |(path, known)| (path, Some(known)));
        parsed.insert(path, current.or(known).unwrap_or_default());
    }
    let mut merge = Merge { before: &before, served: BTreeMap::new(), refusals: Vec::new() };
    for (path, file) in &parsed {
        merge.file(path, file);
    }
    let Merge { served, mut refusals, .. } = merge;
    refusals.sort();
    let events = difference(&before, &served);
    Outcome { state: State { files: parsed, served }, events, refusals }
}

struct Merge<'a> {
    before: &'a BTreeMap<ObjectKey, Served>,
    served: BTreeMap<ObjectKey, Served>,
    refusals: Vec<Refusal>,
}

impl Merge<'_> {
    fn file(&mut self, path: &Arc<PathBuf>, file: &Parsed) {
        for claim in &file.claims {
            self.claim(path, claim);
        }
        let kept = if file.nameless.is_empty() { 0 } else { self.keep_all_of(path, file) };
        let effect = if kept > 0 { Effect::LastGoodServed } else { Effect::NotServed };
        self.refusals.extend(file.nameless.iter().map(|problem| problem.refusal(path, None, effect)));
        for (key, service, problem) in &file.warnings {
            if self.served.get(key).is_some_and(|served| served.file == *path) {
                let refusal = problem.refusal(path, Some(key.clone()), Effect::RestServed);
                self.refusals.push(Refusal { service: service.clone(), ..refusal });
            }
        }
    }

    fn claim(&mut self, path: &Arc<PathBuf>, claim: &Claim) {
        let refusal = |problem: &Problem, effect| Refusal {
            service: claim.service.clone(),
            ..problem.refusal(path, Some(claim.key.clone()), effect)
        };
        if let Some(owner) = self.served.get(&claim.key) {
            let reason =
                format!("{}:{} already defines it; remove one of them", owner.file.display(), owner.line);
            let problem = Problem { line: claim.line, field: String::new(), reason };
            self.refusals.push(refusal(&problem, Effect::OtherServed));
            return;
        }
        let object = match &claim.content {
            Ok(object) => object.clone(),
            Err(problem) => {
                let last_good = self.before.get(&claim.key);
                let effect = if last_good.is_some() { Effect::LastGoodServed } else { Effect::NotServed };
                self.refusals.push(refusal(problem, effect));
                let Some(last_good) = last_good else { return };
                last_good.object.clone()
            }
        };
        self.served.insert(claim.key.clone(), Served { object, file: path.clone(), line: claim.line });
    }

    /// Keeps what a file defined before and does not now, and tells how many objects that are.
    fn keep_all_of(&mut self, path: &Arc<PathBuf>, file: &Parsed) -> usize {
        let claimed: BTreeSet<&ObjectKey> = file.claims.iter().map(|claim| &claim.key).collect();
        let mut kept = 0;
        for (key, served) in self.before.iter().filter(|(_, served)| served.file == *path) {
            if !claimed.contains(key) && !self.served.contains_key(key) {
                self.served.insert(key.clone(), served.clone());
                kept += 1;
            }
        }
        kept
    }
}

fn difference(before: &BTreeMap<ObjectKey, Served>, now: &BTreeMap<ObjectKey, Served>) -> Vec<Event> {
    let gone = before.keys().filter(|key| !now.contains_key(key)).cloned().map(Event::Delete);
    let changed = now.iter().filter(|(key, served)| {
        !before
            .get(key)
            .is_some_and(|last| Arc::ptr_eq(&last.object, &served.object) || last.object == served.object)
    });
    gone.chain(changed.map(|(_, served)| Event::Upsert((*served.object).clone()))).collect()
}

#[cfg(test)]
mod tests;
