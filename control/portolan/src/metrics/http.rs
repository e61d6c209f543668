//! The loopback port: metrics and what probes ask.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 16;

/// Time for a request's head to arrive.
const HEAD: Duration = Duration::from_secs(5);

/// Time for a whole connection, which serves one request: nobody can hold a place for longer.
const CONNECTION: Duration = Duration::from_secs(15);

/// Time to wait after the kernel refused a connection, out of descriptors as a rule.
const REFUSED: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves `/metrics` (what `render` makes), `/proxyMode` and `/healthz`, until dropped.
pub async fn serve<F>(listener: TcpListener, render: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = String> + Send + 'static,
{
    let render = Arc::new(render);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed: the loop ends only with the task.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let render = Arc::clone(&render);
                tokio::spawn(async move {
                    connection(stream, render).await;
                    drop(place);
                });
            }
            Err(err) => {
                tracing::warn!(%err, "accepting a connection for metrics");
                tokio::time::sleep(REFUSED).await;
            }
        }
    }
}

async fn connection<F>(stream: TcpStream, render: Arc<impl Fn() -> F + Send + Sync + 'static>)
where
    F: Future<Output = String> + Send + 'static,
{
    let service = service_fn(move |request| answer(request, Arc::clone(&render)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => tracing::debug!(%err, "connection for metrics"),
        Err(_) => tracing::debug!("connection for metrics: too slow"),
    }
}

async fn answer<F: Future<Output = String>>(
    request: Request<Incoming>,
    render: Arc<impl Fn() -> F>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    // The head of an answer to HEAD is that of GET; hyper leaves out the body.
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    Ok(match request.uri().path() {
        "/metrics" => response(StatusCode::OK, METRICS, render().await),
        "/proxyMode" => response(StatusCode::OK, TEXT, "portolan".to_owned()),
        "/healthz" => response(StatusCode::OK, TEXT, "ok".to_owned()),
        _ => response(StatusCode::NOT_FOUND, TEXT, "try /metrics, /proxyMode or /healthz\n".to_owned()),
    })
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
