//! What the demo prints, and the book of its claims.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, bail};
use portolan_tests::lab::run;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const HEAD: Style = Style::new().bold();
const COMMAND: Style = AnsiColor::Cyan.on_default();
const FAINT: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Lines of a reason that are shown.
const SHOWN: usize = 8;

/// The narrator. Colours are left out where nobody sees them and where `NO_COLOR` says so.
pub(crate) struct Say {
    steps: usize,
    kept: usize,
    broken: Vec<String>,
    /// The signal that asked for the end; 0: none.
    signal: Arc<AtomicUsize>,
}

impl Say {
    /// From now on a signal does not end the process: it ends the story, so that everything is cleaned up.
    pub(crate) fn new() -> Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)
                .context("catching signals")?;
        }
        Ok(Self { steps: 0, kept: 0, broken: Vec::new(), signal })
    }

    /// Begins a step.
    pub(crate) fn heading(&mut self, title: &str) -> Result<()> {
        self.go_on()?;
        self.steps += 1;
        print(&format!("\n{HEAD}{}. {title}{HEAD:#}\n", self.steps));
        Ok(())
    }

    /// A remark.
    pub(crate) fn note(&self, text: &str) {
        print(&format!("   {text}\n"));
    }

    /// Lines as they are, for drawings and tables.
    pub(crate) fn lines(&self, text: &str) {
        let lines: String = text.lines().map(|line| format!("   {line}\n")).collect();
        print(&lines);
    }

    /// Shows a command, runs it and shows what it printed.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<String> {
        self.go_on()?;
        print(&format!("   {COMMAND}$ {}{COMMAND:#}\n", shown(command)));
        let text = run(command)?;
        let lines: String = text
            .lines()
            .map(|line| if line.is_empty() { "\n".into() } else { format!("     {line}\n") })
            .collect();
        print(&lines);
        Ok(text)
    }

    /// Shows a command that the caller runs in another way.
    pub(crate) fn command(&self, line: &str) {
        print(&format!("   {COMMAND}$ {line}{COMMAND:#}\n"));
    }

    /// A claim that holds if `wrong` is empty, else is broken for that reason. An interrupted story claims nothing.
    pub(crate) fn claim(&mut self, claim: &str, wrong: &str) -> Result<()> {
        self.go_on()?;
        self.check_always(claim, wrong);
        Ok(())
    }

    /// As [`claim`](Self::claim), also after an interruption.
    pub(crate) fn check_always(&mut self, claim: &str, wrong: &str) {
        if wrong.is_empty() {
            self.kept += 1;
            print(&format!("   {GOOD}✓{GOOD:#} {claim}\n"));
        } else {
            print(&format!("   {BAD}✗ {claim}{BAD:#}\n"));
            for line in wrong.lines().take(SHOWN) {
                self.note(&format!("  {line}"));
            }
            let more = wrong.lines().count().saturating_sub(SHOWN);
            if more > 0 {
                self.note(&format!("  and {more} more"));
            }
            self.broken.push(claim.to_owned());
        }
    }

    /// The story ended early.
    pub(crate) fn stopped(&mut self, error: &anyhow::Error) {
        if self.signal() == 0 {
            let step = self.steps;
            self.check_always(&format!("step {step} comes to its end"), &format!("{error:#}"));
        } else {
            print("\n   interrupted: cleaning up\n");
        }
    }

    /// Lets traffic flow for a while; an interruption ends it.
    pub(crate) fn wait(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.go_on()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Fails if a signal came.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.signal() != 0 {
            bail!("interrupted");
        }
        Ok(())
    }

    /// The last word, and the exit status.
    pub(crate) fn verdict(&self) -> ExitCode {
        let mut text = String::new();
        for claim in &self.broken {
            let _ = writeln!(text, "   {BAD}✗{BAD:#} {claim}");
        }
        let all = self.kept + self.broken.len();
        let code = match (self.broken.len(), self.signal()) {
            (0, 0) if all == 0 => 0,
            (0, 0) => {
                let _ = writeln!(text, "{GOOD}All {all} claims held.{GOOD:#}");
                0
            }
            (0, signal) => 128 + u8::try_from(signal).unwrap_or(0),
            (broken, _) => {
                text = format!("{BAD}{broken} of {all} claims did not hold:{BAD:#}\n{text}");
                1
            }
        };
        if !text.is_empty() {
            print(&format!("\n{text}"));
        }
        ExitCode::from(code)
    }

    fn signal(&self) -> usize {
        self.signal.load(Ordering::Relaxed)
    }
}

/// Faint text, for what only explains.
pub(crate) fn faint(text: &str) -> String {
    format!("{FAINT}{text}{FAINT:#}")
}

/// A command line as a shell takes it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A reader that went away, as `head` does, does not change what is checked.
fn print(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_would_take_it() {
        let mut command = Command::new("curl");
        command.args(["-s", "http://[::1]/", "it's"]);
        assert_eq!(shown(&command), r"curl -s 'http://[::1]/' 'it'\''s'");
    }
}
