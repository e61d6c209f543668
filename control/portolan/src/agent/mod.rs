//! The agent: one process on each node that owns its tables, programs, interfaces and addresses.
//!
//! What it makes outlives it. A restart takes over what is there and corrects it by replacement.

mod announce;
mod audit;
mod engine;
mod host_ports;
mod install;
pub(crate) mod log;
mod network;
mod options;
mod ports;
mod programs;
mod socket;
mod sockets;
mod state;
mod uninstall;
mod views;

use std::any::Any;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use portolan_apply::Applier;
use portolan_kubernetes::{ApiConfig, ClusterSource};
use portolan_node::features::{Features, Places};
use portolan_node::link::Links;
use portolan_node::{Mode, Object};
use portolan_plan::Planner;
use portolan_source::{FilesSource, Update};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::Global;
use crate::health::{self, Health};
use crate::http;
use crate::metrics::{self, Metrics};
pub(crate) use announce::ANNOUNCED;
use announce::{Announce, OnStop};
use engine::Engine;
pub(crate) use install::CONFLIST;
use network::Network;
pub use options::{Departed, LogFormat, Options, Selection, SourceSpec};
use options::{ExternalMode, RoutingMode};
pub(crate) use options::{Overlay, SERVICE_CIDRS, ports};
use programs::Programs;
use state::Shared;
pub use uninstall::{UninstallOptions, uninstall};

/// How often flows that are over are looked for.
const COLLECT: Duration = Duration::from_secs(15);

/// MTU while no uplink is known: Ethernet's.
const DEFAULT_MTU: u32 = 1500;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting: one line that says what is missing and what to do.
pub fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    log::init(options.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(serve(options, global.clone()))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(options: Options, global: Global) -> anyhow::Result<()> {
    let reserved = options.reserved_ports()?;
    let features = probe(&options, &global)?;
    // Bound now, so that a second agent or a taken port is found before anything is changed; served once the
    // node is ready.
    let mut listener = Some(socket::bind(&global.socket)?);
    let mut http = Some(TcpListener::bind(options.metrics).await.with_context(|| {
        format!("listening on {} for metrics: choose another --metrics", options.metrics)
    })?);
    let probes = http::listen(options.healthz_bind_address).await.with_context(|| {
        format!(
            "listening on {} for /healthz: choose another --healthz-bind-address",
            options.healthz_bind_address
        )
    })?;
    let links = Links::new().context("opening netlink in the node's network namespace")?;
    for change in links.prepare_node(&reserved).await? {
        tracing::info!(path = change.path, from = change.from, to = change.to, "sysctl set");
    }
    let mode = if features.tcx && !options.force_clsact { Mode::Tcx } else { Mode::Clsact };
    let object = Object::load(Some(&global.pins), options.sizes())?;
    let applier = Applier::open(object.tables()?)?;
    let tables = object.tables()?;
    let programs = Arc::new(Programs::new(object, mode, &global.pins));
    let rules = portolan_plan::Options {
        external_ips: options.external_ips,
        node_ports: Some(options.node_port_range),
        node_port_addresses: options.nodeport_addresses.clone(),
        consistent: options.external_selection == Selection::Maglev,
        external_mode: options.external_mode.into(),
        overlay: options.overlay.planned(),
        inside: options.inside(),
        reset_departed: options.departed_backends == Departed::Reset,
    };
    let announce = Announce::new(&options.node_name, &options.announce);
    let planner = Planner::with_options(&options.node_name, rules);
    let shared = Arc::new(Shared::new(&options.node_name, mode, planner, applier, announce));
    let network =
        Arc::new(Network::new(links.clone(), Arc::clone(&programs), Arc::clone(&shared), &options)?);
    let metrics = Arc::new(Metrics::new());
    // From now on: a probe is to hear that the agent has nothing to serve yet, or waits for it.
    tokio::spawn(health::serve(probes, Arc::clone(&shared.health), Arc::clone(&metrics)));
    tokio::spawn(health::keep(Arc::clone(&shared.health)));
    tokio::spawn(Arc::clone(&shared.announce).keep(Arc::clone(&shared.health)));
    let mtu = service_mtu(&options, &links).await?;
    let service = links.ensure_service_device(mtu).await?;
    let overlay = overlay(&options, &links, &programs, mtu).await?;
    let parts = (Arc::clone(&shared), Arc::clone(&network), Arc::clone(&metrics));
    let mut engine = Engine::new(&options, links, programs, parts, tables, (service.ifindex, overlay));

    // Watch first, then read: what changes in between is not lost.
    let mut events = engine.watch().await?;
    network.look().await?;
    let (updates, _source) = start_source(&options).await?;
    let mut updates = note_queued(updates, Arc::clone(&shared.health), Arc::clone(&metrics));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut collect = tokio::time::interval(COLLECT);
    let mut audit = tokio::time::interval(Duration::from_secs(options.audit_interval));
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(update) => engine.update(update).await,
                None => bail!("the source of objects has ended"),
            },
            event = events.next() => engine.link_event(event?).await,
            _ = collect.tick() => {
                engine.retry();
                engine.collect();
                engine.watch_ports();
            }
            _ = audit.tick() => {
                engine.audit().await;
                engine.collect_all();
                engine.end_sockets().await;
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        if !shared.core().synced {
            continue;
        }
        if let Some(http) = http.take() {
            tokio::spawn(serve_metrics(
                http,
                Arc::clone(&shared),
                Arc::clone(&network),
                Arc::clone(&metrics),
            ));
        }
        if let Some(listener) = listener.take() {
            socket::serve(listener, Arc::clone(&network), Arc::clone(&shared), &options).await?;
            install::install(&options, &global)?;
            tracing::info!(node = options.node_name, "ready");
        }
    }
    if options.announce.on_stop == OnStop::Withdraw {
        tracing::info!("public addresses are being withdrawn");
        shared.announce.withdraw().await;
    }
    // Programs, tables and links stay: the node goes on forwarding without us.
    tracing::info!("stopped; the data plane goes on");
    Ok(())
}

/// Objects from now on, and what keeps them coming.
async fn start_source(options: &Options) -> anyhow::Result<(mpsc::Receiver<Update>, Box<dyn Any + Send>)> {
    match &options.source {
        SourceSpec::Dir(directory) => {
            let (updates, handle) =
                FilesSource::start(directory).with_context(|| format!("watching {}", directory.display()))?;
            Ok((updates, Box::new(handle)))
        }
        SourceSpec::Kubernetes(kubeconfig) => {
            let config = ApiConfig { kubeconfig: kubeconfig.clone(), servers: options.api_servers.clone() };
            let (updates, handle) = ClusterSource::start(config).await?;
            Ok((updates, Box::new(handle)))
        }
    }
}

/// The same updates; each is noted as soon as it comes, whatever keeps the engine from taking it in.
fn note_queued(
    mut updates: mpsc::Receiver<Update>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
) -> mpsc::Receiver<Update> {
    let (noted, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(update) = updates.recv().await {
            health.queued(Instant::now());
            metrics.observe_queued();
            if noted.send(update).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// The overlay device, with its programs loaded, if this mode has one; its index.
async fn overlay(
    options: &Options,
    links: &Links,
    programs: &Programs,
    mtu: u32,
) -> anyhow::Result<Option<u32>> {
    if options.overlay.routing_mode != RoutingMode::Vxlan {
        return Ok(None);
    }
    if options.external_mode != ExternalMode::Snat {
        tracing::warn!(
            "--external-mode has no effect for backends of other nodes with --routing-mode vxlan: they are masqueraded"
        );
    }
    tokio::task::block_in_place(|| programs.object().load_overlay())?;
    let ifindex = links.ensure_overlay(options.overlay.overlay_port, mtu).await.context(
        "making the overlay device: the kernel needs CONFIG_VXLAN, and the UDP port must be free (--overlay-port)",
    )?;
    Ok(Some(ifindex))
}

/// The smallest MTU of all uplinks, less what the overlay takes: what is sent to a service may leave by any of them.
async fn service_mtu(options: &Options, links: &Links) -> anyhow::Result<u32> {
    if options.mtu != 0 {
        return Ok(options.mtu);
    }
    let uplinks = links.uplinks(&[]).await?;
    Ok(options.overlay.inside(uplinks.iter().map(|uplink| uplink.mtu).min().unwrap_or(DEFAULT_MTU)))
}

/// Checks what the node can do; every lack is one line.
fn probe(options: &Options, global: &Global) -> anyhow::Result<Features> {
    let bpffs = options.bpffs.clone().unwrap_or_else(|| mount_above(&global.pins));
    let places = Places { bpffs, cgroup_root: options.cgroup_root.clone() };
    Features::probe(&places).map_err(|unmet| {
        let lines: Vec<String> = unmet.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("this node lacks what the data plane needs:\n  {}", lines.join("\n  "))
    })
}

/// `/sys/fs/bpf` for a directory of pins below it, else the directory itself.
pub(crate) fn mount_above(pins: &std::path::Path) -> std::path::PathBuf {
    let usual = std::path::Path::new("/sys/fs/bpf");
    if pins.starts_with(usual) { usual.into() } else { pins.into() }
}

async fn serve_metrics(
    listener: TcpListener,
    shared: Arc<Shared>,
    network: Arc<Network>,
    metrics: Arc<Metrics>,
) {
    let health = Arc::clone(&shared.health);
    let render = move || {
        let outcomes = shared.core().applier.tables().counters().unwrap_or_default();
        let text = metrics.render(&views::status(&shared, &network), &views::services(&shared), &outcomes);
        std::future::ready(text)
    };
    metrics::serve(listener, health, render).await;
}
