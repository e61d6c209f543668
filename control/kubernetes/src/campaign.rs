//! Keeps a candidate in an election: reads and writes the Lease as [`Election`] says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease as ApiLease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::{FIELD_MANAGER, WriteError};
use crate::{Action, Cluster, Election, Lease};

/// Which Lease decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    /// Its namespace; `None`: the one of the configuration, which in a pod is the pod's.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// A candidate that is kept running. Dropping it ends that, and gives nothing back.
#[derive(Debug)]
pub struct Campaign {
    task: JoinHandle<()>,
    resign: Option<watch::Sender<bool>>,
}

impl Campaign {
    /// Begins; what comes is until when this candidate leads, unless it renews. `None`, or a time that has passed: it does
    /// not lead. Needs a tokio runtime.
    #[must_use]
    pub fn start(
        cluster: Arc<Cluster>,
        name: LeaseName,
        election: Election,
    ) -> (Self, watch::Receiver<Option<Instant>>) {
        let (until, told) = watch::channel(None);
        let (resign, resigned) = watch::channel(false);
        let candidate = Candidate { cluster, name, election, until, failing: false };
        (Self { task: tokio::spawn(candidate.run(resigned)), resign: Some(resign) }, told)
    }

    /// Leads no more, and gives the Lease back so that another one need not wait for its end. Takes
    /// [`patience`](Election::patience) at most.
    pub async fn resign(mut self) {
        if let Some(resign) = self.resign.take() {
            resign.send_replace(true);
        }
        // Nobody else ends it.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Candidate {
    cluster: Arc<Cluster>,
    name: LeaseName,
    election: Election,
    until: watch::Sender<Option<Instant>>,
    failing: bool,
}

impl Candidate {
    async fn run(mut self, mut resigned: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = self.step() => {}
                _ = resigned.wait_for(|it| *it) => break,
            }
        }
        let Some(version) = self.election.resign(Instant::now()) else { return };
        self.until.send_replace(None);
        let spec = json!({"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": stamp()});
        let patience = self.election.patience();
        if let Err(error) = within(patience, self.patch(&version, spec)).await {
            tracing::info!(%error, "the lease could not be given back; another one has to wait for its end");
        }
    }

    async fn step(&mut self) {
        let now = Instant::now();
        let action = self.election.next(now);
        if let Action::Wait(until) = action {
            tokio::time::sleep_until(until.into()).await;
            return;
        }
        let outcome = within(self.election.patience(), self.act(&action)).await;
        let now = Instant::now();
        match outcome {
            Ok(Some(lease)) if action != Action::Read => self.election.wrote(now, lease),
            Ok(found) => self.election.read(now, found),
            Err(WriteError::Conflict(_)) => self.election.refused(now),
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(lease = self.name.name, %error, "the lease that says who leads");
                }
                self.election.failed(now);
                self.tell();
                // As at the start, when it was good; the file may be being written.
                if let Err(error) = self.cluster.turn().await {
                    tracing::error!(%error, "the configuration of the API server");
                }
                return;
            }
        }
        self.failing = false;
        self.tell();
    }

    fn tell(&self) {
        let until = self.election.leads_until();
        self.until.send_if_modified(|told| std::mem::replace(told, until) != until);
    }

    async fn act(&self, action: &Action) -> Result<Option<Lease>, WriteError> {
        let holder = json!({
            "holderIdentity": self.election.identity(), "renewTime": stamp(),
            "leaseDurationSeconds": self.election.duration().as_secs().max(1),
        });
        let taken = |transitions: i32| {
            let mut spec = holder.clone();
            spec["acquireTime"] = json!(stamp());
            spec["leaseTransitions"] = json!(transitions);
            spec
        };
        match action {
            Action::Wait(_) => Ok(None),
            Action::Read => {
                let found = self.api().get_opt(&self.name.name).await;
                found.map(|lease| lease.as_ref().map(lease_of)).map_err(WriteError::from)
            }
            Action::Create => {
                let lease = json!({"metadata": {"name": self.name.name}, "spec": taken(0)});
                let lease: ApiLease =
                    serde_json::from_value(lease).map_err(|error| WriteError::Unknown(error.to_string()))?;
                let made = self.api().create(&PostParams::default(), &lease).await;
                made.map(|lease| Some(lease_of(&lease))).map_err(WriteError::from)
            }
            Action::Take { version, transitions } => self.patch(version, taken(*transitions)).await.map(Some),
            Action::Renew { version } => self.patch(version, holder.clone()).await.map(Some),
        }
    }

    /// Changes the Lease if it still has this version.
    async fn patch(&self, version: &str, spec: Value) -> Result<Lease, WriteError> {
        let body = json!({"metadata": {"resourceVersion": version}, "spec": spec});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let lease = self.api().patch(&self.name.name, &params, &Patch::Merge(&body)).await;
        lease.map(|lease| lease_of(&lease)).map_err(WriteError::from)
    }

    fn api(&self) -> Api<ApiLease> {
        let client = self.cluster.client();
        match &self.name.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::default_namespaced(client),
        }
    }
}

fn lease_of(lease: &ApiLease) -> Lease {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Lease {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: seconds.map(Duration::from_secs),
        transitions: spec.lease_transitions.unwrap_or(0),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// `MicroTime`: the API server takes no other precision.
fn stamp() -> String {
    format!("{:.6}", Timestamp::now())
}

async fn within<T>(
    patience: Duration,
    request: impl Future<Output = Result<T, WriteError>>,
) -> Result<T, WriteError> {
    let late = || WriteError::Unknown(format!("no answer within {patience:?}"));
    tokio::time::timeout(patience, request).await.unwrap_or_else(|_| Err(late()))
}
