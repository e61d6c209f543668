//! `/healthz` and `/livez`, as kube-proxy has them (KEP-3836).

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hyper::body::Incoming;
use hyper::header::{HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Request, StatusCode};
use serde::Serialize;
use tokio::net::TcpListener;

use super::Health;
use crate::http::{self, Answer, TEXT, refuse_method, response};
use crate::metrics::Metrics;

/// Connections at a time: load balancers and the kubelet ask, and others who are in no hurry may.
pub(super) const CONNECTIONS: usize = 64;

/// What both say.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    last_updated: Option<String>,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
}

/// Serves both, until dropped, and counts the answers.
pub async fn serve(listener: TcpListener, health: Arc<Health>, metrics: Arc<Metrics>) {
    let asked = move |request: Request<Incoming>| std::future::ready(answer(&request, &health, &metrics));
    http::serve(listener, "health", CONNECTIONS, asked).await;
}

fn answer(request: &Request<Incoming>, health: &Health, metrics: &Metrics) -> Answer {
    if let Some(refusal) = refuse_method(request.method()) {
        return refusal;
    }
    match request.uri().path() {
        "/healthz" => {
            let answer = healthz(health, Instant::now());
            metrics.count_healthz(answer.status().as_u16());
            answer
        }
        "/livez" => {
            let answer = livez(health, Instant::now());
            metrics.count_livez(answer.status().as_u16());
            answer
        }
        _ => response(StatusCode::NOT_FOUND, TEXT, "try /healthz or /livez\n".to_owned()),
    }
}

/// Whether load balancers should send the node new connections.
#[must_use]
pub fn healthz(health: &Health, now: Instant) -> Answer {
    report(health, health.is_healthy(now), Some(health.is_eligible()))
}

/// Whether the agent does its work: not, it should be started again. A node that is about to go is no reason.
fn livez(health: &Health, now: Instant) -> Answer {
    report(health, health.is_live(now), None)
}

fn report(health: &Health, good: bool, node_eligible: Option<bool>) -> Answer {
    let now = SystemTime::now();
    let report =
        Report { last_updated: health.updated(now).map(text), current_time: text(now), node_eligible };
    json(good, &report)
}

fn text(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// 200 or 503 with a body that no browser takes for anything else.
pub(super) fn json(good: bool, body: &impl Serialize) -> Answer {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // The bodies here are plain structs, which are always written.
    let mut answer = response(status, "application/json", serde_json::to_string(body).unwrap_or_default());
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
