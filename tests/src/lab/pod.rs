//! Pods, made by calling the CNI plugin as a container runtime does.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Agent, Netns, binary};

/// A pod without a container: a namespace with an interface.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace; the interface is `eth0`.
    pub netns: Netns,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    runtime: Runtime,
    /// What the runtime asks for by capabilities, in each call.
    asked: Value,
    /// What ADD answered, which CHECK and DEL get back.
    result: Option<Value>,
}

impl Pod {
    /// Adds a pod in namespace `shop`.
    ///
    /// # Errors
    /// The plugin says why.
    pub fn add(agent: &Agent, name: &str) -> Result<Self> {
        Self::add_to(agent, name, Netns::new(name)?)
    }

    /// As [`add`](Self::add), in a namespace that is there already.
    ///
    /// # Errors
    /// The plugin says why; the namespace is gone then.
    pub fn add_to(agent: &Agent, name: &str, netns: Netns) -> Result<Self> {
        Self::add_as(agent, name, netns, json!({}))
    }

    /// As [`add`](Self::add), with a `runtimeConfig`.
    ///
    /// # Errors
    /// The plugin says why.
    pub fn add_with(agent: &Agent, name: &str, asked: Value) -> Result<Self> {
        Self::add_as(agent, name, Netns::new(name)?, asked)
    }

    fn add_as(agent: &Agent, name: &str, netns: Netns, asked: Value) -> Result<Self> {
        let mut pod = Self {
            name: name.to_owned(),
            netns,
            addresses: Vec::new(),
            runtime: Runtime::of(agent),
            asked,
            result: None,
        };
        let output = pod.call("ADD")?;
        let answer: Value = serde_json::from_slice(&output.stdout).context("reading the plugin's answer")?;
        if !output.status.success() {
            bail!("adding pod {name}: {answer}");
        }
        for ip in answer["ips"].as_array().context("the answer has no ips")? {
            let address = ip["address"].as_str().context("an ip has no address")?;
            let address = address.split('/').next().unwrap_or_default();
            pod.addresses.push(address.parse().with_context(|| format!("reading address {address}"))?);
        }
        pod.result = Some(answer);
        if let Some(cgroup) = agent.cgroup() {
            pod.netns.set_cgroup(cgroup.path());
        }
        Ok(pod)
    }

    /// Its address in a family.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn address(&self, v6: bool) -> IpAddr {
        *self.addresses.iter().find(|addr| addr.is_ipv6() == v6).expect("pods have both families")
    }

    /// Calls the plugin for this pod.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn call(&self, command: &str) -> Result<Output> {
        let mut extra = json!({ "runtimeConfig": self.asked });
        if let (Some(result), true) = (&self.result, command != "ADD") {
            extra["prevResult"] = result.clone();
        }
        self.runtime.call(command, (self.netns.name(), &self.netns.path(), &self.name), &extra)
    }
}

/// Who calls the plugin. It knows where the agent is, running or not.
#[derive(Clone, Debug)]
pub struct Runtime {
    socket: std::path::PathBuf,
    state: std::path::PathBuf,
}

impl Runtime {
    /// One that uses this agent.
    #[must_use]
    pub fn of(agent: &Agent) -> Self {
        Self { socket: agent.socket(), state: agent.directory().join("state") }
    }

    /// Calls the plugin for interface `eth0` of a container: its id, its namespace's path, its pod's name in namespace
    /// `shop`. `extra` is merged into the configuration.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn call(
        &self,
        command: &str,
        (container, netns, name): (&str, &str, &str),
        extra: &Value,
    ) -> Result<Output> {
        let mut plugin = plugin(command)?;
        plugin.env("CNI_CONTAINERID", container).env("CNI_NETNS", netns).env("CNI_IFNAME", "eth0");
        plugin.env("CNI_ARGS", format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}"));
        feed(&mut plugin, &self.config("1.0.0", extra))
    }

    /// Calls the plugin for no pod, as [`operate`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn operate(&self, command: &str, extra: &Value) -> Result<Output> {
        feed(&mut plugin(command)?, &self.config("1.1.0", extra))
    }

    fn config(&self, version: &str, extra: &Value) -> Value {
        let mut config = json!({
            "cniVersion": version, "name": "portolan", "type": "portolan-cni",
            "portolan": { "socket": self.socket, "stateDir": self.state },
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(error) = self.call("DEL") {
            eprintln!("deleting pod {}: {error:#}", self.name);
        }
    }
}

/// Calls the plugin for no pod: GC and STATUS. `extra` is merged into the configuration.
///
/// # Errors
/// It cannot be started.
pub fn operate(agent: &Agent, command: &str, extra: &Value) -> Result<Output> {
    Runtime::of(agent).operate(command, extra)
}

/// The plugin, as a runtime calls it.
fn plugin(command: &str) -> Result<Command> {
    let mut plugin = Command::new(binary("portolan-cni")?);
    plugin.env_clear().env("CNI_COMMAND", command).env("CNI_PATH", "/opt/cni/bin");
    plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(plugin)
}

/// Runs it with a configuration on its standard input.
fn feed(plugin: &mut Command, config: &Value) -> Result<Output> {
    let mut child = plugin.spawn().context("starting the CNI plugin")?;
    child.stdin.take().context("the plugin has no input")?.write_all(config.to_string().as_bytes())?;
    Ok(child.wait_with_output()?)
}
