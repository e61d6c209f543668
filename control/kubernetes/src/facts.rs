//! What a writer must know of an object beyond what it means.

use std::net::IpAddr;

use serde_json::Value;

/// The annotation that says which controller gave a service its finalizer: the controller's class.
pub const MANAGER_ANNOTATION: &str = "portolan.dev/load-balancer-manager";

/// An object as it is at the server. Read without judging: what is refused otherwise has facts all the same, because what
/// it was given has to stay its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// `metadata.uid`: another object of the same name has another.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// The value of [`MANAGER_ANNOTATION`].
    pub manager: Option<String>,
    /// `spec.type` is LoadBalancer.
    pub is_load_balancer: bool,
    /// `spec.loadBalancerClass`.
    pub class: Option<String>,
    /// `status`, or null.
    pub status: Value,
}

impl Facts {
    /// Reads them; `None` of what no API server sends: an object without uid or version.
    #[must_use]
    pub fn of(document: &Value) -> Option<Self> {
        let (metadata, spec) = (&document["metadata"], &document["spec"]);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let finalizers = metadata["finalizers"].as_array().into_iter().flatten();
        Some(Self {
            uid: text(&metadata["uid"])?,
            version: text(&metadata["resourceVersion"])?,
            deleting: metadata["deletionTimestamp"].is_string(),
            finalizers: finalizers.filter_map(text).collect(),
            manager: text(&metadata["annotations"][MANAGER_ANNOTATION]),
            is_load_balancer: spec["type"] == "LoadBalancer",
            class: text(&spec["loadBalancerClass"]).filter(|class| !class.is_empty()),
            status: document["status"].clone(),
        })
    }

    /// `status.loadBalancer.ingress`.
    #[must_use]
    pub fn ingress(&self) -> &[Value] {
        self.status["loadBalancer"]["ingress"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The addresses in `status.loadBalancer.ingress`, sorted.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.ingress().iter().filter_map(|entry| entry["ip"].as_str()?.parse().ok());
        let mut ips: Vec<IpAddr> = ips.collect();
        ips.sort_unstable();
        ips.dedup();
        ips
    }

    /// `status.conditions`.
    #[must_use]
    pub fn conditions(&self) -> &[Value] {
        self.status["conditions"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Whether these are older facts of the same object. Versions are compared as numbers, which they are (KEP-5504);
    /// such as are not never are older.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        let number = |version: &str| version.parse::<u128>().ok();
        let numbers = number(&self.version).zip(number(&other.version));
        self.uid == other.uid && numbers.is_some_and(|(this, that)| this < that)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn facts_are_read_of_a_service_as_the_api_server_shows_it() {
        let facts = Facts::of(&json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "76fd7b1b", "resourceVersion": "588",
                "deletionTimestamp": "2025-01-31T12:00:01Z", "finalizers": ["a/b"],
                "annotations": {MANAGER_ANNOTATION: "portolan.dev/lb"},
            },
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "portolan.dev/lb"},
            "status": {
                "loadBalancer": {"ingress": [{"ip": "198.51.100.7", "ipMode": "VIP"}, {"hostname": "x"}, {"ip": "nonsense"}]},
                "conditions": [{"type": "x"}],
            },
        }));
        let facts = facts.unwrap();
        assert_eq!((facts.uid.as_str(), facts.version.as_str()), ("76fd7b1b", "588"));
        assert!(facts.deleting && facts.is_load_balancer && facts.finalizers == ["a/b"]);
        assert_eq!(
            (facts.manager.as_deref(), facts.class.as_deref()),
            (Some("portolan.dev/lb"), Some("portolan.dev/lb"))
        );
        assert_eq!(facts.addresses(), ["198.51.100.7".parse::<IpAddr>().unwrap()]);
        assert_eq!((facts.ingress().len(), facts.conditions().len()), (3, 1));
    }

    #[test]
    fn whatever_a_document_holds_there_are_facts_or_none() {
        for document in [json!(null), json!([]), json!({"metadata": 7}), json!({"metadata": {"uid": 1}})] {
            assert_eq!(Facts::of(&document), None, "{document}");
        }
        let junk = json!({"metadata": {"uid": "u", "resourceVersion": "1", "finalizers": 7, "annotations": []}, "status": [1]});
        let facts = Facts::of(&junk).unwrap();
        assert!(facts.addresses().is_empty() && facts.conditions().is_empty() && facts.finalizers.is_empty());
    }

    #[test]
    fn versions_are_ordered_within_one_object() {
        let facts =
            |uid: &str, version: &str| Facts { uid: uid.into(), version: version.into(), ..Facts::default() };
        assert!(facts("a", "9").is_older_than(&facts("a", "10")));
        assert!(!facts("a", "10").is_older_than(&facts("a", "10")));
        assert!(!facts("a", "9").is_older_than(&facts("b", "10")));
        assert!(!facts("a", "x").is_older_than(&facts("a", "y")));
    }
}
