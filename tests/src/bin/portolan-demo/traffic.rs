//! The steps under traffic: a rollout and back, and a crash of the agents. No request may fail.

use std::time::Duration;

use anyhow::{Context, Result};
use portolan_tests::lab::{Load, LongLived, Tally, cluster_address, public_address};

use crate::chart;
use crate::objects::{self, PodObject};
use crate::say::Say;
use crate::stage::Stage;

/// Pause of each client between two requests.
const PAUSE: Duration = Duration::from_millis(2);
/// Connections that each of two clients keeps open.
const HELD: usize = 12;

/// How much is done.
pub(crate) struct Pace {
    /// Requests for a chart.
    pub(crate) requests: usize,
    /// How long traffic flows in each state.
    pub(crate) window: Duration,
}

impl Pace {
    /// Fast or at leisure.
    pub(crate) fn new(fast: bool) -> Self {
        let (requests, window) = if fast { (500, 200) } else { (1000, 800) };
        Self { requests, window: Duration::from_millis(window) }
    }
}

/// Clients that ask all the time: a pod at the cluster address, an outside client at the public one, both families.
struct Clients(Vec<Load>);

impl Clients {
    fn start(stage: &Stage) -> Result<Self> {
        let (pod, outside) = (&stage.pod("client")?.netns, &stage.cluster.client);
        let asked = [false, true]
            .into_iter()
            .flat_map(|v6| [(pod, cluster_address(v6)), (outside, public_address(v6))]);
        asked.map(|(netns, to)| Load::start(netns, to, PAUSE)).collect::<Result<_>>().map(Self)
    }

    /// Others take over, without a moment in which nobody asks; what these got.
    fn relieve(&mut self, stage: &Stage) -> Result<Tally> {
        Ok(std::mem::replace(self, Self::start(stage)?).finish())
    }

    fn finish(self) -> Tally {
        let mut all = Tally::default();
        for load in self.0 {
            let tally = load.finish();
            all.failures.extend(tally.failures);
            for (server, count) in tally.by_server {
                *all.by_server.entry(server).or_default() += count;
            }
        }
        all
    }
}

/// Connections that stay open, from both clients.
struct Held([LongLived; 2]);

impl Held {
    fn open(stage: &Stage) -> Result<Self> {
        let pod = LongLived::start(&stage.pod("client")?.netns, cluster_address(false), HELD)?;
        Ok(Self([pod, LongLived::start(&stage.cluster.client, public_address(true), HELD)?]))
    }

    /// Closes them; each must have been answered always, by the pod of this version that it began with.
    fn close(self, say: &mut Say, version: &str, where_to: &str) -> Result<()> {
        let (mut answers, mut wrong) = (0, Vec::new());
        for held in self.0 {
            let tally = held.finish();
            answers += tally.answers();
            wrong.extend(tally.failures);
            let others = tally.by_server.into_keys().filter(|name| version_of(name) != version);
            wrong.extend(others.map(|name| format!("{name} answered")));
        }
        if answers == 0 {
            wrong.push("no answer at all".to_owned());
        }
        let count = 2 * HELD;
        say.claim(
            &format!("{count} open connections stayed with {where_to}: {answers} answers"),
            &wrong.join("\n"),
        )
    }
}

/// Requests of a step so far.
#[derive(Default)]
struct Sum {
    answers: usize,
    failures: Vec<String>,
}

impl Sum {
    fn add(&mut self, tally: Tally) {
        self.answers += tally.answers();
        self.failures.extend(tally.failures);
    }

    fn claim(self, say: &mut Say, what: &str) -> Result<()> {
        let wrong = if self.answers == 0 { vec!["nothing was asked".to_owned()] } else { self.failures };
        say.claim(
            &format!("{what}: {} requests, {} failed", self.answers + wrong.len(), wrong.len()),
            &wrong.join("\n"),
        )
    }
}

/// Step 6.
pub(crate) fn rollout(say: &mut Say, stage: &mut Stage, pace: &Pace) -> Result<()> {
    for (from, to) in [("v1", "v2"), ("v2", "v1")] {
        say.heading(&format!("A rollout from {from} to {to} while traffic flows"))?;
        roll(say, stage, pace, from, to)?;
    }
    Ok(())
}

fn roll(say: &mut Say, stage: &mut Stage, pace: &Pace, from: &str, to: &str) -> Result<()> {
    let of = |version: &str| -> Result<Vec<PodObject>> {
        Ok(objects::pods()?.into_iter().filter(|pod| pod.version.as_deref() == Some(version)).collect())
    };
    let mut sum = Sum::default();
    let held = Held::open(stage)?;
    let mut clients = Clients::start(stage)?;
    say.note(&format!(
        "share of {from} █ and {to} ░ in new connections, from a pod and from outside, IPv4 and IPv6:"
    ));
    show_share(say, stage, pace, &mut clients, &mut sum, [from, to], "before")?;
    for (new, old) in of(to)?.iter().zip(of(from)?) {
        stage.start_pod(new)?;
        stage.set_terminating(&old.name, true);
        stage.publish(None)?;
        // The last of those that began before the change.
        sum.add(clients.relieve(stage)?);
        let change = format!("{} ready, {} ending", new.name, old.name);
        show_share(say, stage, pace, &mut clients, &mut sum, [from, to], &change)?;
    }
    held.close(say, from, &format!("the ending {from} pods they began with"))?;
    for old in of(from)? {
        // First out of the slices, then the process, as after a grace period.
        stage.publish(Some(&old.name))?;
        stage.stop_pod(&old.name)?;
    }
    sum.add(clients.relieve(stage)?);
    let last = show_share(say, stage, pace, &mut clients, &mut sum, [from, to], &format!("{from} removed"))?;
    sum.add(clients.finish());
    let wrong =
        if last[0] == 0 && last[1] > 0 { String::new() } else { format!("{last:?} answers of {from}, {to}") };
    say.claim(&format!("in the end {to} has all new connections"), &wrong)?;
    sum.claim(say, &format!("during the rollout to {to}"))
}

/// Lets traffic flow in the present state; answers of both versions.
fn show_share(
    say: &Say,
    stage: &Stage,
    pace: &Pace,
    clients: &mut Clients,
    sum: &mut Sum,
    versions: [&str; 2],
    what: &str,
) -> Result<[usize; 2]> {
    say.wait(pace.window)?;
    let tally = clients.relieve(stage)?;
    let answers: [usize; 2] = versions.map(|version| {
        let of = tally.by_server.iter().filter(|(name, _)| version_of(name) == version);
        of.map(|(_, count)| count).sum()
    });
    let share = answers[1] as f64 * 100.0 / (answers[0] + answers[1]).max(1) as f64;
    let bar = chart::parts(answers[0], answers[1]);
    say.note(&format!("{what:31} {bar} {share:3.0} % {}  {:5} requests", versions[1], tally.answers()));
    sum.add(tally);
    Ok(answers)
}

/// `v1` of `web-v1-a`.
fn version_of(pod: &str) -> &str {
    pod.split('-').nth(1).unwrap_or_default()
}

/// Step 7.
pub(crate) fn crash(say: &mut Say, stage: &mut Stage, pace: &Pace) -> Result<()> {
    say.heading("Both agents killed and started again while traffic flows")?;
    let mut sum = Sum::default();
    let held = Held::open(stage)?;
    let mut clients = Clients::start(stage)?;
    say.wait(pace.window)?;
    for agent in &mut stage.agents {
        say.command(&format!("kill -9 {}", agent.process().context("an agent has no process")?));
        agent.kill()?;
    }
    sum.add(clients.relieve(stage)?);
    say.wait(pace.window)?;
    let alone = clients.relieve(stage)?;
    say.note("new connections while no agent runs:");
    say.lines(&chart::bars(&alone.by_server));
    say.claim("the kernel goes on balancing alone", &chart::skew(&alone.by_server, &stage.ready()))?;
    sum.add(alone);
    for agent in &mut stage.agents {
        agent.restart()?;
        say.note(&format!(
            "started again as process {}",
            agent.process().context("an agent has no process")?
        ));
    }
    say.wait(pace.window)?;
    held.close(say, "v1", "the pods they began with")?;
    change_after_restart(say, stage, pace, &mut clients, &mut sum)?;
    sum.add(clients.finish());
    sum.claim(say, "before, without and after the agents")
}

/// An endpoint that goes away after the restart gets no new connection.
fn change_after_restart(
    say: &mut Say,
    stage: &mut Stage,
    pace: &Pace,
    clients: &mut Clients,
    sum: &mut Sum,
) -> Result<()> {
    let gone = stage.ready().pop().context("no pod is ready")?;
    stage.set_terminating(&gone, true);
    stage.publish(None)?;
    sum.add(clients.relieve(stage)?);
    say.wait(pace.window)?;
    let after = clients.relieve(stage)?;
    let names = after.by_server.keys().cloned().collect::<Vec<_>>().join(" and ");
    let wrong = after.by_server.get(&gone).map(|count| format!("{gone} still got {count}"));
    sum.add(after);
    say.claim(
        &format!("slices edited after the restart: {gone} gets no new connection, only {names}"),
        &wrong.unwrap_or_default(),
    )?;
    stage.set_terminating(&gone, false);
    stage.publish(None)
}
