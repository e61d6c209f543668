//! What a run leaves, on purpose or because it was killed, and how to take it down.
//!
//! A run notes itself in a file while it lives, and holds a lock on it: what has a file and no lock may be taken
//! down. The names of everything else derive from its process id.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_tests::lab::{Cluster, binary, poll, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::say::{Say, faint, shown};
use crate::stage::Stage;

const NOTES: &str = "/run/portolan-demo";

/// A run, as noted. The note goes away with the last clone, unless the cluster is kept.
#[derive(Clone)]
pub(crate) struct Record {
    process: u32,
    /// Everything on disk.
    directory: PathBuf,
    note: Arc<Note>,
}

struct Note {
    path: PathBuf,
    _locked: File,
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("removing {}: {error}", self.path.display());
        }
        // Another run may have a note there.
        let _ = std::fs::remove_dir(NOTES);
    }
}

impl Record {
    /// Notes this run.
    pub(crate) fn of(cluster: &Cluster) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(NOTES)
            .context("making a directory for notes")?;
        let (process, directory) = (std::process::id(), cluster.directory().to_owned());
        let path = Path::new(NOTES).join(format!("{process}.json"));
        let text = json!({ "process": process, "directory": directory }).to_string();
        let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        file.lock()?;
        std::fs::write(&path, text)?;
        Ok(Self { process, directory, note: Arc::new(Note { path, _locked: file }) })
    }

    /// A run whose note is at `path`; `None`: it still runs.
    fn read(path: &Path) -> Result<Option<Self>> {
        let file = File::open(path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            other => other?,
        }
        let value: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        let process = value["process"].as_u64().and_then(|it| u32::try_from(it).ok());
        let directory = value["directory"].as_str().context("no directory in it")?;
        let note = Arc::new(Note { path: path.to_owned(), _locked: file });
        Ok(Some(Self { process: process.context("no process in it")?, directory: directory.into(), note }))
    }

    /// Ends the note; if something is `left`, it stays for another attempt.
    pub(crate) fn done(self, left: &str) {
        if !left.is_empty() {
            std::mem::forget(self.note);
        }
    }

    fn namespaces(&self) -> Result<Vec<String>> {
        named("/run/netns", &format!("ptl-{}-", self.process))
    }

    fn pins(&self) -> Result<Vec<String>> {
        named("/sys/fs/bpf", &format!("portolan-test-{}-", self.process))
    }

    /// What is still there of it, a line each.
    pub(crate) fn leftovers(&self) -> Result<String> {
        let mut left: Vec<String> = Vec::new();
        left.extend(self.namespaces()?.iter().map(|name| format!("namespace {name}")));
        left.extend(self.pins()?.iter().map(|name| format!("pins /sys/fs/bpf/{name}")));
        left.extend(mounts(&format!("ptl-{}-", self.process))?);
        if self.directory.exists() {
            left.push(format!("directory {}", self.directory.display()));
        }
        left.extend(processes_with(&self.directory)?.iter().map(|it| format!("process {it}")));
        Ok(left.join("\n"))
    }
}

/// Leaves everything running and tells how to enter it.
pub(crate) fn leave(say: &mut Say, stage: Stage) -> Result<()> {
    say.heading("The cluster stays")?;
    let [node, client] = [&stage.cluster.nodes[0].netns, &stage.cluster.client];
    let pod = stage.pod("client")?;
    let line = |what: &str, command: &mut Command| {
        say.note(&faint(what));
        say.command(&shown(command));
    };
    line("an outside client asks the public address", client.command("curl").arg("http://198.51.100.10/"));
    line("a pod asks the cluster address", pod.netns.command("curl").arg("http://10.96.0.10/"));
    line("a shell on node1", &mut node.command("bash"));
    for (agent, name) in stage.agents.iter().zip(["node1", "node2"]) {
        let what = format!("views of {name}: status, service list, flow list, explain, …");
        line(&what, &mut agent.view_command("status")?);
    }
    say.note(&faint("objects; edit them: it takes effect at once"));
    say.note(&stage.cluster.objects().display().to_string());
    say.note(&faint("of each agent: tables and links, and the log"));
    for agent in &stage.agents {
        say.note(&format!("{} {}/agent.log", agent.pins().display(), agent.directory().display()));
    }
    say.note(&faint("take it down"));
    say.command("cargo xtask demo --down");
    // Nothing of it is undone, and the lock ends with this process.
    std::mem::forget(stage);
    Ok(())
}

/// Takes down every run that has ended and left something.
pub(crate) fn down(say: &mut Say) -> Result<()> {
    let mut found = 0;
    for name in named(NOTES, "")? {
        let path = Path::new(NOTES).join(&name);
        match Record::read(&path).with_context(|| format!("reading {}", path.display()))? {
            Some(record) => {
                say.heading(&format!("Taking down the cluster of process {}", record.process))?;
                take_down(say, record)?;
                found += 1;
            }
            None => say.note(&format!("{name}: its demo still runs; end that by Ctrl-C")),
        }
    }
    if found == 0 {
        say.note("no cluster is left over");
    }
    Ok(())
}

fn take_down(say: &mut Say, record: Record) -> Result<()> {
    let namespaces = record.namespaces()?;
    let ended = end_processes(&namespaces, say)?;
    say.note(&format!("ended {ended} processes"));
    for (number, node) in ["node1", "node2"].iter().enumerate() {
        let wrong = uninstall(&record, number, node).err().map(|error| format!("{error:#}"));
        say.check_always(&format!("uninstalled {node}"), &wrong.unwrap_or_default());
    }
    for name in &namespaces {
        run(Command::new("ip").args(["netns", "del", name]))?;
    }
    say.note(&format!("removed {} namespaces", namespaces.len()));
    for name in record.pins()? {
        std::fs::remove_dir_all(Path::new("/sys/fs/bpf").join(name))?;
    }
    if record.directory.exists() {
        std::fs::remove_dir_all(&record.directory)?;
    }
    let left = record.leftovers()?;
    say.check_always("no namespace, process, pin or file is left", &left);
    record.done(&left);
    Ok(())
}

/// `portolan uninstall` on a node. A node that is gone, or whose agent never started, has nothing.
fn uninstall(record: &Record, number: usize, node: &str) -> Result<()> {
    let directory = record.directory.join(node);
    let ending = format!("-n{}", number + 1);
    let Some(name) = record.namespaces()?.into_iter().find(|name| name.ends_with(&ending)) else {
        return Ok(());
    };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{name}")).arg(binary("portolan")?);
    command.arg("--socket").arg(directory.join("agent.sock")).arg("--pins");
    command.arg(format!("/sys/fs/bpf/portolan-test-{}-{number}", record.process)).arg("uninstall");
    for (flag, place) in [("--state-dir", "state"), ("--cni-conf-dir", "net.d"), ("--cni-bin-dir", "bin")] {
        command.arg(flag).arg(directory.join(place));
    }
    run(&mut command).map(drop)
}

/// Ends agents and web servers; a shell that somebody opened in a namespace is his.
fn end_processes(namespaces: &[String], say: &Say) -> Result<usize> {
    let mut ended = 0;
    for name in namespaces {
        for word in run(Command::new("ip").args(["netns", "pids", name]))?.split_whitespace() {
            let Ok(program) = std::fs::read_link(format!("/proc/{word}/exe")) else { continue };
            let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !matches!(program.trim_end_matches(" (deleted)"), "portolan" | "portolan-demo") {
                say.note(&format!(
                    "process {word} ({program}) is still in {name}, which goes away when it ends"
                ));
                continue;
            }
            end(word.parse()?)?;
            ended += 1;
        }
    }
    Ok(ended)
}

fn end(process: i32) -> Result<()> {
    let process = Pid::from_raw(process).context("process 0")?;
    kill_process(process, Signal::KILL).with_context(|| format!("ending process {process:?}"))?;
    // Its entry may stay until somebody reaps it, without this link.
    let program = format!("/proc/{}/exe", process.as_raw_nonzero());
    poll(Duration::from_secs(10), "a process ends", || std::fs::read_link(&program).err()).map(drop)
}

/// Entries of a directory that begin with `start`; none if there is no such directory.
fn named(directory: &str, start: &str) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("reading {directory}"))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(start)).collect();
    names.sort();
    Ok(names)
}

fn mounts(part: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/self/mounts")?;
    Ok(text.lines().filter(|line| line.contains(part)).map(|line| format!("mount {line}")).collect())
}

/// Processes whose command line names the directory.
fn processes_with(directory: &Path) -> Result<Vec<String>> {
    let directory = directory.display().to_string();
    let numbers = named("/proc", "")?.into_iter().filter(|name| name.parse::<u32>().is_ok());
    Ok(numbers
        .filter(|number| {
            std::fs::read(format!("/proc/{number}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&directory))
        })
        .collect())
}
