//! containerd and runc inside a node. They see mount and process namespaces of their own: the machine's `/etc/cni`,
//! `/opt/cni`, `/run` and `/var/lib` stay as they are, and all processes end with the first.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{Agent, Node, poll, run};

/// Time for containerd to answer, and for a container to come or go.
const PATIENCE: Duration = Duration::from_secs(20);

/// Name of the image that every [`Containerd`] has.
const IMAGE: &str = "portolan.test/busybox:latest";

/// Makes the namespaces' mounts and becomes containerd. Arguments: CNI configuration, CNI plugins, its configuration.
const START: &str = r#"set -e
for place in /etc /opt /run /var/lib; do mount -t tmpfs private $place; done
mkdir -p /etc/cni/net.d /opt/cni/bin
mount --bind "$1" /etc/cni/net.d
mount --bind "$2" /opt/cni/bin
exec containerd --config "$3""#;

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    directory: PathBuf,
    /// Of containers; also the name of their cgroup.
    namespace: String,
    /// `unshare`, whose only child is containerd.
    child: Child,
}

impl Containerd {
    /// Starts it in a node whose agent was told to install the CNI plugin, and imports an image made of busybox.
    ///
    /// # Errors
    /// A tool is missing, or containerd does not answer; the error has its log.
    pub fn start(node: &Node, agent: &Agent) -> Result<Self> {
        let directory = agent.directory().join("containerd");
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("config.toml"), configuration(&directory))?;
        let log = File::create(directory.join("log"))?;
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "nsenter"])
            .arg(format!("--net={}", node.netns.path()))
            .args(["sh", "-c", START, "sh"])
            .args([agent.directory().join("net.d"), agent.directory().join("bin")])
            .arg(directory.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting unshare")?;
        let containerd = Self { namespace: node.netns.name().to_owned(), directory, child };
        let answers = || containerd.ctr("version").ok();
        poll(PATIENCE, "containerd answers", answers).with_context(|| containerd.log())?;
        let image = image(&containerd.directory)?;
        containerd.ctr(&format!("images import --no-unpack {}", image.display()))?;
        Ok(containerd)
    }

    /// Runs `ctr`; the words of `line` are separated by spaces.
    ///
    /// # Errors
    /// As [`run`].
    pub fn ctr(&self, line: &str) -> Result<String> {
        run(self.command()?.args(line.split_whitespace()))
    }

    /// Starts a container with an interface from the CNI plugin; `command` is for its shell.
    ///
    /// # Errors
    /// It does not come up; the error has what `ctr` said.
    pub fn container(&self, name: &str, command: &str) -> Result<Container<'_>> {
        let said = self.directory.join(format!("{name}.said"));
        let log = File::create(&said)?;
        // In the foreground: `ctr` calls the plugin's DEL only when it sees the container end.
        let child = self
            .command()?
            .args(["run", "--rm", "--cni", "--snapshotter", "native", IMAGE, name, "/bin/sh", "-c", command])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting ctr")?;
        let mut container =
            Container { containerd: self, name: name.to_owned(), pid: String::new(), child: Some(child) };
        let up = poll(PATIENCE, "the container runs and has an interface", || {
            match container.child.as_mut()?.try_wait() {
                Ok(None) => {
                    container.pid = self.task(name).ok()?;
                    container.run("ip link show dev eth0").ok().map(|_| Ok(()))
                }
                ended => Some(Err(anyhow::anyhow!("ctr ended: {ended:?}"))),
            }
        });
        up.and_then(|it| it).with_context(|| std::fs::read_to_string(said).unwrap_or_default())?;
        Ok(container)
    }

    /// The container id that the CNI plugin is told.
    #[must_use]
    pub fn attachment(&self, name: &str) -> String {
        format!("{}-{name}", self.namespace)
    }

    /// Process id of a container's first process, as containerd sees it.
    fn task(&self, name: &str) -> Result<String> {
        let tasks = self.ctr("tasks list")?;
        let mut rows = tasks.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let pid = rows
            .find_map(|row| (row.first() == Some(&name)).then(|| row.get(1).map(|pid| (*pid).to_owned())));
        pid.flatten().with_context(|| format!("no task {name} in {tasks}"))
    }

    /// A command in containerd's namespaces.
    fn inside(&self) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--net", "--target", &self.first()?]);
        Ok(command)
    }

    /// `ctr`, in containerd's namespaces.
    fn command(&self) -> Result<Command> {
        let mut command = self.inside()?;
        command.args(["ctr", "--address"]);
        command.arg(self.directory.join("socket")).args(["--namespace", &self.namespace]);
        Ok(command)
    }

    /// Process id of containerd.
    fn first(&self) -> Result<String> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        Ok(children.split_whitespace().next().context("containerd has ended")?.to_owned())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The first process takes all others of its namespace with it, and `unshare` ends with the first.
        let killed = self.first().and_then(|pid| run(Command::new("kill").args(["-KILL", &pid])));
        if let Err(error) = killed.or_else(|_| self.child.kill().map(|()| String::new())) {
            eprintln!("ending containerd: {error}");
        }
        let _ = self.child.wait();
        let emptied = poll(PATIENCE, "containers' cgroups are removed", || {
            remove_cgroups(Path::new("/sys/fs/cgroup"), &self.namespace).ok()
        });
        if let Err(error) = emptied {
            eprintln!("{error:#}");
        }
    }
}

/// Removes `name` in each cgroup hierarchy below `root`, or in `root` if that is the only one.
fn remove_cgroups(root: &Path, name: &str) -> std::io::Result<()> {
    fn remove(directory: &Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(directory)?.flatten() {
            if entry.file_type()?.is_dir() {
                remove(&entry.path())?;
            }
        }
        std::fs::remove_dir(directory)
    }
    let hierarchies = std::fs::read_dir(root)?.flatten().map(|entry| entry.path());
    let mut ours = hierarchies.chain([root.to_owned()]).map(|path| path.join(name)).filter(|it| it.is_dir());
    ours.try_for_each(|path| remove(&path))
}

/// A running container. Dropping it ends and removes it.
#[derive(Debug)]
pub struct Container<'a> {
    containerd: &'a Containerd,
    name: String,
    /// As containerd sees it.
    pid: String,
    child: Option<Child>,
}

impl Container<'_> {
    /// Runs a command line inside; the words are separated by spaces. It enters the container's namespaces itself:
    /// `ctr tasks exec` now and then loses what a process printed that ended at once.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(&self, line: &str) -> Result<String> {
        let mut command = self.containerd.inside()?;
        command.args(["nsenter", "--all", "--target", &self.pid]);
        run(command.args(line.split_whitespace()))
    }

    /// Kills it and waits until the runtime has removed it.
    ///
    /// # Errors
    /// It does not end.
    pub fn remove(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let killed = self.containerd.ctr(&format!("tasks kill --signal SIGKILL {}", self.name));
        let ended = poll(PATIENCE, "ctr ends with its container", || child.try_wait().ok().flatten());
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        // A container that could not be killed has ended before, and that is what was wanted.
        match ended {
            Ok(_) => Ok(()),
            Err(error) => bail!("{error:#}; {killed:?}"),
        }
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("removing container {}: {error:#}", self.name);
        }
    }
}

fn configuration(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "version = 2\nroot = \"{directory}/root\"\nstate = \"{directory}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\n  address = \"{directory}/socket\"\n[ttrpc]\n  address = \"{directory}/socket.ttrpc\"\n"
    )
}

/// An archive in the OCI image layout: one layer, with busybox and links to it.
fn image(directory: &Path) -> Result<PathBuf> {
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new).into_iter().find(|path| path.is_file());
    let busybox = busybox.context("busybox is missing: run `cargo xtask setup`")?;
    let bin = directory.join("rootfs/bin");
    std::fs::create_dir_all(&bin)?;
    std::fs::copy(busybox, bin.join("busybox"))?;
    for applet in ["cat", "echo", "httpd", "ip", "mkdir", "nc", "ping", "sh", "sleep", "timeout", "wget"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet))?;
    }
    let layout = directory.join("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256"))?;
    let layer = directory.join("layer.tar");
    tar(&directory.join("rootfs"), &layer)?;
    let (layer, layer_size) = blob(&layout, &std::fs::read(layer)?)?;
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    let (config, config_size) = blob(&layout, config.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size,
        }],
    });
    let (manifest, size) = blob(&layout, manifest.to_string().as_bytes())?;
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size,
        "annotations": { "io.containerd.image.name": IMAGE },
    }]});
    std::fs::write(layout.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
    std::fs::write(layout.join("index.json"), index.to_string())?;
    let archive = directory.join("image.tar");
    tar(&layout, &archive)?;
    Ok(archive)
}

fn tar(directory: &Path, archive: &Path) -> Result<()> {
    run(Command::new("tar").arg("-cf").arg(archive).arg("-C").arg(directory).arg(".")).map(drop)
}

/// Stores a blob under its digest; the digest and the size in bytes.
fn blob(layout: &Path, bytes: &[u8]) -> Result<(String, usize)> {
    let fresh = layout.join("blobs/fresh");
    std::fs::write(&fresh, bytes)?;
    let said = run(Command::new("sha256sum").arg(&fresh))?;
    let digest = said.split_whitespace().next().context("sha256sum says nothing")?;
    std::fs::rename(fresh, layout.join("blobs/sha256").join(digest))?;
    Ok((format!("sha256:{digest}"), bytes.len()))
}
