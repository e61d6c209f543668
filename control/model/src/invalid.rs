//! What is said about a field that was refused.

/// A field that was refused: where it is, what it should hold, what it holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{field}: expected {expected}, found {found}")]
pub struct Invalid {
    /// Path of the field inside its object, like `spec.ports[1].port`; empty for the object itself.
    pub field: String,
    /// What would be right, in words.
    pub expected: String,
    /// What is there, quoted and shortened.
    pub found: String,
}

/// Longest text of a user's value that is repeated in a message, in characters.
const FOUND_MAX: usize = 80;

impl Invalid {
    /// A refusal of `field`; `found` is taken as it is.
    pub fn new(field: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { field: field.into(), expected: expected.into(), found: shorten(found.into()) }
    }

    /// A refusal of a text value, which is quoted (control characters escaped) and shortened.
    pub fn text(field: impl Into<String>, expected: impl Into<String>, found: &str) -> Self {
        Self::new(field, expected, format!("{:?}", shorten(found.to_owned())))
    }

    /// A refusal of a field that is not there.
    pub fn absent(field: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::new(field, expected, "nothing")
    }
}

impl From<serde_path_to_error::Error<serde_json::Error>> for Invalid {
    /// A value of the wrong type. The path comes from the deserializer; serde's text is
    /// `invalid type: FOUND, expected EXPECTED`.
    fn from(error: serde_path_to_error::Error<serde_json::Error>) -> Self {
        let field = match error.path().to_string() {
            path if path == "." => String::new(),
            path => path,
        };
        let text = error.inner().to_string();
        match text.rsplit_once(", expected ") {
            Some((found, expected)) => {
                let found = found.split_once(": ").map_or(found, |(_, found)| found);
                Self::new(field, plain(expected), found)
            }
            None => Self::new(field, "a valid value", text),
        }
    }
}

/// serde speaks of Rust's types; a reader of a manifest knows YAML's.
fn plain(expected: &str) -> &str {
    match expected {
        "i64" => "a whole number",
        "a string" => "text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "fields",
        other if other.starts_with("struct ") => "fields",
        other => other,
    }
}

fn shorten(text: String) -> String {
    match text.char_indices().nth(FOUND_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
