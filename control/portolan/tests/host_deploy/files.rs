//! The files of the checkout that these tests read.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("this file is in the checkout")
}

/// A file of the checkout.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every document of a YAML text that has more than comments.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let values =
        documents.map(|document| Value::deserialize(document).unwrap_or_else(|e| panic!("{e}: {text}")));
    values.filter(|value| !value.is_null()).collect()
}
