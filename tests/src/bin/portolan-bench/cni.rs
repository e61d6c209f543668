//! How long a container runtime waits for a pod's network.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{Agent, Pod};

use crate::net::node;
use crate::report::{Goal, Row, Section, Unit, quantile, seconds};

const HOW: &str = "The plugin's process from its start to its end, as a container runtime calls it, with a running agent: \
address on disk, veth pair, addresses of both families, routes, neighbours, programs attached before the interface \
comes up. The pod's namespace exists already. In parallel: all at once, so that each waits for most of the others on a \
small machine.";

/// Pods added at once.
const PARALLEL: usize = 50;

pub(crate) fn measure(quick: bool) -> Result<Section> {
    let (_cluster, agent) = node::start()?;
    let (sequential, rounds) = if quick { (20, 1) } else { (150, 3) };
    let (add, del) = one_by_one(&agent, sequential)?;
    let mut parallel = Vec::new();
    let mut whole = Vec::new();
    let pods =
        (0..PARALLEL).map(|number| Pod::add(&agent, &format!("p{number}"))).collect::<Result<Vec<_>>>()?;
    for _ in 0..rounds {
        let begun = all_at_once(&pods)?;
        whole.push(begun.iter().copied().fold(0.0, f64::max));
        parallel.extend(begun);
    }
    let p99 = |samples: &[f64]| format!("p99 {}", seconds(quantile(samples, 0.99)));
    let (add_p99, del_p99, parallel_p99) = (p99(&add), p99(&del), p99(&parallel));
    let rows = vec![
        Row::new("ADD, one after the other", Unit::Seconds, add).goal(Goal::AtMost(0.010)).beside(add_p99),
        Row::new("DEL, one after the other", Unit::Seconds, del).beside(del_p99),
        Row::new(format!("ADD, {PARALLEL} in parallel"), Unit::Seconds, parallel).beside(parallel_p99),
        Row::new(format!("ADD, {PARALLEL} in parallel: until the last is done"), Unit::Seconds, whole),
    ];
    Ok(Section { name: "cni", title: "Pods: CNI ADD", how: HOW, rows })
}

/// Seconds of ADD and DEL of a pod, again and again.
fn one_by_one(agent: &Agent, count: u32) -> Result<(Vec<f64>, Vec<f64>)> {
    let pod = Pod::add(agent, "pod")?;
    let (mut add, mut del) = (Vec::new(), Vec::new());
    for _ in 0..count {
        del.push(call(&pod, "DEL")?.as_secs_f64());
        add.push(call(&pod, "ADD")?.as_secs_f64());
    }
    Ok((add, del))
}

/// Seconds of each ADD of all pods at the same time.
fn all_at_once(pods: &[Pod]) -> Result<Vec<f64>> {
    for pod in pods {
        call(pod, "DEL")?;
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(|| call(pod, "ADD"))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Duration>>| {
            let taken = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            Ok(taken?.as_secs_f64())
        };
        threads.into_iter().map(join).collect()
    })
}

fn call(pod: &Pod, command: &str) -> Result<Duration> {
    let begun = Instant::now();
    let output = pod.call(command).with_context(|| format!("{command} of pod {}", pod.name))?;
    let taken = begun.elapsed();
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{command} of pod {}: {said}", pod.name);
    Ok(taken)
}
