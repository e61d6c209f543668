//! The health check ports of services: one listener for each, on all addresses of the node.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{HeaderName, HeaderValue};
use portolan_model::ServiceKey;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::Health;
use super::server::{CONNECTIONS, json};
use crate::http::{self, Answer};

/// How often a port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// By which load balancers weigh nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// A port that is listened on, and for whom.
struct Open {
    service: ServiceKey,
    task: JoinHandle<()>,
}

/// Listens where services want it, for ever.
pub async fn keep(health: Arc<Health>) {
    let mut open = BTreeMap::new();
    loop {
        let failures = follow(&health, &mut open).await;
        let retry = !failures.is_empty();
        health.set_failures(failures);
        tokio::select! {
            () = health.changed.notified() => {}
            () = tokio::time::sleep(RETRY), if retry => {}
        }
    }
}

/// Closes ports that are not wanted any more, then opens those that are; what could not be.
async fn follow(health: &Arc<Health>, open: &mut BTreeMap<u16, Open>) -> BTreeMap<ServiceKey, String> {
    let wanted = health.ports();
    // Closed first: another service may have the port next.
    let gone = open.extract_if(.., |port, it| wanted.get(&it.service) != Some(port));
    for (_, it) in gone.collect::<Vec<_>>() {
        it.task.abort();
        // The port is free when the task has ended.
        let _ = it.task.await;
    }
    let mut failures = BTreeMap::new();
    for (service, port) in wanted {
        match open.get(&port) {
            Some(it) if it.service == service => {}
            Some(it) => {
                let failure = format!(
                    "health checks on port {port} are answered for service {} alone: give one of them another \
                     spec.healthCheckNodePort",
                    it.service
                );
                failures.insert(service, failure);
            }
            None => match listen(health, &service, port).await {
                Ok(task) => drop(open.insert(port, Open { service, task })),
                Err(err) => {
                    let failure = format!(
                        "health checks on port {port} are not answered: {err}. End the process that has the port \
                         (ss -ltnp 'sport = :{port}'), or give the service another spec.healthCheckNodePort; it is tried \
                         again every {} s",
                        RETRY.as_secs()
                    );
                    failures.insert(service, failure);
                }
            },
        }
    }
    failures
}

async fn listen(health: &Arc<Health>, service: &ServiceKey, port: u16) -> std::io::Result<JoinHandle<()>> {
    let listener = http::listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?;
    let (health, service) = (Arc::clone(health), service.clone());
    // Whatever is asked, as with kube-proxy: load balancers have their own ideas of a path.
    let asked = move |_| std::future::ready(answer(&health, &service, Instant::now()));
    Ok(tokio::spawn(http::serve(listener, "health check of a service", CONNECTIONS, asked)))
}

/// Whether a load balancer should send this node new connections for a service.
pub(super) fn answer(health: &Health, service: &ServiceKey, now: Instant) -> Answer {
    let (local_endpoints, service_proxy_healthy) = (health.endpoints(service), health.is_live(now));
    let name = Name { namespace: service.namespace(), name: service.name() };
    let body = Body { service: name, local_endpoints, service_proxy_healthy };
    let mut answer = json(local_endpoints > 0 && service_proxy_healthy, &body);
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(local_endpoints));
    answer
}
