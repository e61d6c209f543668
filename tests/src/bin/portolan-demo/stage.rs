//! The cluster of the story: agents, pods with their web servers, and the objects that tell of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_tests::lab::{Agent, AgentOptions, Cluster, Pod, get, poll, run};
use serde_json::Value;

use crate::keep::Record;
use crate::objects::{Endpoint, PodObject, slices};
use crate::serve::PORT;

/// Time for a server to start and for an agent to carry out a change; both take milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that was made, in the order in which it goes away.
pub(crate) struct Stage {
    pods: BTreeMap<String, Running>,
    /// The agents.
    pub(crate) agents: [Agent; 2],
    /// Client, router and nodes.
    pub(crate) cluster: Cluster,
    record: Record,
}

/// A pod with its process.
pub(crate) struct Running {
    server: Option<Server>,
    /// The pod.
    pub(crate) pod: Pod,
    /// What its YAML says.
    pub(crate) object: PodObject,
    /// Its state in the service's slices.
    terminating: bool,
}

impl Stage {
    /// Makes the topology and starts the agents.
    pub(crate) fn open() -> Result<Self> {
        let cluster = Cluster::new()?;
        let record = Record::of(&cluster)?;
        cluster.write_example("nodes.yaml")?;
        cluster.write_example("web.yaml")?;
        let options = AgentOptions { install_cni: true, ..AgentOptions::default() };
        let agents = cluster.start_agents(&options)?;
        Ok(Self { pods: BTreeMap::new(), agents, cluster, record })
    }

    /// What a later invocation needs to take it down.
    pub(crate) fn record(&self) -> Record {
        self.record.clone()
    }

    /// Does what the kubelet does for a pod that was scheduled: network, container, readiness, status.
    pub(crate) fn start_pod(&mut self, object: &PodObject) -> Result<()> {
        let pod = Pod::add(&self.agents[object.node], &object.name)?;
        let server = object.version.is_some().then(|| Server::start(&pod)).transpose()?;
        if server.is_some() {
            self.probe(&pod, object.node)?;
        }
        let running = Running { server, pod, object: object.clone(), terminating: false };
        self.pods.insert(object.name.clone(), running);
        self.write_pods()
    }

    /// A readiness probe, from the node to the pod.
    fn probe(&self, pod: &Pod, node: usize) -> Result<()> {
        let netns = &self.cluster.nodes[node].netns;
        let ready = || get(netns, (pod.address(false), PORT).into()).ok();
        poll(PATIENCE, &format!("the node's probe of {} succeeds", pod.name), ready).map(drop)
    }

    /// Ends the process of a pod and removes its network.
    pub(crate) fn stop_pod(&mut self, name: &str) -> Result<()> {
        if let Some(mut running) = self.pods.remove(name) {
            running.end_process()?;
        }
        self.write_pods()
    }

    /// Marks a pod as ending or not; [`publish`](Self::publish) tells it.
    pub(crate) fn set_terminating(&mut self, name: &str, terminating: bool) {
        if let Some(running) = self.pods.get_mut(name) {
            running.terminating = terminating;
        }
    }

    fn write_pods(&self) -> Result<()> {
        let all: Result<String> =
            self.pods.values().map(|running| running.object.running(&running.pod.addresses)).collect();
        self.cluster.write("pods.yaml", &all?)
    }

    /// Writes the slices of all web servers but `without`, and waits until both agents say they carried that out.
    pub(crate) fn publish(&self, without: Option<&str>) -> Result<()> {
        let shown = self.web().filter(|running| Some(running.pod.name.as_str()) != without);
        let (mut endpoints, mut ready) = (Vec::new(), BTreeSet::new());
        for Running { pod, object, terminating, .. } in shown {
            if !terminating {
                ready.extend(pod.addresses.iter().copied());
            }
            let (addresses, name) = (pod.addresses.clone(), pod.name.clone());
            endpoints.push(Endpoint { addresses, name, node: object.node, terminating: *terminating });
        }
        self.cluster.write("slices.yaml", &slices(&endpoints))?;
        self.agents.iter().try_for_each(|agent| {
            let same = || (backends(agent).ok()? == ready).then_some(());
            poll(PATIENCE, "an agent has the backends of the slices", same)
        })
    }

    /// The pods with a web server.
    pub(crate) fn web(&self) -> impl Iterator<Item = &Running> {
        self.pods.values().filter(|running| running.object.version.is_some())
    }

    /// Names of the pods that get new connections.
    pub(crate) fn ready(&self) -> Vec<String> {
        self.web().filter(|running| !running.terminating).map(|running| running.pod.name.clone()).collect()
    }

    /// All pods.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Running> {
        self.pods.values()
    }

    /// A pod that is known to run.
    pub(crate) fn pod(&self, name: &str) -> Result<&Pod> {
        Ok(&self.pods.get(name).with_context(|| format!("there is no pod {name}"))?.pod)
    }
}

impl Running {
    fn end_process(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), |mut server| server.stop())
    }
}

/// The backends of `shop/web` that an agent has in the kernel.
fn backends(agent: &Agent) -> Result<BTreeSet<IpAddr>> {
    let service: Value = serde_json::from_str(&agent.view("service show shop/web -o json")?)?;
    let ports = service["ports"].as_array().into_iter().flatten();
    let backends = ports.flat_map(|port| port["backends"].as_array().into_iter().flatten());
    Ok(backends.filter_map(|backend| backend["address"].as_str()?.parse().ok()).collect())
}

/// A web server, as a child process in its pod.
struct Server(Child);

impl Server {
    fn start(pod: &Pod) -> Result<Self> {
        let mut command = pod.netns.command(std::env::current_exe()?);
        command.args(["--serve", &pod.name]).stdin(Stdio::null()).stdout(Stdio::null());
        // Ctrl-C is for the story; servers end when their pods do.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Self(command.spawn().with_context(|| format!("starting the server of {}", pod.name))?))
    }

    /// SIGTERM, as the kubelet sends; SIGKILL to one that does not listen.
    fn stop(&mut self) -> Result<()> {
        run(Command::new("kill").args(["-TERM", &self.0.id().to_string()]))?;
        poll(PATIENCE, "a web server ends", || self.0.try_wait().ok().flatten()).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // It may end in this moment by itself.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
