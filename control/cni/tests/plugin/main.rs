//! The built plugin as a runtime runs it. Pods' network namespaces are real, so this needs root.

mod hostile_input;
mod operations;
mod support;
