//! Packets as tcpdump sees them.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Netns, poll, run};

/// How long packets take from an interface to the file, at most.
const WRITTEN: Duration = Duration::from_secs(3);

/// A running tcpdump. Dropping it ends the process.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    directory: tempfile::TempDir,
}

impl Capture {
    /// Captures what passes `interface` and matches `filter`, in tcpdump's words; returns when it has begun.
    ///
    /// # Errors
    /// No such interface, or a filter that tcpdump does not understand.
    pub fn start(netns: &Netns, interface: &str, filter: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("portolan-").tempdir()?;
        let mut command = netns.command("tcpdump");
        command.args(["-i", interface, "-Z", "root", "-n", "-U", "--immediate-mode", "-w"]);
        command.arg(directory.path().join("pcap")).args(filter.split_whitespace());
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().context("tcpdump has no stderr")?;
        let capture = Self { child, directory };
        let mut said = String::new();
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            if line.contains("listening on") {
                return Ok(capture);
            }
            said += &line;
        }
        anyhow::bail!("tcpdump on {interface}: {said}");
    }

    /// The packets so far, each on one line, with checksums judged and Ethernet addresses.
    ///
    /// # Errors
    /// tcpdump cannot read its own file.
    pub fn packets(&self) -> Result<Vec<String>> {
        self.words(&["-e", "-vv"])
    }

    /// Waits until a packet has been captured that contains all of `words`, and returns everything up to then. Packets
    /// are written in the order in which they came: what is not in it was not there before.
    ///
    /// # Errors
    /// There is no such packet within 3 s.
    pub fn until(&self, words: &[&str]) -> Result<Vec<String>> {
        let seen = || {
            let packets = self.packets().ok()?;
            packets.iter().any(|packet| words.iter().all(|word| packet.contains(word))).then_some(packets)
        };
        poll(WRITTEN, &format!("a packet with {words:?} is captured"), seen)
    }

    fn words(&self, flags: &[&str]) -> Result<Vec<String>> {
        let file: PathBuf = self.directory.path().join("pcap");
        let text = run(Command::new("tcpdump").arg("-n").args(flags).arg("-r").arg(file))?;
        let mut packets: Vec<String> = Vec::new();
        for line in text.lines() {
            match packets.last_mut() {
                Some(packet) if line.starts_with(char::is_whitespace) => {
                    packet.push(' ');
                    packet.push_str(line.trim());
                }
                _ => packets.push(line.to_owned()),
            }
        }
        Ok(packets)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended by itself, with its interface.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
