//! The controller, as a child process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Cluster, binary, poll, run};

/// Time for the controller to do something. It takes milliseconds, but a test machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running (or killed) controller. Dropping it ends the process.
#[derive(Debug)]
pub struct Controller {
    /// The words after `--source`.
    source: Vec<String>,
    objects: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Controller {
    /// Starts it on a cluster's directory of objects, and waits until it has read them and written its state.
    ///
    /// # Errors
    /// It ends, or writes nothing; the error has its log.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let log = cluster.directory().join("controller.log");
        let source = vec![format!("dir:{}", cluster.objects().display())];
        let mut controller = Self { source, objects: cluster.objects(), log, child: None };
        controller.restart()?;
        Ok(controller)
    }

    /// One that takes its objects from an API server, with a log and a lease of one second in a directory; it is not started.
    #[must_use]
    pub fn on_api(kubeconfig: &Path, log: PathBuf) -> Self {
        let source = [format!("kubernetes:{}", kubeconfig.display()), "--lease-duration=1".to_owned()];
        Self { source: source.into(), objects: PathBuf::new(), log, child: None }
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// The binary is not built.
    pub fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.command()?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("starting the controller")?);
        Ok(())
    }

    /// Stops it where it is, or lets it go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn set_stopped(&self, stopped: bool) -> Result<()> {
        let child = self.child.as_ref().context("the controller does not run")?;
        run(Command::new("kill").arg(if stopped { "-STOP" } else { "-CONT" }).arg(child.id().to_string()))?;
        Ok(())
    }

    /// Starts it after it was ended.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> Result<()> {
        let before = self.log().matches(" ready ").count();
        self.launch()?;
        let ready = || (self.log().matches(" ready ").count() > before).then_some(());
        let waited = poll(PATIENCE, "the controller is ready", ready);
        waited.with_context(|| self.log())
    }

    /// The command that starts one: without any capability.
    ///
    /// # Errors
    /// The binary is not built.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]);
        command.arg(binary("portolan")?).arg("controller");
        command.arg("--source").args(&self.source);
        Ok(command)
    }

    /// The file that it writes.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.objects.join("portolan-status.yaml")
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    /// It is not there.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the controller does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends it with SIGTERM, which it must follow with exit code 0.
    ///
    /// # Errors
    /// It does not.
    pub fn terminate(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the controller does not run")?;
        run(Command::new("kill").arg(child.id().to_string()))?;
        let status = poll(PATIENCE, "the controller ends", || child.try_wait().ok()?)?;
        ensure!(status.success(), "it ended with {status}\n{}", self.log());
        Ok(())
    }

    /// What `portolan lb list` says of a service in namespace `shop`.
    ///
    /// # Errors
    /// It fails, or does not know the service.
    pub fn view(&self, service: &str) -> Result<Value> {
        let mut command = Command::new(binary("portolan")?);
        command.args(["lb", "list", "-o", "json", "--source"]).arg(format!("dir:{}", self.objects.display()));
        let list: Value = serde_json::from_str(&run(&mut command)?)?;
        let found = list.as_array().and_then(|list| list.iter().find(|it| it["name"] == service));
        found.cloned().with_context(|| format!("{service} is not in {list}"))
    }

    /// Waits until a service in namespace `shop` has so many addresses; these.
    ///
    /// # Errors
    /// It has not in time.
    pub fn addresses(&self, service: &str, count: usize) -> Result<Vec<String>> {
        let all = || -> Option<Vec<String>> {
            let view = self.view(service).ok()?;
            let addresses = view["addresses"].as_array()?.iter();
            let texts =
                addresses.map(|it| it["address"].as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()?;
            (texts.len() == count).then_some(texts)
        };
        poll(PATIENCE, &format!("{service} has {count} addresses"), all).with_context(|| self.log())
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        read(&self.log)
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- controller ---\n{}", self.log());
        }
        if self.child.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("ending the controller after a test: {error:#}");
        }
    }
}
