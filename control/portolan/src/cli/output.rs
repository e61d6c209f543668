//! Getting a view to where it goes: as a table, as JSON or as YAML.

use std::io::{self, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

/// How a view is printed.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// Form of the output
    #[arg(short = 'o', long = "output", value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub format: Format,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; may change between versions
    Table,
    /// For scripts
    Json,
    /// For scripts
    Yaml,
}

impl Output {
    /// Prints a value; `table` is its text for people.
    pub(super) fn emit<T: Serialize + ?Sized>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        print(&self.render(value, table)?)
    }

    fn render<T: Serialize + ?Sized>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<String> {
        Ok(match self.format {
            Format::Table => table(value),
            Format::Json => serde_json::to_string_pretty(value).context("writing JSON")? + "\n",
            Format::Yaml => serde_yaml_ng::to_string(value).context("writing YAML")?,
        })
    }
}

/// Prints to stdout, without colours if that is no terminal or if `NO_COLOR` is set.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read has read enough: `portolan flow list | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to standard output"),
    }
}

/// Tells something beside the view, on stderr: the output stays clean for scripts.
pub(super) fn note(text: &str) {
    // Nobody is left to be told that this failed.
    let _ = writeln!(anstream::stderr(), "note: {}", super::text::clean(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_say_the_same() {
        let value = serde_json::json!({"name": "web: x", "flows": 3, "list": ["10.0.0.1", "on", "1e3"]});
        let render =
            |format| Output { format }.render(&value, |_| unreachable!("no table was asked for")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&render(Format::Json)).unwrap();
        let yaml: serde_json::Value = serde_yaml_ng::from_str(&render(Format::Yaml)).unwrap();
        assert_eq!(json, value);
        assert_eq!(yaml, value);
    }
}
