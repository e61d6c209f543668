//! What is written into objects, as JSON merge patches (RFC 7386): pure.

use std::net::IpAddr;

use portolan_kubernetes::{Facts, MANAGER_ANNOTATION};
use portolan_model::StatusCondition;
use portolan_pool::{Condition, PoolReport};
use serde_json::{Value, json};

use crate::controller::state;

/// Keeps a service from being gone before its addresses are free (the name that Kubernetes' own service controllers use,
/// KEP-980).
pub(super) const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// What the types of our conditions begin with, in objects that others write conditions into as well.
const OURS: &str = "portolan.dev/";

/// Longest message of a condition that the API server takes, in bytes (`metav1.Condition`).
const MESSAGE_MAX: usize = 32_768;

/// Adds the finalizer and says whose it is; `None` if that is so.
pub(super) fn hold(facts: &Facts, class: &str) -> Option<Value> {
    let held = facts.finalizers.iter().any(|it| it == FINALIZER);
    if held && facts.manager.as_deref() == Some(class) {
        return None;
    }
    let added = (!held).then_some(FINALIZER);
    let finalizers: Vec<&str> = facts.finalizers.iter().map(String::as_str).chain(added).collect();
    Some(json!({"metadata": {
        "resourceVersion": facts.version, "finalizers": finalizers, "annotations": {MANAGER_ANNOTATION: class},
    }}))
}

/// Takes both out; `None` if they are. With `keep_finalizer` it is somebody else's.
pub(super) fn let_go(facts: &Facts, keep_finalizer: bool) -> Option<Value> {
    let is_kept = |it: &&String| keep_finalizer || *it != FINALIZER;
    let finalizers: Vec<&String> = facts.finalizers.iter().filter(is_kept).collect();
    if finalizers.len() == facts.finalizers.len() && facts.manager.is_none() {
        return None;
    }
    Some(json!({"metadata": {
        "resourceVersion": facts.version, "finalizers": finalizers, "annotations": {MANAGER_ANNOTATION: null},
    }}))
}

/// Makes the status of a service say this; `None` if it does. With `addresses` absent they stay as they are.
pub(super) fn service_status(
    facts: &Facts,
    addresses: Option<&[IpAddr]>,
    conditions: &[Condition],
    stamp: &str,
) -> Option<Value> {
    let conditions = merged(facts.conditions(), conditions, stamp, |kind| kind.starts_with(OURS));
    let entries = addresses.map(|ips| -> Vec<Value> {
        ips.iter().map(|ip| json!({"ip": ip.to_string(), "ipMode": "VIP"})).collect()
    });
    let is_same = entries.as_deref().is_none_or(|entries| same_ingress(entries, facts.ingress()));
    if is_same && conditions == facts.conditions() {
        return None;
    }
    let mut status = json!({"conditions": conditions});
    if let Some(entries) = entries {
        status["loadBalancer"] = json!({"ingress": entries});
    }
    Some(json!({"metadata": {"resourceVersion": facts.version}, "status": status}))
}

/// Whether entries lead to the same addresses in the same way. What else stands in them is not looked at.
fn same_ingress(wanted: &[Value], found: &[Value]) -> bool {
    let head = |entry: &Value| (entry["ip"].clone(), entry["ipMode"].clone());
    wanted.len() == found.len() && wanted.iter().zip(found).all(|(a, b)| head(a) == head(b))
}

/// Makes the status of a pool say this; `None` if it does.
pub(super) fn pool_status(
    facts: &Facts,
    report: &PoolReport,
    invalid: Option<Condition>,
    stamp: &str,
) -> Option<Value> {
    let wanted: Vec<Condition> = report.conditions.iter().cloned().chain(invalid).collect();
    let conditions = merged(facts.conditions(), &wanted, stamp, |_| true);
    let status = state::pool_status(report);
    let counts = json!({"ipv4": status.ipv4, "ipv6": status.ipv6});
    let is_same = ["ipv4", "ipv6"].iter().all(|family| counts[family] == facts.status[family]);
    if is_same && conditions == facts.conditions() {
        return None;
    }
    Some(json!({
        "metadata": {"resourceVersion": facts.version},
        "status": {"ipv4": counts["ipv4"], "ipv6": counts["ipv6"], "conditions": conditions},
    }))
}

/// Others' conditions as they are, and after them ours. A condition that says the same keeps its time.
fn merged(found: &[Value], wanted: &[Condition], stamp: &str, is_ours: impl Fn(&str) -> bool) -> Vec<Value> {
    let kind_of = |value: &Value| value["type"].as_str().unwrap_or_default().to_owned();
    let ours = wanted.iter().map(|condition| {
        let known = found.iter().find(|value| value["type"] == condition.kind);
        let mut written: StatusCondition = state::condition(condition);
        written.message = shorten(written.message);
        let time = known.filter(|known| known["status"] == written.status);
        let time = time.and_then(|known| known["lastTransitionTime"].as_str());
        written.last_transition_time = Some(time.unwrap_or(stamp).to_owned());
        // Our own struct of texts.
        serde_json::to_value(&written).unwrap_or_default()
    });
    // Ours stay where they are, so that a status that says the same is the same.
    let mut ours: Vec<Value> = ours.collect();
    let mut all = Vec::new();
    for value in found {
        match ours.iter().position(|it| it["type"] == value["type"]) {
            Some(at) => all.push(ours.remove(at)),
            None if is_ours(&kind_of(value)) => {}
            None => all.push(value.clone()),
        }
    }
    all.extend(ours);
    all
}

fn shorten(mut text: String) -> String {
    if text.len() > MESSAGE_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_MAX - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// Whether an object has conditions of ours.
pub(super) fn has_conditions(facts: &Facts) -> bool {
    facts.conditions().iter().any(|it| it["type"].as_str().is_some_and(|kind| kind.starts_with(OURS)))
}
