//! The state file: what services were given, and how full pools are.
//!
//! It is YAML of kinds `ServiceStatus` and `LoadBalancerPoolStatus`. Agents whose directory it is in serve the addresses
//! of the former; the controller reads them back when it starts. It is replaced as a whole, and is on disk before
//! anybody can read it.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use portolan_model::{AddressCount, LoadBalancerPoolStatus, ServiceKey, StatusCondition};
use portolan_pool::{Assigned, Assignment, Condition, Count, Outcome, PoolReport, Record};
use serde::{Deserialize, Serialize};

/// Of all documents in it.
const API_VERSION: &str = "portolan.dev/v1alpha1";
const SERVICE: &str = "ServiceStatus";
const POOL: &str = "LoadBalancerPoolStatus";

/// The beginning of the file.
const HEAD: &str = "# Written by `portolan controller`: what services of type LoadBalancer were given. It is all that\n\
                    # remembers their addresses; edits are undone.\n";

/// The file, which nobody else writes.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// Held as long as this is.
    _lock: File,
}

impl StateFile {
    /// Takes the file over and reads what was given. A file that is not there is an empty record.
    ///
    /// # Errors
    /// Another controller has it; or something in it is not understood, and giving addresses without it could give one
    /// twice.
    pub(super) fn open(path: &Path) -> anyhow::Result<(Self, Record)> {
        let lock = lock(path)?;
        let record = match read(path)? {
            Some(status) => status.record(),
            None => Record::new(),
        };
        Ok((Self { path: path.to_owned(), _lock: lock }, record))
    }

    /// Writes an outcome, unless the file says the same already.
    ///
    /// # Errors
    /// What the file system says. The old file is there as it was.
    pub(super) fn write(&self, outcome: &Outcome) -> anyhow::Result<()> {
        let text = Status::of(outcome).render()?;
        if fs::read(&self.path).is_ok_and(|bytes| bytes == text.as_bytes()) {
            return Ok(());
        }
        portolan_ipam::replace_file(&self.path, text.as_bytes())
            .with_context(|| format!("writing {}", self.path.display()))?;
        Ok(())
    }
}

/// The lock is a file beside it, because the file itself is replaced. Its name is hidden: sources do not read it.
fn lock(path: &Path) -> anyhow::Result<File> {
    let name = path.file_name().with_context(|| format!("--state {}: not a file's path", path.display()))?;
    let beside = path.with_file_name(format!(".{}.lock", name.to_string_lossy()));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&beside)
        .with_context(|| format!("opening {}", beside.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another controller writes {}: stop it, or choose another --state", path.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", beside.display()))
        }
    }
}

/// Everything in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// In the order of namespace and name.
    pub(crate) services: Vec<Service>,
    /// In the order of their names.
    pub(crate) pools: Vec<Pool>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Service {
    api_version: String,
    kind: String,
    pub(crate) metadata: Metadata,
    #[serde(default)]
    pub(crate) status: ServiceStatus,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pool {
    api_version: String,
    kind: String,
    pub(crate) metadata: Metadata,
    #[serde(default)]
    pub(crate) status: LoadBalancerPoolStatus,
}

/// Whose status it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metadata {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

/// What a service has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceStatus {
    /// What it was given, as in the status of a Service.
    load_balancer: LoadBalancer,
    /// Everything that it has, and how it came to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) addresses: Vec<Address>,
    pub(crate) conditions: Vec<StatusCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Vec<Ingress>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    ip: IpAddr,
    ip_mode: Option<String>,
}

/// An address of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    /// The pool that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pool: Option<String>,
    /// The service asks for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) requested: bool,
    /// Other services have it as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shared: bool,
    /// It stands in the service's own document.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) own: bool,
}

/// Reads a state file; `None` if there is none.
///
/// # Errors
/// It cannot be read, or something in it is not what a controller writes.
pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Status>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let status = Status::parse(&text).with_context(|| {
        format!(
            "{} is not as a controller wrote it: mend it, or put a copy of it in its place",
            path.display()
        )
    })?;
    Ok(Some(status))
}

impl Status {
    fn of(outcome: &Outcome) -> Self {
        let services = outcome.services.iter().map(|(key, assignment)| service(key, assignment));
        let pools = outcome.pools.iter().map(|(name, report)| pool(name, report));
        Self { services: services.collect(), pools: pools.collect() }
    }

    /// What was given.
    fn record(&self) -> Record {
        let given = self.services.iter().map(|service| {
            let ips = service.status.load_balancer.ingress.iter().map(|ingress| ingress.ip);
            (service.key(), ips.collect())
        });
        given.filter(|(_, ips): &(_, Vec<IpAddr>)| !ips.is_empty()).collect()
    }

    fn render(&self) -> anyhow::Result<String> {
        let mut text = HEAD.to_owned();
        for service in &self.services {
            text += "---\n";
            text += &serde_yaml_ng::to_string(service).context("writing YAML")?;
        }
        for pool in &self.pools {
            text += "---\n";
            text += &serde_yaml_ng::to_string(pool).context("writing YAML")?;
        }
        Ok(text)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut status = Self::default();
        let mut seen = BTreeSet::new();
        for (number, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
            let number = number + 1;
            let value = serde_json::Value::deserialize(document)
                .with_context(|| format!("document {number}: not YAML"))?;
            let text = |field: &str| value[field].as_str().unwrap_or("nothing");
            // A file without any document is one that is null.
            match (text("apiVersion"), text("kind")) {
                _ if value.is_null() => {}
                (API_VERSION, SERVICE) => {
                    let service: Service =
                        serde_json::from_value(value).with_context(|| format!("document {number}"))?;
                    let key = service.key();
                    ensure!(seen.insert(key.clone()), "document {number}: service {key} is there twice");
                    status.services.push(service);
                }
                (API_VERSION, POOL) => {
                    let pool = serde_json::from_value(value).with_context(|| format!("document {number}"))?;
                    status.pools.push(pool);
                }
                (version, kind) => {
                    bail!(
                        "document {number}: expected {SERVICE} or {POOL} of {API_VERSION}, found {kind} of {version}"
                    )
                }
            }
        }
        Ok(status)
    }
}

impl Service {
    pub(crate) fn key(&self) -> ServiceKey {
        ServiceKey::new(self.metadata.namespace.as_deref().unwrap_or("default"), &self.metadata.name)
    }
}

fn service(key: &ServiceKey, assignment: &Assignment) -> Service {
    let given = assignment.addresses.iter().filter(|it| it.given);
    let ingress = given.map(|it| Ingress { ip: it.ip, ip_mode: Some("VIP".to_owned()) }).collect();
    let address = |it: &Assigned| Address {
        ip: it.ip,
        pool: it.pool.as_deref().map(str::to_owned),
        requested: it.requested,
        shared: it.shared,
        own: it.own,
    };
    Service {
        api_version: API_VERSION.to_owned(),
        kind: SERVICE.to_owned(),
        metadata: Metadata { namespace: Some(key.namespace().to_owned()), name: key.name().to_owned() },
        status: ServiceStatus {
            load_balancer: LoadBalancer { ingress },
            addresses: assignment.addresses.iter().map(address).collect(),
            conditions: assignment.conditions.iter().map(condition).collect(),
        },
    }
}

fn pool(name: &str, report: &PoolReport) -> Pool {
    Pool {
        api_version: API_VERSION.to_owned(),
        kind: POOL.to_owned(),
        metadata: Metadata { namespace: None, name: name.to_owned() },
        status: pool_status(report),
    }
}

/// What is told of a pool.
pub(super) fn pool_status(report: &PoolReport) -> LoadBalancerPoolStatus {
    LoadBalancerPoolStatus {
        ipv4: report.ipv4.map(count),
        ipv6: report.ipv6.map(count),
        conditions: report.conditions.iter().map(condition).collect(),
    }
}

/// JSON's readers have whole numbers of 64 bits at most.
fn count(count: Count) -> AddressCount {
    let number = |number: u128| i64::try_from(number).unwrap_or(i64::MAX);
    AddressCount { total: number(count.total), assigned: number(count.used), available: number(count.free) }
}

/// As objects hold it, without a time.
pub(super) fn condition(condition: &Condition) -> StatusCondition {
    StatusCondition {
        kind: condition.kind.to_owned(),
        status: if condition.status { "True" } else { "False" }.to_owned(),
        reason: condition.reason.to_owned(),
        message: condition.message.clone(),
        last_transition_time: None,
    }
}
