//! The agent, as a child process in a node's namespace.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Cgroup, Node, binary, poll, run};

/// Time for an agent to get ready. It takes less than two seconds, but a test machine may be busy, and the kernel's verifier takes
/// most of a minute in an emulated one.
const READY: Duration = Duration::from_secs(150);

/// How agents are started.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// More command-line arguments.
    pub arguments: Vec<String>,
    /// Install the CNI plugin and configuration below the agent's own directory.
    pub install_cni: bool,
    /// Balance sockets: the agent gets a cgroup, and what begins in its node or its pods joins that. Also on where
    /// the environment has `PORTOLAN_TEST_SOCKETS=1`.
    pub sockets: bool,
}

impl AgentOptions {
    /// Whether sockets are balanced.
    #[must_use]
    pub fn has_sockets(&self) -> bool {
        self.sockets || balances_sockets()
    }
}

/// Whether this run of the tests has every agent balance sockets.
#[must_use]
pub fn balances_sockets() -> bool {
    std::env::var("PORTOLAN_TEST_SOCKETS").is_ok_and(|value| value == "1")
}

/// A running (or killed) agent. Dropping it ends the process and removes everything it made.
#[derive(Debug)]
pub struct Agent {
    netns: String,
    directory: PathBuf,
    pins: PathBuf,
    command: Vec<String>,
    child: Option<Child>,
    cgroup: Option<Cgroup>,
}

impl Agent {
    pub(super) fn start(
        node: &Node,
        objects: &Path,
        directory: &Path,
        options: &AgentOptions,
    ) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        std::fs::create_dir_all(directory)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pins = PathBuf::from(format!("/sys/fs/bpf/portolan-test-{}-{number}", std::process::id()));
        let mut agent = Self {
            netns: node.netns.path(),
            directory: directory.to_owned(),
            pins,
            command: Vec::new(),
            child: None,
            cgroup: options.has_sockets().then(Cgroup::new).transpose()?,
        };
        if let Some(cgroup) = &agent.cgroup {
            node.netns.set_cgroup(cgroup.path());
        }
        agent.command = agent.command_line(&node.name, objects, options)?;
        agent.spawn()?;
        Ok(agent)
    }

    fn command_line(&self, node: &str, objects: &Path, options: &AgentOptions) -> Result<Vec<String>> {
        let mut line = vec![binary("portolan")?.display().to_string(), "agent".to_owned()];
        // What the caller says counts instead.
        let mut flag = |name: &str, value: String| {
            let flag = format!("--{name}");
            if !options.arguments.contains(&flag) {
                line.extend([flag, value]);
            }
        };
        flag("node-name", node.to_owned());
        flag("source", format!("dir:{}", objects.display()));
        flag("socket", self.socket().display().to_string());
        flag("pins", self.pins.display().to_string());
        flag("state-dir", self.directory.join("state").display().to_string());
        flag("cni-conf-dir", self.directory.join("net.d").display().to_string());
        flag("cni-bin-dir", self.directory.join("bin").display().to_string());
        // Tables of the default size take a tenth of a second to make, for nothing.
        for (name, value) in
            [("services", 4096), ("slots", 65_536), ("backends", 8192), ("frontends", 16_384)]
        {
            flag(name, value.to_string());
        }
        flag("flows", "65536".to_owned());
        if let Some(cgroup) = &self.cgroup {
            flag("socket-cgroup", cgroup.path().display().to_string());
        }
        if !options.install_cni {
            line.push("--no-cni-install".to_owned());
        }
        line.extend(options.arguments.iter().cloned());
        Ok(line)
    }

    /// Starts it and kills it after a while, ready or not.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn start_and_kill(&mut self, after: Duration) -> Result<()> {
        self.launch()?;
        std::thread::sleep(after);
        self.kill()
    }

    /// Starts a second one with the same arguments and waits for its end: all its output.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn second(&self) -> Result<std::process::Output> {
        let mut command = Command::new("timeout");
        command.arg("20").arg("nsenter").arg(format!("--net={}", self.netns)).args(&self.command);
        command.stdin(Stdio::null()).output().context("starting a second agent")
    }

    fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let child = Command::new("nsenter")
            .arg(format!("--net={}", self.netns))
            .args(&self.command)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the agent")?;
        self.child = Some(child);
        Ok(())
    }

    fn spawn(&mut self) -> Result<()> {
        self.launch()?;
        let ready = poll(READY, "the agent's socket answers", || match self.child.as_mut()?.try_wait() {
            Ok(None) => self.is_ready().then_some(Ok(())),
            other => Some(Err(anyhow::anyhow!("the agent ended: {other:?}"))),
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) | Err(error) => bail!("{error:#}\n{}", self.log()),
        }
    }

    fn is_ready(&self) -> bool {
        self.ask(r#"{"query":"status"}"#).is_ok_and(|answer| answer.contains(r#""ready":true"#))
    }

    /// Sends one line to the agent's socket; the line that comes back.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn ask(&self, line: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(format!("{line}\n").as_bytes())?;
        Ok(std::io::read_to_string(stream)?)
    }

    /// Runs a view of the command line, as `service list -o json`.
    ///
    /// # Errors
    /// It does not exit with 0.
    pub fn view(&self, line: &str) -> Result<String> {
        run(&mut self.view_command(line)?)
    }

    /// The command of a view, to be run by the caller.
    ///
    /// # Errors
    /// The binary is not built.
    pub fn view_command(&self, line: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns)).arg(binary("portolan")?);
        command.arg("--socket").arg(self.socket()).arg("--pins").arg(&self.pins);
        command.args(line.split_whitespace());
        Ok(command)
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// The agent's own directory: `state`, `net.d`, `bin` and the log are below.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where its tables and links are pinned.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The cgroup whose sockets it balances.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// What of the node depends on objects and pods: keys of frontends, endpoints, links, how full tables are, warnings. Two
    /// that are equal have the same pods and services, and nothing of others.
    ///
    /// # Errors
    /// The agent does not run, or its tables cannot be read.
    pub fn footprint(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for table in ["FRONTENDS_V4", "FRONTENDS_V6", "ENDPOINTS_V4", "ENDPOINTS_V6"] {
            let pin = self.pins().join(table);
            let text = run(Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin))?;
            let entries: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
            // Which index a service has is of no importance; which interface an endpoint has is.
            let part = if table.starts_with("FRONTENDS") { "/key" } else { "" };
            lines.extend(entries.iter().filter_map(|it| Some(format!("{table} {}", it.pointer(part)?))));
        }
        // By clsact there are none.
        let links = std::fs::read_dir(self.pins().join("links")).into_iter().flatten();
        lines.extend(links.flatten().map(|link| format!("link {}", link.file_name().display())));
        let status: Value = serde_json::from_str(&self.view("status -o json")?)?;
        lines.push(format!("tables {}", status["tables"]));
        lines.push(format!("warnings {}", status["warnings"]));
        lines.sort();
        Ok(lines)
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Everything it logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// Kills it, as an out-of-memory kill would.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to end, as a service manager does; how it ended.
    ///
    /// # Errors
    /// It does not run, or does not end within 10 s.
    pub fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        let mut child = self.child.take().context("the agent does not run")?;
        run(Command::new("kill").args(["-TERM", &child.id().to_string()]))?;
        let ended = poll(Duration::from_secs(10), "the agent ends", || child.try_wait().ok().flatten());
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended
    }

    /// Starts it again with the same arguments.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.spawn()
    }

    /// Has it start without its cgroup from now on.
    pub fn leave_sockets(&mut self) {
        if let Some(at) = self.command.iter().position(|word| word == "--socket-cgroup") {
            self.command.drain(at..at + 2);
        }
    }

    /// Starts it again with another value of a flag.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn restart_with(&mut self, flag: &str, value: &str) -> Result<()> {
        match self.command.iter().position(|argument| argument == flag) {
            Some(at) => value.clone_into(&mut self.command[at + 1]),
            None => self.command.extend([flag.to_owned(), value.to_owned()]),
        }
        self.restart()
    }

    /// Kills it and runs `portolan uninstall`; what that printed.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn uninstall(&mut self) -> Result<String> {
        self.kill()?;
        run(&mut self.uninstall_command()?)
    }

    /// Takes away what does not outlive the machine: the process, interfaces, programs, tables. The state directory stays.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn reboot(&mut self) -> Result<()> {
        self.kill()?;
        run(self.uninstall_command()?.arg("--keep-state")).map(drop)
    }

    /// The command of [`uninstall`](Self::uninstall), to be run by the caller.
    ///
    /// # Errors
    /// The binary is not built.
    pub fn uninstall_command(&self) -> Result<Command> {
        let mut command = self.view_command("uninstall")?;
        command.arg("--state-dir").arg(self.directory.join("state"));
        command.arg("--cni-conf-dir").arg(self.directory.join("net.d"));
        command.arg("--cni-bin-dir").arg(self.directory.join("bin"));
        Ok(command)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent of {} ---\n{}", self.netns, self.log());
        }
        if let Err(error) = self.uninstall() {
            eprintln!("uninstalling after a test: {error:#}");
        }
        // Uninstalling removes the pins; this is for an agent that never came so far.
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}
