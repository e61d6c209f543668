//! `portolan trace`: live packets, as the programs see them, in the words of `explain`.

mod view;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use portolan_abi::{Trace as Wanted, trace_flag};
use portolan_core::{V4, V6};
use portolan_node::link::Links;
use portolan_node::maps::NodeFamily;
use portolan_node::trace::Tracer;

use super::flow::Ends;
use super::{Format, Global, Output, client, output};
use view::{Names, PacketSeen};

/// How long a wait for packets lasts at most: so soon an interruption is noticed.
const GLANCE: Duration = Duration::from_millis(100);

/// Options of `portolan trace`.
#[derive(Args, Clone, Debug)]
pub struct Trace {
    /// Only packets from or to this address, before or after translation
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Only packets from or to this port, before or after translation
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only packets that are dropped or rejected
    #[arg(long)]
    drops: bool,
    /// Show about one packet in so many, chosen at random; rounded up to a power of two
    #[arg(long, value_name = "PACKETS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    sample: u32,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// End after so many packets
    #[arg(long, value_name = "PACKETS")]
    count: Option<u64>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(trace: &Trace, global: &Global) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let names = names(global, &runtime)?;
    let interrupted = interruption(&runtime)?;
    let time = Duration::from_secs(trace.seconds);
    let mut tracer = Tracer::start(&global.pins, wanted(trace), time)?;
    output::note(&format!("watching for {} s; Ctrl-C ends it", trace.seconds));
    let (begun, mut shown, mut first) = (Instant::now(), 0, None);
    while begun.elapsed() < time && trace.count.is_none_or(|count| shown < count) {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let left = time.saturating_sub(begun.elapsed());
        let Some(event) = tracer.next(left.min(GLANCE))? else { continue };
        let origin = *first.get_or_insert(event.time);
        emit(trace.output.format, &names.describe(&event, origin))?;
        shown += 1;
    }
    let lost = tracer.lost();
    if trace.output.format == Format::Table || lost > 0 {
        output::note(&format!(
            "{shown} packets shown; {lost} more found no room: watch fewer with --host, --port, --drops or --sample"
        ));
    }
    Ok(())
}

fn wanted(trace: &Trace) -> Wanted {
    let mut addr = [0; 4];
    let family = match trace.host {
        None => 0,
        Some(ip) => match (V4::of(ip), V6::of(ip)) {
            (Some(v4), _) => {
                addr[0] = v4.0[0];
                trace_flag::V4
            }
            (_, v6) => {
                addr = v6.map_or(addr, |v6| v6.0);
                trace_flag::V6
            }
        },
    };
    let drops = if trace.drops { trace_flag::DROPS } else { 0 };
    Wanted {
        mask: trace.sample.next_power_of_two() - 1,
        flags: family | drops,
        port: trace.port.unwrap_or(0).to_be().into(),
        addr,
        ..Wanted::default()
    }
}

/// What interfaces are called and whose they are, as far as the agent can tell.
fn names(global: &Global, runtime: &tokio::runtime::Runtime) -> anyhow::Result<Names> {
    let links = {
        // Netlink needs the runtime's reactor.
        let _inside = runtime.enter();
        Links::new().context("opening netlink in the node's network namespace")?
    };
    let interfaces = runtime.block_on(links.interfaces()).context("listing interfaces")?;
    let pods = client::pods(&global.socket).unwrap_or_else(|error| {
        output::note(&format!("pods and services are shown without names: {error}"));
        Vec::new()
    });
    // If the agent does not answer, that has been said.
    let services = client::services(&global.socket).unwrap_or_default();
    let nodes = client::status(&global.socket).map(|status| status.addresses).unwrap_or_default();
    Ok(Names::new(&interfaces, &pods, Ends::new(&services, nodes)))
}

/// Becomes true when the process is asked to end: the programs shall not go on for nobody.
fn interruption(runtime: &tokio::runtime::Runtime) -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupted = Arc::new(AtomicBool::new(false));
    let _inside = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut asked = signal(kind).context("waiting for signals")?;
        let interrupted = Arc::clone(&interrupted);
        runtime.spawn(async move {
            asked.recv().await;
            interrupted.store(true, Ordering::Relaxed);
        });
    }
    Ok(interrupted)
}

/// One packet on one line; as YAML, one document.
fn emit(format: Format, packet: &PacketSeen) -> anyhow::Result<()> {
    output::print(&match format {
        Format::Table => view::line(packet),
        Format::Json => serde_json::to_string(packet).context("writing JSON")? + "\n",
        Format::Yaml => format!("---\n{}", serde_yaml_ng::to_string(packet).context("writing YAML")?),
    })
}
