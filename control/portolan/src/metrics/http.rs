//! The loopback port: metrics and what probes ask.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;

use crate::health::{Health, healthz};
use crate::http::{self, Answer, TEXT, refuse_method, response};

/// Connections at a time.
const CONNECTIONS: usize = 16;

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves `/metrics` (what `render` makes), `/proxyMode` and `/healthz`, until dropped.
pub async fn serve<F>(
    listener: TcpListener,
    health: Arc<Health>,
    render: impl Fn() -> F + Send + Sync + 'static,
) where
    F: Future<Output = String> + Send + 'static,
{
    let render = Arc::new(render);
    let asked = move |request| answer(request, Arc::clone(&health), Arc::clone(&render));
    http::serve(listener, "metrics", CONNECTIONS, asked).await;
}

async fn answer<F: Future<Output = String>>(
    request: Request<Incoming>,
    health: Arc<Health>,
    render: Arc<impl Fn() -> F>,
) -> Answer {
    if let Some(refusal) = refuse_method(request.method()) {
        return refusal;
    }
    match request.uri().path() {
        "/metrics" => response(StatusCode::OK, METRICS, render().await),
        "/proxyMode" => response(StatusCode::OK, TEXT, "portolan".to_owned()),
        "/healthz" => healthz(&health, Instant::now()),
        _ => response(StatusCode::NOT_FOUND, TEXT, "try /metrics, /proxyMode or /healthz\n".to_owned()),
    }
}
