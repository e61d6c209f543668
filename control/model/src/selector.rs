//! Label selectors: which services or nodes are meant.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::custom::{LabelRequirement, LabelSelector};
use crate::{Invalid, Name, wire};

/// Labels of an object.
pub type Labels = BTreeMap<Name, Name>;

/// The labels whose value is text; the others cannot be matched.
pub(crate) fn labels(wire: &wire::Labels) -> Labels {
    let text = |(key, value): (&String, &Value)| Some((key.as_str().into(), value.as_str()?.into()));
    wire.iter().filter_map(text).collect()
}

/// Which labels an object must have; by default any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: Name,
    must: Must,
}

/// `matchExpressions[].operator` and its values.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Must {
    BeIn(BTreeSet<Name>),
    NotBeIn(BTreeSet<Name>),
    Exist,
    NotExist,
}

impl Selector {
    /// Whether an object with these labels is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(labels.get(&requirement.key)))
    }

    /// Whether every object is meant.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Reads `matchLabels` and `matchExpressions`. A selector with a part that means nothing is refused as a whole:
    /// without that part it would mean more objects than its author said.
    pub(crate) fn new(field: &str, wire: &LabelSelector) -> Result<Self, Invalid> {
        let equal = wire.match_labels.iter().map(|(key, value)| {
            let must = Must::BeIn([value.as_str().into()].into());
            Ok(Requirement { key: key.as_str().into(), must })
        });
        let listed = wire.match_expressions.iter().enumerate();
        let expressions =
            listed.map(|(i, wire)| requirement(&format!("{field}.matchExpressions[{i}]"), wire));
        Ok(Self { requirements: equal.chain(expressions).collect::<Result<_, _>>()? })
    }
}

/// Several selectors, of which one must hold; none at all means every object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors(Vec<Selector>);

impl Selectors {
    /// Whether an object with these labels is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.is_empty() || self.0.iter().any(|selector| selector.matches(labels))
    }

    /// Whether every object is meant.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(Selector::is_everything)
    }

    /// Reads a list of selectors; one that means nothing refuses all.
    pub(crate) fn new(field: &str, wire: &[LabelSelector]) -> Result<Self, Invalid> {
        let read = wire.iter().enumerate().map(|(i, wire)| Selector::new(&format!("{field}[{i}]"), wire));
        read.collect::<Result<_, _>>().map(Self)
    }
}

impl From<Selector> for Selectors {
    fn from(selector: Selector) -> Self {
        Self(vec![selector])
    }
}

impl Requirement {
    /// As the API server compares (apimachinery's `labels.Requirement`): an absent label is in no set.
    fn holds(&self, value: Option<&Name>) -> bool {
        match (&self.must, value) {
            (Must::BeIn(values), Some(value)) => values.contains(value),
            (Must::NotBeIn(values), Some(value)) => !values.contains(value),
            (Must::BeIn(_), None) | (Must::Exist, None) | (Must::NotExist, Some(_)) => false,
            (Must::NotBeIn(_), None) | (Must::Exist, Some(_)) | (Must::NotExist, None) => true,
        }
    }
}

fn requirement(field: &str, wire: &LabelRequirement) -> Result<Requirement, Invalid> {
    if wire.key.is_empty() {
        return Err(Invalid::absent(format!("{field}.key"), "the name of a label"));
    }
    let values = || -> BTreeSet<Name> { wire.values.iter().map(|value| value.as_str().into()).collect() };
    let must = match wire.operator.as_str() {
        "In" => Must::BeIn(values()),
        "NotIn" => Must::NotBeIn(values()),
        "Exists" => Must::Exist,
        "DoesNotExist" => Must::NotExist,
        other => {
            return Err(Invalid::text(
                format!("{field}.operator"),
                "In, NotIn, Exists or DoesNotExist",
                other,
            ));
        }
    };
    let wants_values = matches!(must, Must::BeIn(_) | Must::NotBeIn(_));
    if wants_values == wire.values.is_empty() {
        let expected = if wants_values { "at least one value" } else { "no values with this operator" };
        return Err(Invalid::new(
            format!("{field}.values"),
            expected,
            format!("{} of them", wire.values.len()),
        ));
    }
    Ok(Requirement { key: wire.key.as_str().into(), must })
}
