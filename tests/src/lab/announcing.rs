//! Nodes that announce addresses on layer 2, each a process, and one network segment with them and a client.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Netns, binary, poll, run};

/// A node's process. Dropping it ends it without a word to the others.
#[derive(Debug)]
pub struct Announcing {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Announcing {
    /// Starts it on `eth0` of a namespace. It knows nothing yet.
    ///
    /// # Errors
    /// The binary is not built.
    pub fn start(netns: &Netns, node: &str) -> Result<Self> {
        let mut command = netns.command(binary("portolan-announcer")?);
        command.args(["--interface", "eth0", "--node-name", node]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("it has no input")?;
        let output = BufReader::new(child.stdout.take().context("it has no output")?);
        Ok(Self { child, input, output })
    }

    /// Tells it all nodes, by name, with their addresses.
    ///
    /// # Errors
    /// It refuses them, and says why.
    pub fn set_members(&mut self, members: &BTreeMap<String, Vec<String>>) -> Result<()> {
        self.tell(&json!({ "members": members }))
    }

    /// Tells it all addresses; each as `{"address": …}`, with `eligible` and `interfaces` if they are limited.
    ///
    /// # Errors
    /// It refuses them, and says why.
    pub fn set_vips(&mut self, vips: &[Value]) -> Result<()> {
        self.tell(&json!({ "vips": vips }))
    }

    /// Its status.
    ///
    /// # Errors
    /// It has ended.
    pub fn status(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask(&json!("status"))?)?)
    }

    /// Waits until its status is as wanted.
    ///
    /// # Errors
    /// It is not so in time; the error has the status.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let polled = poll(PATIENCE, what, || self.status().ok().filter(&wanted));
        polled.with_context(|| format!("{:#?}", self.status()))
    }

    /// Whether it owns an address, as it says.
    ///
    /// # Errors
    /// It has ended.
    pub fn owns(&mut self, vip: &str) -> Result<bool> {
        let status = self.status()?;
        let all = status["vips"].as_array().context("no addresses")?;
        Ok(all.iter().any(|it| it["address"] == vip && it["ours"] == true))
    }

    /// Has it give all up and end.
    ///
    /// # Errors
    /// It has ended already.
    pub fn withdraw(mut self) -> Result<()> {
        self.tell(&json!("withdraw"))
    }

    /// Stops the process where it is (SIGSTOP).
    ///
    /// # Errors
    /// It has ended.
    pub fn stop(&self) -> Result<()> {
        self.signal("-STOP")
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// It has ended.
    pub fn go_on(&self) -> Result<()> {
        self.signal("-CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        run(Command::new("kill").args([signal, &self.child.id().to_string()])).map(drop)
    }

    fn tell(&mut self, wish: &Value) -> Result<()> {
        let answer = self.ask(wish)?;
        ensure!(answer.trim() == "done", "{wish}: {answer}");
        Ok(())
    }

    fn ask(&mut self, wish: &Value) -> Result<String> {
        writeln!(self.input, "{wish}")?;
        self.input.flush()?;
        let mut answer = String::new();
        if self.output.read_line(&mut answer)? == 0 {
            bail!("{wish}: the announcer has ended");
        }
        Ok(answer)
    }
}

impl Drop for Announcing {
    fn drop(&mut self) {
        // One that withdrew is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One network segment: a switch, nodes and a client, all with `eth0` on it, 192.0.2.0/24 and 2001:db8:1::/64. Node 0 is
/// `node1` at 192.0.2.11 and 2001:db8:1::11; its Ethernet address ends in `:11`, the client's in `:99`.
#[derive(Debug)]
pub struct Segment {
    /// The bridge `br0`, with a port of each node's name and `client`.
    pub switch: Netns,
    /// The nodes.
    pub nodes: Vec<Netns>,
    /// The client.
    pub client: Netns,
}

impl Segment {
    /// Makes it, with at most nine nodes.
    ///
    /// # Errors
    /// Not root, as a rule.
    pub fn new(nodes: usize) -> Result<Self> {
        let nodes = (1..=nodes).map(|number| Netns::new(&format!("n{number}")));
        let segment = Self {
            switch: Netns::new("switch")?,
            nodes: nodes.collect::<Result<_>>()?,
            client: Netns::new("client")?,
        };
        segment.switch.ip("link add br0 type bridge")?;
        segment.switch.ip("link set br0 up")?;
        for (number, node) in segment.nodes.iter().enumerate() {
            segment.plug(node, &node_name(number), number + 11)?;
        }
        segment.plug(&segment.client, "client", 99)?;
        Ok(segment)
    }

    /// All nodes as members.
    #[must_use]
    pub fn members(&self) -> BTreeMap<String, Vec<String>> {
        let member = |number| {
            let host = number + 11;
            (node_name(number), vec![format!("192.0.2.{host}"), format!("2001:db8:1::{host}")])
        };
        (0..self.nodes.len()).map(member).collect()
    }

    /// Starts an announcer on a node and tells it everything.
    ///
    /// # Errors
    /// As [`Announcing::start`].
    pub fn announce(&self, node: usize, vips: &[Value]) -> Result<Announcing> {
        let mut announcing = Announcing::start(&self.nodes[node], &node_name(node))?;
        announcing.set_vips(vips)?;
        announcing.set_members(&self.members())?;
        Ok(announcing)
    }

    /// The Ethernet address of a node.
    #[must_use]
    pub fn mac(&self, node: usize) -> String {
        format!("02:00:00:00:00:{}", node + 11)
    }

    fn plug(&self, netns: &Netns, port: &str, host: usize) -> Result<()> {
        let switch = self.switch.name();
        let mac = format!("02:00:00:00:00:{host}");
        netns.ip(&format!("link add eth0 address {mac} type veth peer name {port} netns {switch}"))?;
        self.switch.ip(&format!("link set {port} master br0 up"))?;
        netns.ip("link set eth0 up")?;
        netns.ip(&format!("address add 192.0.2.{host}/24 dev eth0"))?;
        netns.ip(&format!("address add 2001:db8:1::{host}/64 dev eth0 nodad"))?;
        Ok(())
    }
}

fn node_name(number: usize) -> String {
    format!("node{}", number + 1)
}

/// Time for a status to become what is wanted.
const PATIENCE: Duration = Duration::from_secs(20);
