//! The controller on an API server: reads objects, writes statuses, and only while it leads.
//!
//! A term begins with a complete list, made after the Lease was taken: what the last leader wrote is in it. While
//! another one leads, nothing is watched. No write is begun that might end after the term.

mod documents;
mod engine;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jiff::Timestamp;
use portolan_kubernetes::{
    ApiConfig, Campaign, Cluster, ClusterSource, Election, Facts, Note, Patch, WriteError,
};
use portolan_model::ObjectKey;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Options;
use engine::{Clock, Engine};

/// Writes that are under way at once. The API server's fairness gives a client about so many.
const WRITES_MAX: usize = 16;

/// Longest time for one write.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest time for writes that are under way when the controller is to end.
const FAREWELL: Duration = Duration::from_secs(2);

/// Events that may wait to be written; more are lost, not what they tell: that stands in conditions.
const NOTES_WAITING: usize = 1024;

/// Until when this controller leads.
type Leadership = watch::Receiver<Option<Instant>>;

/// What became of a write.
type Written = (ObjectKey, Result<Facts, WriteError>);

/// Runs until SIGTERM or SIGINT.
pub(super) async fn serve(options: &Options, kubeconfig: Option<PathBuf>) -> anyhow::Result<()> {
    if let Some(state) = &options.state {
        bail!("--state {}: with --source kubernetes there is no state file; leave it out", state.display());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = ApiConfig { kubeconfig, servers: options.api_servers.clone() };
    let cluster = Arc::new(Cluster::connect(config).await?);
    let identity = identity()?;
    tracing::info!(identity, lease = options.lease.name, "standing for election");
    let election = Election::new(identity, Duration::from_secs(options.lease_duration), Instant::now());
    let (campaign, leadership) = Campaign::start(Arc::clone(&cluster), options.lease.clone(), election);
    let (stop, stopped) = watch::channel(false);
    let mut leading = tokio::spawn(lead(Arc::clone(&cluster), options.clone(), leadership, stopped));
    tokio::select! {
        ended = &mut leading => return ended.context("the controller has ended")?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(true);
    leading.await.context("the controller has ended")??;
    campaign.resign().await;
    tracing::info!("stopped; services keep their addresses");
    Ok(())
}

/// A name that no other candidate has: that of the host, which is the pod's, and something of chance.
fn identity() -> anyhow::Result<String> {
    let read = |name: &str| {
        let path = format!("/proc/sys/kernel/{name}");
        std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    };
    let (host, random) = (read("hostname")?, read("random/uuid")?);
    Ok(format!("{}_{}", host.trim(), random.trim()))
}

/// One term after the other.
async fn lead(
    cluster: Arc<Cluster>,
    options: Options,
    mut leadership: Leadership,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    loop {
        let leads = |until: &Option<Instant>| until.is_some_and(|until| Instant::now() < until);
        tokio::select! {
            elected = until(&mut leadership, leads) => elected.context("the campaign has ended")?,
            _ = until(&mut stopped, |it| *it) => return Ok(()),
        }
        tracing::info!("leading");
        let mut term = Term::begin(&cluster, &options).await?;
        if term.run(&mut leadership, &mut stopped).await? == End::Stopped {
            return Ok(());
        }
        tracing::warn!("not leading any more");
    }
}

/// Why a term ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The Lease could not be renewed, or is another one's.
    Lost,
    /// The process is to end.
    Stopped,
}

struct Term {
    cluster: Arc<Cluster>,
    engine: Engine,
    updates: mpsc::Receiver<portolan_kubernetes::Watched>,
    _source: portolan_kubernetes::ClusterHandle,
    writes: JoinSet<Written>,
    notes: mpsc::Sender<Note>,
    /// All was written once.
    ready: bool,
}

impl Term {
    async fn begin(cluster: &Arc<Cluster>, options: &Options) -> anyhow::Result<Self> {
        let (updates, source) = ClusterSource::watch(cluster.config().clone()).await?;
        let (notes, waiting) = mpsc::channel(NOTES_WAITING);
        tokio::spawn(publish(Arc::clone(cluster), waiting));
        Ok(Self {
            cluster: Arc::clone(cluster),
            engine: Engine::new(options.settings()),
            updates,
            _source: source,
            writes: JoinSet::new(),
            notes,
            ready: false,
        })
    }

    /// Writes are aborted at its end: dropping it does that.
    async fn run(
        &mut self,
        leadership: &mut Leadership,
        stopped: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<End> {
        loop {
            let until = *leadership.borrow_and_update();
            let Some(until) = until.filter(|until| Instant::now() < *until) else { return Ok(End::Lost) };
            self.start(until);
            let wake = self.engine.wake();
            tokio::select! {
                watched = self.updates.recv() => match watched {
                    Some(watched) => self.engine.update(watched),
                    None => bail!("the source of objects has ended"),
                },
                Some(written) = self.writes.join_next() => self.note(written)?,
                () = sleep_until(wake) => {}
                () = tokio::time::sleep_until(until.into()) => {}
                changed = leadership.changed() => changed.context("the campaign has ended")?,
                _ = self::until(stopped, |it| *it) => {
                    self.finish(until).await?;
                    return Ok(End::Stopped);
                }
            }
        }
    }

    /// Begins what can be written before the end of the term.
    fn start(&mut self, until: Instant) {
        let now = Instant::now();
        let clock = Clock { now, stamp: format!("{:.0}", Timestamp::now()) };
        let patience = PATIENCE.min(until.saturating_duration_since(now));
        for patch in self.engine.start(&clock, WRITES_MAX.saturating_sub(self.writes.len())) {
            self.writes.spawn(write(Arc::clone(&self.cluster), patch, patience));
        }
        for note in self.engine.take_notes() {
            let Note { object, reason, text, is_warning, .. } = &note;
            if *is_warning {
                tracing::warn!(%object, reason, "{text}");
            } else {
                tracing::info!(%object, reason, "{text}");
            }
            // It stands in the log and in the conditions.
            let _ = self.notes.try_send(note);
        }
        if self.engine.is_done() && !std::mem::replace(&mut self.ready, true) {
            let (pools, services) = self.engine.counts();
            tracing::info!(pools, services, "ready");
        }
    }

    fn note(&mut self, written: Result<Written, tokio::task::JoinError>) -> anyhow::Result<()> {
        let (object, outcome) = written.context("writing")?;
        self.engine.done(Instant::now(), &object, outcome);
        Ok(())
    }

    /// Waits for what is under way, so that the next leader need not wonder.
    async fn finish(&mut self, until: Instant) -> anyhow::Result<()> {
        let deadline = until.min(Instant::now() + FAREWELL);
        while let Ok(Some(written)) = tokio::time::timeout_at(deadline.into(), self.writes.join_next()).await
        {
            self.note(written)?;
        }
        Ok(())
    }
}

async fn write(cluster: Arc<Cluster>, patch: Patch, patience: Duration) -> Written {
    let outcome = tokio::time::timeout(patience, cluster.write(&patch)).await;
    let late = || WriteError::Unknown(format!("no answer within {patience:?}"));
    (patch.object, outcome.unwrap_or_else(|_| Err(late())))
}

/// Waits until a value is as asked for.
async fn until<T>(
    value: &mut watch::Receiver<T>,
    is: impl FnMut(&T) -> bool,
) -> Result<(), watch::error::RecvError> {
    value.wait_for(is).await.map(drop)
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

/// Writes Events, one after the other; one that cannot be written is lost.
async fn publish(cluster: Arc<Cluster>, mut waiting: mpsc::Receiver<Note>) {
    while let Some(note) = waiting.recv().await {
        match tokio::time::timeout(PATIENCE, cluster.note(&note)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(object = %note.object, %error, "writing an event"),
            Err(_) => tracing::warn!(object = %note.object, "writing an event takes too long"),
        }
    }
}
