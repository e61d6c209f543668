//! The stand-in's objects: what a directory of files says, and what clients wrote.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Plural names of the kinds it serves, with their versions.
pub(super) const KINDS: [(&str, &str, &str); 9] = [
    ("Service", "v1", "services"),
    ("EndpointSlice", "discovery.k8s.io/v1", "endpointslices"),
    ("Node", "v1", "nodes"),
    ("Pod", "v1", "pods"),
    ("LoadBalancerPool", "portolan.dev/v1alpha1", "loadbalancerpools"),
    ("BGPPeer", "portolan.dev/v1alpha1", "bgppeers"),
    ("BGPAdvertisement", "portolan.dev/v1alpha1", "bgpadvertisements"),
    ("Lease", "coordination.k8s.io/v1", "leases"),
    ("Event", "events.k8s.io/v1", "events"),
];

/// Plural name, namespace and name.
pub(super) type Key = (String, String, String);

#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) version: u64,
    live: BTreeMap<Key, Value>,
    /// What the files said last.
    files: BTreeMap<Key, Value>,
    history: Vec<Change>,
    /// Everything that happened, whatever was forgotten.
    chronicle: Vec<Change>,
    /// What happened before is forgotten.
    oldest: u64,
    pub(super) lists: usize,
    uids: u64,
}

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The version that it made.
    pub version: u64,
    /// The plural name of the object's kind.
    pub plural: String,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub kind: &'static str,
    /// The object afterwards.
    pub object: Value,
}

/// Why a request is refused: the status of HTTP, the reason and the message.
pub(super) type Refused = (u16, &'static str, String);

impl Objects {
    pub(super) fn new() -> Self {
        Self { version: 1, ..Self::default() }
    }

    /// Makes these what the files say, as `kubectl apply` does: what clients wrote beside it stays.
    pub(super) fn take_in(&mut self, documents: &[Value]) {
        let wanted: BTreeMap<_, &Value> = documents.iter().filter_map(|it| Some((key(it)?, it))).collect();
        let gone: Vec<_> = self.files.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            self.files.remove(&key);
            self.delete(&key);
        }
        for (key, document) in wanted {
            let before = self.files.get(&key).cloned();
            if before.as_ref() == Some(document) {
                continue;
            }
            let mut object = self.live.get(&key).cloned().unwrap_or_else(|| json!({}));
            apply(before.as_ref().unwrap_or(&Value::Null), document, &mut object);
            self.put(&key, object);
            self.files.insert(key, document.clone());
        }
    }

    /// Deletes an object, or marks it as one to be deleted while it has finalizers.
    fn delete(&mut self, key: &Key) {
        let Some(object) = self.live.get(key).cloned() else { return };
        if has_finalizers(&object) {
            let mut object = object;
            object["metadata"]["deletionTimestamp"] = json!("2025-01-31T12:00:00Z");
            self.put(key, object);
        } else {
            self.live.remove(key);
            self.note(&key.0, "DELETED", object);
        }
    }

    /// Stores an object; as it is then.
    fn put(&mut self, key: &Key, mut object: Value) -> Value {
        let known = self.live.get(key);
        if known.map(without_version) == Some(without_version(&object)) {
            return object;
        }
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        if object["metadata"]["uid"].is_null() {
            self.uids += 1;
            object["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.uids));
        }
        if object["metadata"]["deletionTimestamp"].is_string() && !has_finalizers(&object) {
            self.live.remove(key);
            return self.note(&key.0, "DELETED", object);
        }
        let object = self.note(&key.0, kind, object);
        self.live.insert(key.clone(), object.clone());
        object
    }

    fn note(&mut self, plural: &str, kind: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let change =
            Change { version: self.version, plural: plural.to_owned(), kind, object: object.clone() };
        self.history.push(change.clone());
        self.chronicle.push(change);
        object
    }

    pub(super) fn get(&self, key: &Key) -> Result<Value, Refused> {
        let absent = || (404, "NotFound", format!("{} \"{}\" not found", key.0, key.2));
        self.live.get(key).cloned().ok_or_else(absent)
    }

    pub(super) fn create(&mut self, key: &Key, mut object: Value) -> Result<Value, Refused> {
        if self.live.contains_key(key) {
            return Err((409, "AlreadyExists", format!("{} \"{}\" already exists", key.0, key.2)));
        }
        if let Some((kind, version, _)) = KINDS.iter().find(|(.., plural)| *plural == key.0) {
            (object["kind"], object["apiVersion"]) = (json!(kind), json!(version));
        }
        if !key.1.is_empty() {
            object["metadata"]["namespace"] = json!(key.1);
        }
        Ok(self.put(key, object))
    }

    /// A JSON merge patch of an object, or of its status alone. A version or uid in it has to be the object's.
    pub(super) fn patch(&mut self, key: &Key, is_status: bool, patch: &Value) -> Result<Value, Refused> {
        let known = self.get(key)?;
        for field in ["resourceVersion", "uid"] {
            let asked = &patch["metadata"][field];
            if !asked.is_null() && *asked != known["metadata"][field] {
                let message = format!(
                    "Operation cannot be fulfilled on {} \"{}\": the object has been modified; please apply your changes to the \
                     latest version and try again",
                    key.0, key.2
                );
                return Err((409, "Conflict", message));
            }
        }
        let mut object = known.clone();
        merge(&mut object, patch);
        let (from, to) = if is_status { (&object, &known) } else { (&known, &object) };
        // Of either request the other part is not looked at.
        let mut merged = to.clone();
        if has_status(&key.0) {
            match from.get("status") {
                Some(status) => merged["status"] = status.clone(),
                None => drop(merged.as_object_mut().and_then(|fields| fields.remove("status"))),
            }
        }
        for field in ["resourceVersion", "uid", "name", "namespace", "deletionTimestamp"] {
            match known["metadata"].get(field) {
                Some(value) => merged["metadata"][field] = value.clone(),
                None => drop(merged["metadata"].as_object_mut().and_then(|it| it.remove(field))),
            }
        }
        Ok(self.put(key, merged))
    }

    /// Undoes what a client wrote into a status, as somebody with the rights may.
    pub(super) fn edit(&mut self, key: &Key, edit: impl FnOnce(&mut Value)) -> Result<Value, Refused> {
        let mut object = self.get(key)?;
        edit(&mut object);
        Ok(self.put(key, object))
    }

    pub(super) fn forget(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
    }

    pub(super) fn all(&self, plural: &str) -> Vec<Value> {
        self.live.iter().filter(|((of, ..), _)| of == plural).map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn chronicle(&self, plural: &str) -> Vec<Change> {
        self.chronicle.iter().filter(|change| change.plural == plural).cloned().collect()
    }

    pub(super) fn list(&mut self, kind: &str, api_version: &str, plural: &str) -> Value {
        self.lists += 1;
        // In a list, objects do not say what they are.
        let bare = self.all(plural).into_iter().map(|mut object| {
            if let Some(fields) = object.as_object_mut() {
                fields.remove("kind");
                fields.remove("apiVersion");
            }
            object
        });
        json!({
            "kind": format!("{kind}List"), "apiVersion": api_version,
            "metadata": {"resourceVersion": self.version.to_string()}, "items": bare.collect::<Vec<_>>(),
        })
    }

    /// Lines of a watch after `from`; `None` if that is forgotten.
    pub(super) fn since(&self, from: u64, plural: &str) -> Option<Vec<Value>> {
        if from < self.oldest {
            return None;
        }
        let new = self.history.iter().filter(|change| change.version > from && change.plural == plural);
        Some(new.map(|change| json!({"type": change.kind, "object": change.object})).collect())
    }
}

/// Kinds whose status is written apart.
fn has_status(plural: &str) -> bool {
    !matches!(plural, "leases" | "events")
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
}

fn key(document: &Value) -> Option<Key> {
    let kind = document["kind"].as_str()?;
    let (_, _, plural) = KINDS.into_iter().find(|(name, ..)| *name == kind)?;
    let text = |field: &str| document["metadata"][field].as_str().map(str::to_owned);
    Some((plural.to_owned(), text("namespace").unwrap_or_default(), text("name")?))
}

fn without_version(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    object
}

/// A JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(into) = target else { return };
    for (name, value) in fields {
        if value.is_null() {
            into.remove(name);
        } else {
            merge(into.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Brings an object from one version of a file to the next; what neither says stays.
fn apply(before: &Value, now: &Value, object: &mut Value) {
    let (Value::Object(wanted), Value::Object(into)) = (now, &mut *object) else {
        *object = now.clone();
        return;
    };
    for name in before.as_object().into_iter().flat_map(Map::keys) {
        if !wanted.contains_key(name) {
            into.remove(name);
        }
    }
    for (name, value) in wanted {
        let before = before.get(name).unwrap_or(&Value::Null);
        apply(before, value, into.entry(name.clone()).or_insert(Value::Null));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(spec: Value) -> Value {
        json!({"apiVersion": "portolan.dev/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": "p"}, "spec": spec})
    }

    fn key() -> Key {
        ("loadbalancerpools".to_owned(), String::new(), "p".to_owned())
    }

    #[test]
    fn a_status_that_was_written_stays_when_the_file_changes() {
        let mut objects = Objects::new();
        objects.take_in(&[pool(json!({"a": 1, "b": 2}))]);
        let patched = objects.patch(&key(), true, &json!({"status": {"x": 1}, "spec": {"a": 9}})).unwrap();
        assert_eq!((&patched["status"], &patched["spec"]["a"]), (&json!({"x": 1}), &json!(1)));
        objects.take_in(&[pool(json!({"a": 3}))]);
        let object = objects.get(&key()).unwrap();
        assert_eq!((&object["status"], &object["spec"]), (&json!({"x": 1}), &json!({"a": 3})));
    }

    #[test]
    fn a_patch_of_an_old_version_is_refused_and_one_that_changes_nothing_makes_none() {
        let mut objects = Objects::new();
        objects.take_in(&[pool(json!({}))]);
        let version = objects.get(&key()).unwrap()["metadata"]["resourceVersion"].clone();
        let patch = json!({"metadata": {"resourceVersion": version}, "status": {"x": 1}});
        let after = objects.patch(&key(), true, &patch).unwrap();
        assert_ne!(after["metadata"]["resourceVersion"], version);
        assert_eq!(objects.patch(&key(), true, &patch).unwrap_err().0, 409);
        let again = objects.patch(&key(), true, &json!({"status": {"x": 1}})).unwrap();
        assert_eq!(again["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    }

    #[test]
    fn an_object_with_finalizers_is_gone_when_the_last_one_is() {
        let mut objects = Objects::new();
        objects.take_in(&[pool(json!({}))]);
        objects.patch(&key(), false, &json!({"metadata": {"finalizers": ["a/b"]}})).unwrap();
        objects.take_in(&[]);
        assert!(objects.get(&key()).unwrap()["metadata"]["deletionTimestamp"].is_string());
        objects.patch(&key(), false, &json!({"metadata": {"finalizers": []}})).unwrap();
        assert_eq!(objects.get(&key()).unwrap_err().0, 404);
        let kinds: Vec<&str> = objects.chronicle(&key().0).iter().map(|change| change.kind).collect();
        assert_eq!(kinds, ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]);
    }
}
