//! From what the API server tells to events, without any input or output.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use portolan_model::{Event, Invalid, Kind, ObjectKey, Refused, read, service_of};
use portolan_source::{Effect, Refusal};
use serde_json::Value;

use crate::facts::Facts;

/// What is watched, and what of it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The kinds.
    pub kinds: &'static [Kind],
    /// [`Facts`] of objects are told beside their events.
    pub facts: bool,
}

impl Interest {
    /// Of an agent: what is served, and what is announced.
    pub const AGENT: Self = Self {
        kinds: &[
            Kind::Service,
            Kind::EndpointSlice,
            Kind::Node,
            Kind::LoadBalancerPool,
            Kind::BgpPeer,
            Kind::BgpAdvertisement,
        ],
        facts: false,
    };
    /// Of the controller: who asks for addresses, which there are, and which nodes and pods have.
    pub const CONTROLLER: Self =
        Self { kinds: &[Kind::Service, Kind::Node, Kind::LoadBalancerPool], facts: true };
}

/// What was told about objects of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// A list begins: what is not in it does not exist any more.
    ListBegins,
    /// An object in the list, or one that is new or was changed.
    Object(Box<Value>),
    /// An object was deleted.
    Deleted(ObjectKey),
    /// The list is complete.
    ListEnds,
}

/// Everything that the API server told.
#[derive(Debug)]
pub struct State {
    interest: Interest,
    kinds: BTreeMap<Kind, OfKind>,
    facts: Vec<(ObjectKey, Option<Facts>)>,
}

/// One kind.
#[derive(Debug, Default)]
struct OfKind {
    objects: BTreeMap<ObjectKey, Known>,
    /// What the list that is being read has so far.
    listing: Option<BTreeSet<ObjectKey>>,
    /// A list was complete once.
    complete: bool,
}

/// One object.
#[derive(Debug, Default)]
struct Known {
    /// A good version was told to the reader.
    served: bool,
    refusals: Vec<Refusal>,
}

impl State {
    /// Nothing was told yet.
    #[must_use]
    pub const fn new(interest: Interest) -> Self {
        Self { interest, kinds: BTreeMap::new(), facts: Vec::new() }
    }

    /// Takes in what was told about objects of a kind by the server of this name; what follows for the reader.
    pub fn take_in(&mut self, kind: Kind, seen: Seen, server: &Arc<PathBuf>) -> Vec<Event> {
        let of_kind = self.kinds.entry(kind).or_default();
        match seen {
            Seen::ListBegins => {
                of_kind.listing = Some(BTreeSet::new());
                Vec::new()
            }
            Seen::Object(document) => {
                if self.interest.facts
                    && let Some(facts) = Facts::of(&document)
                {
                    self.facts.extend(named(kind, &document).map(|key| (key, Some(facts))));
                }
                of_kind.object(kind, &document, server).into_iter().collect()
            }
            Seen::Deleted(key) => {
                let event = of_kind.remove(&key);
                self.forget(key);
                event.into_iter().collect()
            }
            Seen::ListEnds => {
                let mut events = Vec::new();
                for key in of_kind.end_list() {
                    events.extend(of_kind.remove(&key));
                    if self.interest.facts {
                        self.facts.push((key, None));
                    }
                }
                events
            }
        }
    }

    fn forget(&mut self, key: ObjectKey) {
        if self.interest.facts {
            self.facts.push((key, None));
        }
    }

    /// Facts that are new since this was asked last, in their order; none: the object is gone. Empty unless facts are of
    /// [interest](Interest::facts).
    pub fn take_facts(&mut self) -> Vec<(ObjectKey, Option<Facts>)> {
        std::mem::take(&mut self.facts)
    }

    /// Whether every kind's list was complete once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.interest.kinds.iter().all(|kind| self.kinds.get(kind).is_some_and(|it| it.complete))
    }

    /// Everything that is refused now.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusal> {
        let objects = self.kinds.values().flat_map(|kind| kind.objects.values());
        objects.flat_map(|known| known.refusals.iter().cloned()).collect()
    }
}

impl OfKind {
    fn object(&mut self, kind: Kind, document: &Value, server: &Arc<PathBuf>) -> Option<Event> {
        let refusal = |object: &ObjectKey, invalid: &Invalid, effect| Refusal {
            file: Arc::clone(server),
            line: 0,
            object: Some(object.clone()),
            service: service_of(object, document),
            field: invalid.field.clone(),
            reason: format!("expected {}, found {}", invalid.expected, invalid.found),
            effect,
        };
        match read(document) {
            Ok(Some(reading)) => {
                let key = reading.object.key();
                let rest = |invalid| refusal(&key, invalid, Effect::RestServed);
                let refusals = reading.warnings.iter().map(rest).collect();
                self.note(key, Known { served: true, refusals });
                Some(Event::Upsert(reading.object))
            }
            // The server was asked for this kind alone.
            Ok(None) => None,
            Err(Refused { key, invalid }) => {
                let key = key.or_else(|| named(kind, document))?;
                let served = self.objects.get(&key).is_some_and(|known| known.served);
                let effect = if served { Effect::LastGoodServed } else { Effect::NotServed };
                let refusals = vec![refusal(&key, &invalid, effect)];
                self.note(key, Known { served, refusals });
                None
            }
        }
    }

    fn note(&mut self, key: ObjectKey, known: Known) {
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        }
        self.objects.insert(key, known);
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Event> {
        let known = self.objects.remove(key)?;
        known.served.then(|| Event::Delete(key.clone()))
    }

    /// What was known before and is not in the list was deleted while nobody watched.
    fn end_list(&mut self) -> Vec<ObjectKey> {
        self.complete = true;
        let Some(listed) = self.listing.take() else { return Vec::new() };
        self.objects.keys().filter(|key| !listed.contains(key)).cloned().collect()
    }
}

/// The object's name, where nothing else of it is good.
fn named(kind: Kind, document: &Value) -> Option<ObjectKey> {
    let text = |field: &str| document["metadata"][field].as_str();
    Some(ObjectKey::new(kind, text("namespace").unwrap_or_default(), text("name")?))
}

#[cfg(test)]
mod tests {
    use portolan_model::Object;
    use serde_json::json;

    use super::*;

    const SERVED: Interest =
        Interest { kinds: &[Kind::Service, Kind::EndpointSlice, Kind::Node], facts: false };

    fn server() -> Arc<PathBuf> {
        Arc::new("https://192.0.2.1:6443".into())
    }

    fn node(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    }

    fn service(name: &str, port: i64) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": port}]},
        })
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(Kind::Service, "shop", name)
    }

    impl State {
        fn list(&mut self, kind: Kind, documents: &[Value]) -> Vec<Event> {
            let objects = documents.iter().map(|document| Seen::Object(Box::new(document.clone())));
            let told = [Seen::ListBegins].into_iter().chain(objects).chain([Seen::ListEnds]);
            told.flat_map(|seen| self.take_in(kind, seen, &server())).collect()
        }
    }

    fn names(events: &[Event]) -> Vec<String> {
        events
            .iter()
            .map(|event| match event {
                Event::Upsert(object) => format!("+{}", object.key().name()),
                Event::Delete(key) => format!("-{}", key.name()),
            })
            .collect()
    }

    #[test]
    fn a_state_is_complete_when_every_kind_was_listed_once() {
        let mut state = State::new(SERVED);
        for kind in SERVED.kinds.iter().copied() {
            assert!(!state.is_complete(), "{kind:?} is missing");
            state.list(kind, &[]);
        }
        assert!(state.is_complete());
        state.take_in(Kind::Node, Seen::ListBegins, &server());
        assert!(state.is_complete(), "a list that is read again takes nothing away");
    }

    #[test]
    fn what_a_second_list_lacks_was_deleted() {
        let mut state = State::new(SERVED);
        assert_eq!(names(&state.list(Kind::Service, &[service("a", 1), service("b", 2)])), ["+a", "+b"]);
        assert_eq!(names(&state.list(Kind::Service, &[service("b", 3)])), ["+b", "-a"]);
        assert_eq!(names(&state.list(Kind::Node, &[node("n")])), ["+n"], "other kinds are not concerned");
        assert_eq!(state.list(Kind::Service, &[]), [Event::Delete(key("b"))]);
    }

    #[test]
    fn what_was_deleted_during_a_list_is_told_once() {
        let mut state = State::new(SERVED);
        state.list(Kind::Service, &[service("a", 1)]);
        let deleted = || Seen::Deleted(key("a"));
        assert_eq!(state.take_in(Kind::Service, deleted(), &server()), [Event::Delete(key("a"))]);
        assert_eq!(state.take_in(Kind::Service, deleted(), &server()), []);
        assert_eq!(state.list(Kind::Service, &[]), []);
    }

    #[test]
    fn a_bad_version_is_refused_with_its_field_and_the_last_good_one_stays() {
        let mut state = State::new(SERVED);
        state.list(Kind::Service, &[service("a", 1)]);
        let bad = Seen::Object(Box::new(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"clusterIP": 7},
        })));
        assert_eq!(state.take_in(Kind::Service, bad, &server()), []);
        let refusals = state.refusals();
        assert_eq!(refusals.len(), 1);
        assert_eq!(
            (refusals[0].field.as_str(), refusals[0].effect),
            ("spec.clusterIP", Effect::LastGoodServed)
        );
        assert!(
            refusals[0].to_string().starts_with("https://192.0.2.1:6443: Service shop/a"),
            "{}",
            refusals[0]
        );

        let good = Seen::Object(Box::new(service("a", 9)));
        let events = state.take_in(Kind::Service, good, &server());
        assert!(matches!(&events[..], [Event::Upsert(Object::Service(_))]), "{events:?}");
        assert_eq!(state.refusals(), []);
        assert_eq!(state.list(Kind::Service, &[]), [Event::Delete(key("a"))]);
    }

    #[test]
    fn an_object_that_was_never_good_is_neither_served_nor_deleted() {
        let mut state = State::new(SERVED);
        let bad = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "shop"}, "spec": 1});
        assert_eq!(state.list(Kind::Service, &[bad]), []);
        assert_eq!(state.refusals()[0].effect, Effect::NotServed);
        assert_eq!(state.list(Kind::Service, &[]), []);
        assert_eq!(state.refusals(), []);
    }

    #[test]
    fn facts_are_told_of_whatever_exists_also_if_it_is_refused() {
        let mut state = State::new(Interest::CONTROLLER);
        let mut bad = service("a", 0);
        bad["spec"]["clusterIP"] = json!(7);
        bad["metadata"]["uid"] = json!("u1");
        bad["metadata"]["resourceVersion"] = json!("5");
        assert_eq!(state.list(Kind::Service, &[bad]), []);
        let facts = state.take_facts();
        assert!(
            matches!(&facts[..], [(of, Some(facts))] if *of == key("a") && facts.uid == "u1"),
            "{facts:?}"
        );
        assert_eq!(state.list(Kind::Service, &[]), []);
        assert_eq!(state.take_facts(), [(key("a"), None)]);
        state.take_in(Kind::Service, Seen::Deleted(key("b")), &server());
        assert_eq!(state.take_facts(), [(key("b"), None)]);
    }
}
