//! Running other programs: each is shown before it runs, and an error names it.

use std::{
    convert::Infallible,
    ffi::OsStr,
    fmt,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};

/// A command line to be run. `Display` shows it as a shell would take it.
pub(crate) struct Cmd {
    command: Command,
    directory: Option<PathBuf>,
}

impl Cmd {
    /// `program` is looked up on `PATH`.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self { command: Command::new(program), directory: None }
    }

    /// `cargo`, with `arguments` split at blanks, in the root of the checkout.
    pub(crate) fn cargo(arguments: &str) -> Self {
        Self::new("cargo").args(arguments.split_whitespace()).directory(crate::paths::root())
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(&directory);
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Shows the command, runs it with our own input and output, and fails unless it succeeds.
    pub(crate) fn run(mut self) -> Result<()> {
        eprintln!("+ {self}");
        let status = self.command.status().with_context(|| format!("starting `{self}`"))?;
        if !status.success() {
            bail!("`{self}` failed ({status})");
        }
        Ok(())
    }

    /// Runs the command unseen and returns its standard output; an error carries its standard error.
    pub(crate) fn read(self) -> Result<String> {
        let (shown, output) = self.output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{shown}` failed ({}): {}", output.status, said.trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("reading the output of `{shown}`"))
    }

    /// Runs the command unseen, whatever its exit status. Returns its text with its output.
    pub(crate) fn output(mut self) -> Result<(String, Output)> {
        let shown = self.to_string();
        let output = self.command.stdin(Stdio::null()).output();
        Ok((shown.clone(), output.with_context(|| format!("starting `{shown}`"))?))
    }

    /// Becomes the command: signals and the exit status are then its own.
    pub(crate) fn exec(mut self) -> Result<Infallible> {
        eprintln!("+ {self}");
        let error = self.command.exec();
        Err(anyhow!(error).context(format!("starting `{self}`")))
    }

    /// The plain command, for callers that need pipes.
    pub(crate) fn into_inner(self) -> Command {
        self.command
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = crate::paths::root();
        if let Some(place) = self.directory.as_ref().and_then(|d| d.strip_prefix(&root).ok())
            && place != Path::new("")
        {
            write!(f, "cd {} && ", place.display())?;
        }
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                write!(f, "{}={} ", name.display(), quoted(value))?;
            }
        }
        write!(f, "{}", quoted(self.command.get_program()))?;
        self.command.get_args().try_for_each(|argument| write!(f, " {}", quoted(argument)))
    }
}

/// `text` as one word of a POSIX shell.
pub(crate) fn quoted(text: &OsStr) -> String {
    let text = text.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''").replace('\x1f', r"\x1f"))
}

/// The path of `program` on `PATH` or in the directories of administration tools, which a user's `PATH`
/// often lacks.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_would_take_it() {
        let shown = Cmd::new("echo").args(["plain", "two words", "it's", ""]).env("A", "b c").to_string();
        assert_eq!(shown, r"A='b c' echo plain 'two words' 'it'\''s' ''");
    }

    #[test]
    fn a_failing_command_is_named_with_its_status() {
        let error = Cmd::new("sh").args(["-c", "exit 3"]).run().unwrap_err().to_string();
        assert_eq!(error, "`sh -c 'exit 3'` failed (exit status: 3)");
    }

    #[test]
    fn an_error_of_a_quiet_command_carries_what_it_said() {
        let error = Cmd::new("sh").args(["-c", "echo why >&2; false"]).read().unwrap_err().to_string();
        assert!(error.ends_with("(exit status: 1): why"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Cmd::new("no-such-program").run().unwrap_err();
        assert!(format!("{error:#}").starts_with("starting `no-such-program`: "), "{error:#}");
    }
}
