//! The emulated machine: booting it, showing what the program prints, reading its exit status.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ExitCode, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;

/// The line after which the program's output begins.
pub(super) const BEGIN: &str = "PORTOLAN-VM-BEGIN";
/// What the exit status follows.
pub(super) const EXIT: &str = "PORTOLAN-VM-EXIT: ";
/// What says that the program could not be started, and why.
pub(super) const BROKEN: &str = "PORTOLAN-VM-BROKEN: ";

/// Silent but for the program, and off at once when the kernel panics.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet loglevel=1 mitigations=off";

/// Boots `kernel` with `initramfs`. Returns the exit status of its program.
pub(super) fn run(kernel: &Path, initramfs: &Path, deadline: Duration) -> Result<ExitCode> {
    // No network device: what runs in there reaches nothing outside.
    let command = Cmd::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max"])
        .args([
            "-nographic",
            "-no-reboot",
            "-m",
            "1G",
            "-nic",
            "none",
            "-append",
            KERNEL_ARGUMENTS,
            "-kernel",
        ])
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    eprintln!("+ {command}");
    let mut child = command
        .into_inner()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let console = child.stdout.take().context("taking the machine's console")?;
    let _machine = Machine(child);
    follow(&lines_of(console), Instant::now() + deadline, |line| println!("{line}"))
}

/// A running machine, which ends with its owner.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Either fails only for a machine that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of the console, without the carriage returns of a serial line.
fn lines_of(console: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Passes the program's lines to `show` until its exit status comes.
fn follow(lines: &Receiver<String>, deadline: Instant, mut show: impl FnMut(&str)) -> Result<ExitCode> {
    let mut boot = Some(Vec::new());
    loop {
        let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return gave_up("did not end before its deadline", boot),
            Err(RecvTimeoutError::Disconnected) => return gave_up("ended before its program did", boot),
        };
        if let Some(code) = line.strip_prefix(EXIT) {
            let code: u8 = code.parse().with_context(|| format!("reading the exit status `{code}`"))?;
            return Ok(ExitCode::from(code));
        }
        if let Some(why) = line.strip_prefix(BROKEN) {
            return gave_up(&format!("could not start the program: {why}"), boot);
        }
        match &mut boot {
            // The firmware may leave its own characters at the beginning of a line.
            Some(_) if line.ends_with(BEGIN) => boot = None,
            Some(before) => before.push(line),
            None => show(&line),
        }
    }
}

/// `boot` is the console so far, if the program's output has not begun.
fn gave_up(what: &str, boot: Option<Vec<String>>) -> Result<ExitCode> {
    match boot {
        Some(boot) => bail!("the virtual machine {what}; its console:\n{}", boot.join("\n")),
        None => bail!("the virtual machine {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a console with this text: the program's lines, and the result.
    fn followed(console: &'static str) -> (Vec<String>, Result<ExitCode>) {
        let mut shown = Vec::new();
        let lines = lines_of(console.as_bytes());
        let result =
            follow(&lines, Instant::now() + Duration::from_secs(60), |line| shown.push(line.to_owned()));
        (shown, result)
    }

    #[test]
    fn only_the_programs_lines_are_shown_and_its_status_returned() {
        let (shown, result) = followed("SeaBIOS\r\nPORTOLAN-VM-BEGIN\r\nhello\r\nPORTOLAN-VM-EXIT: 3\r\n");
        assert_eq!(shown, ["hello"]);
        assert_eq!(format!("{:?}", result.unwrap()), format!("{:?}", ExitCode::from(3)));
    }

    #[test]
    fn a_machine_that_dies_while_booting_shows_its_console() {
        let (shown, result) = followed("Kernel panic\r\n");
        assert!(shown.is_empty());
        assert!(result.unwrap_err().to_string().ends_with("its console:\nKernel panic"));
    }

    #[test]
    fn a_machine_that_dies_under_the_program_is_no_success() {
        let (shown, result) = followed("PORTOLAN-VM-BEGIN\r\nhalf\r\n");
        assert_eq!(shown, ["half"]);
        assert_eq!(result.unwrap_err().to_string(), "the virtual machine ended before its program did");
    }

    #[test]
    fn what_broke_before_the_program_is_told() {
        let (_, result) = followed("PORTOLAN-VM-BROKEN: mounting bpffs\r\n");
        assert!(result.unwrap_err().to_string().contains("could not start the program: mounting bpffs"));
    }

    #[test]
    fn a_machine_that_says_nothing_is_given_up_at_the_deadline() {
        let (_sender, silent) = mpsc::channel();
        let error = follow(&silent, Instant::now(), |_| ()).unwrap_err().to_string();
        assert!(error.starts_with("the virtual machine did not end before its deadline"), "{error}");
    }
}
