//! `portolan trace` shows what becomes of live packets, as tcpdump and the clients see it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Stdio};

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{Agent, Capture, Shop, cluster_address, get, node_address, run};
use serde_json::{Value, json};

/// A running trace. Dropping it ends the process.
struct Trace {
    child: Child,
    notes: BufReader<ChildStderr>,
}

impl Trace {
    /// Starts a trace and waits until it watches.
    fn start(agent: &Agent, options: &str) -> Result<Self> {
        let mut command = agent.view_command(&format!("trace -o json {options}"))?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let notes = BufReader::new(child.stderr.take().context("the trace has no stderr")?);
        let mut trace = Self { child, notes };
        let mut said = String::new();
        while !said.contains("watching") {
            ensure!(trace.notes.read_line(&mut said)? > 0, "the trace ended: {said}");
        }
        Ok(trace)
    }

    /// Ends it as Ctrl-C does; the packets.
    fn stop(mut self) -> Result<Vec<Value>> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        self.rest()
    }

    /// Waits for its end; the packets.
    fn rest(&mut self) -> Result<Vec<Value>> {
        let mut text = String::new();
        self.child.stdout.take().context("the trace has no stdout")?.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the trace failed: {status}");
        text.lines().map(|line| serde_json::from_str(line).context("reading a packet")).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn named<'a>(packets: &'a [Value], program: &str, flags: &str) -> Result<&'a Value> {
    let found = packets.iter().find(|it| it["program"] == program && it["packet"]["flags"] == flags);
    found.with_context(|| format!("{program} saw no [{flags}] among {packets:#?}"))
}

/// A request and its answer in the trace, against what tcpdump sees at the client and who answered.
fn a_request_is_shown(shop: &Shop, v6: bool) -> Result<()> {
    let vip = cluster_address(v6);
    let capture = Capture::start(&shop.client.netns, "eth0", "tcp")?;
    let trace = Trace::start(&shop.agents[0], &format!("--host {}", vip.ip()))?;
    let (name, _) = get(&shop.client.netns, vip)?;
    let packets = trace.stop()?;
    let backend = shop.backends.iter().find(|it| it.pod.name == name).context("nobody's answer")?;
    let backend = SocketAddr::new(backend.pod.address(v6), 8080);

    let syn = named(&packets, "from_pod", "S")?;
    ensure!(syn["packet"]["destination"] == vip.to_string(), "{syn:#}");
    ensure!(syn["became"]["destination"] == backend.to_string(), "{syn:#}, but {backend} answered");
    let pod = syn["pod"].as_str().unwrap_or_default();
    ensure!(pod.ends_with(&format!("/{}", shop.client.name)), "{syn:#}");
    let client = syn["packet"]["source"].as_str().context("no source")?.to_owned();
    let answer = packets.iter().find(|it| it["became"]["source"] == vip.to_string());
    let answer = answer.with_context(|| format!("no answer became the service's: {packets:#?}"))?;
    ensure!(answer["packet"]["source"] == backend.to_string(), "{answer:#}");
    ensure!(answer["became"]["destination"] == client, "{answer:#}");

    let expected = json!({
        "frontend": vip.to_string(),
        "service": "shop/web:http",
        "backend": backend.to_string(),
        "backendPod": format!("shop/{name}"),
    });
    for packet in [syn, answer] {
        ensure!(packet["service"] == expected, "{packet:#}, not {expected:#}");
    }

    let port = client.rsplit(':').next().context("no port")?;
    let seen = capture.until(&["Flags [S]", port])?;
    let sent = seen.iter().filter(|line| line.contains("Flags [S]") && line.contains(port)).count();
    let shown =
        packets.iter().filter(|it| it["program"] == "from_pod" && it["packet"]["flags"] == "S").count();
    ensure!(sent == shown, "tcpdump saw {sent} SYN, the trace {shown}: {seen:#?}");
    Ok(())
}

#[test]
fn a_trace_shows_each_packet_before_and_after_and_says_why_one_is_dropped() -> Result<()> {
    let shop = Shop::open(&[0])?;
    for v6 in [false, true] {
        a_request_is_shown(&shop, v6)?;
        let nobody = SocketAddr::new(cluster_address(v6).ip(), 81);
        let trace = Trace::start(&shop.agents[0], "--drops")?;
        get(&shop.client.netns, cluster_address(v6))?;
        get(&shop.client.netns, nobody).expect_err("the service has no such port");
        let packets = trace.stop()?;
        let drop = named(&packets, "from_pod", "S")?;
        ensure!(drop["outcome"] == "rejected-unknown-port" && drop["dropped"] == true, "{drop:#}");
        ensure!(drop["packet"]["destination"] == nobody.to_string() && drop["became"].is_null(), "{drop:#}");
        ensure!(drop["service"].is_null(), "no service has that port: {drop:#}");
        ensure!(packets.iter().all(|it| it["dropped"] == true), "{packets:#?}");
    }
    Ok(())
}

#[test]
fn packets_to_a_node_port_and_refused_ones_are_shown_with_their_service() -> Result<()> {
    let shop = Shop::open(&[0])?;
    for v6 in [false, true] {
        let to = node_address(0, v6);
        let trace = Trace::start(&shop.agents[0], &format!("--port {}", to.port()))?;
        get(&shop.cluster.client, to)?;
        let packets = trace.stop()?;
        let syn = named(&packets, "from_uplink", "S")?;
        let seen = &syn["service"];
        ensure!(seen["frontend"] == format!("NodePort {}", to.port()), "{syn:#}");
        ensure!(seen["service"] == "shop/web:http" && seen["backendPod"] == "shop/b0", "{syn:#}");
    }
    shop.publish(|_| None)?;
    shop.wait_for_backends(0)?;
    let trace = Trace::start(&shop.agents[0], "--drops")?;
    get(&shop.client.netns, cluster_address(false)).expect_err("there is no backend");
    let packets = trace.stop()?;
    let drop = named(&packets, "from_pod", "S")?;
    ensure!(drop["outcome"] == "rejected-no-backend", "{drop:#}");
    ensure!(
        drop["service"]["service"] == "shop/web:http" && drop["service"]["backend"].is_null(),
        "{drop:#}"
    );
    Ok(())
}

#[test]
fn a_trace_ends_by_itself_and_there_is_one_at_a_time() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let first = Trace::start(&shop.agents[0], "--seconds 60")?;
    let refused =
        run(&mut shop.agents[0].view_command("trace --seconds 1")?).expect_err("one watches already");
    ensure!(format!("{refused:#}").contains("end the other `portolan trace`"), "{refused:#}");
    first.stop()?;

    // Whoever is killed leaves nothing that goes on for ever, and after its time nobody is kept out.
    let mut killed = Trace::start(&shop.agents[0], "--seconds 1")?;
    killed.child.kill()?;
    killed.child.wait()?;
    portolan_tests::lab::poll(std::time::Duration::from_secs(5), "the killed one's time is over", || {
        Trace::start(&shop.agents[0], "--count 1 --seconds 30").ok()
    })
    .and_then(|mut counted| {
        get(&shop.client.netns, cluster_address(false))?;
        let packets = counted.rest()?;
        ensure!(packets.len() == 1, "{packets:#?}");
        Ok(())
    })?;

    let (host, wrong) = (cluster_address(false).ip(), Trace::start(&shop.agents[0], "--port 1234")?);
    get(&shop.client.netns, cluster_address(false))?;
    let packets = wrong.stop()?;
    ensure!(packets.is_empty(), "none of them has port 1234: {packets:#?}");
    let few = Trace::start(&shop.agents[0], &format!("--host {host} --sample 4096"))?;
    get(&shop.client.netns, cluster_address(false))?;
    let packets = few.stop()?;
    ensure!(packets.len() < 5, "one in 4,096 of about ten: {packets:#?}");
    Ok(())
}
