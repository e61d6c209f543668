//! The controller: one process for all nodes that gives services of type LoadBalancer their addresses.
//!
//! It touches no kernel. On a directory it needs no rights but to write one file, the [state](state::StateFile): its memory,
//! and what agents on the same directory read the addresses from. On an API server the statuses of Services are both;
//! of several controllers one leads ([`cluster`]).

mod cluster;
mod options;
mod state;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use portolan_model::{Kind, ServiceKey, Store};
use portolan_pool::{Allocator, Condition, Outcome, Record, Settings, condition};
use portolan_source::{FilesSource, Refusal, Update};
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::{self, SourceSpec};
pub use options::Options;
use state::StateFile;
pub(crate) use state::{Service, Status, read};

/// How long to wait before a state that could not be written is written again.
const RETRY: Duration = Duration::from_secs(2);

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting: one line that says what is missing and what to do.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    agent::log::init(options.log_format);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(serve(options))?;
    Ok(ExitCode::SUCCESS)
}

/// The file that a controller on a directory writes.
pub(crate) fn default_state(directory: &Path) -> PathBuf {
    directory.join("portolan-status.yaml")
}

async fn serve(options: &Options) -> anyhow::Result<()> {
    match &options.source {
        SourceSpec::Dir(directory) => serve_directory(options, directory).await,
        SourceSpec::Kubernetes(kubeconfig) => cluster::serve(options, kubeconfig.clone()).await,
    }
}

async fn serve_directory(options: &Options, directory: &Path) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let path = options.state.clone().unwrap_or_else(|| default_state(directory));
    let (state, record) = StateFile::open(&path)?;
    tracing::info!(state = %path.display(), services = record.len(), "the record was read");
    let (mut updates, _source) =
        FilesSource::start(directory).with_context(|| format!("watching {}", directory.display()))?;
    let mut controller = Controller::new(options.settings(), state, record);
    let mut ready = false;
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(update) => controller.update(update),
                None => bail!("the source of objects has ended"),
            },
            () = tokio::time::sleep(RETRY), if controller.unwritten => controller.sync(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        if !controller.unwritten && !std::mem::replace(&mut ready, true) {
            tracing::info!(
                pools = controller.outcome.pools.len(),
                services = controller.record.len(),
                "ready"
            );
        }
    }
    tracing::info!("stopped; services keep their addresses");
    Ok(())
}

/// Objects in, the state out.
struct Controller {
    allocator: Allocator,
    state: StateFile,
    store: Store,
    /// What is in the state file: what was decided and could not be written was not given.
    record: Record,
    /// What was given before this process began, to services that it has not seen yet.
    unseen: BTreeSet<ServiceKey>,
    /// Those of them whose documents may be among the ones that cannot be read.
    unreadable: BTreeSet<ServiceKey>,
    /// As last told.
    outcome: Outcome,
    /// The state could not be written.
    unwritten: bool,
}

impl Controller {
    fn new(settings: Settings, state: StateFile, record: Record) -> Self {
        Self {
            allocator: Allocator::new(settings),
            state,
            store: Store::default(),
            unseen: record.keys().cloned().collect(),
            record,
            unreadable: BTreeSet::new(),
            outcome: Outcome::default(),
            unwritten: false,
        }
    }

    fn update(&mut self, update: Update) {
        self.store.apply_all(update.events);
        let store = &self.store;
        self.unseen.retain(|key| store.service(key).is_none_or(|entry| entry.service.is_none()));
        self.unreadable = unreadable(&self.unseen, &update.refusals);
        self.sync();
    }

    /// Brings the state file to what the objects say; also if somebody else wrote it or took it away.
    fn sync(&mut self) {
        let outcome = self.allocator.allocate(&self.store, &self.record, &self.unreadable);
        match self.state.write(&outcome) {
            Ok(()) => {
                self.unwritten = false;
                self.record = outcome.record();
                tell(&self.outcome, &outcome);
                self.outcome = outcome;
            }
            Err(error) => {
                self.unwritten = true;
                tracing::error!(
                    err = format!("{error:#}"),
                    "nothing new is given until the state can be written"
                );
            }
        }
    }
}

/// The services that were never seen and may be there all the same. What was seen once the source keeps while its
/// document is bad; of what was never seen it knows nothing.
fn unreadable(unseen: &BTreeSet<ServiceKey>, refusals: &[Refusal]) -> BTreeSet<ServiceKey> {
    // A document that does not even tell what it is may be anybody's.
    if refusals.iter().any(|refusal| refusal.object.is_none()) {
        return unseen.clone();
    }
    let objects = refusals.iter().filter_map(|refusal| refusal.object.as_ref());
    let services = objects.filter(|object| object.kind == Kind::Service).map(|object| &object.id);
    services.filter(|id| unseen.contains(*id)).cloned().collect()
}

/// Logs what is new.
fn tell(before: &Outcome, now: &Outcome) {
    for (key, assignment) in &now.services {
        let last = before.services.get(key);
        if last.map_or(&[][..], |last| &last.addresses) != assignment.addresses {
            let addresses: Vec<String> = assignment.addresses.iter().map(|it| it.ip.to_string()).collect();
            tracing::info!(service = %key, addresses = addresses.join(","), "addresses");
        }
        let known = last.map_or(&[][..], |last| &last.conditions);
        complain("service", key.as_str(), known, &assignment.conditions);
    }
    for key in before.services.keys().filter(|key| !now.services.contains_key(*key)) {
        tracing::info!(service = %key, "its addresses are free");
    }
    for (name, report) in &now.pools {
        let known = before.pools.get(name).map_or(&[][..], |last| &last.conditions);
        complain("pool", name, known, &report.conditions);
    }
}

/// Logs the conditions that are new and mean that something is wrong.
fn complain(kind: &str, name: &str, known: &[Condition], now: &[Condition]) {
    let is_wrong = |it: &&Condition| it.status != matches!(it.kind, condition::GIVEN | condition::READY);
    for Condition { kind: about, reason, message, .. } in now.iter().filter(is_wrong) {
        if !known.iter().any(|it| it.kind == *about && it.message == *message) {
            tracing::warn!(kind, name, reason, "{message}");
        }
    }
}

#[cfg(test)]
mod tests;
