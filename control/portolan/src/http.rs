//! HTTP/1 for whoever asks over the network: one request for each connection, and a deadline for all of it.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Time for a request's head to arrive.
const HEAD: Duration = Duration::from_secs(5);

/// Time for a whole connection, which serves one request: nobody can hold a place for longer (CVE-2023-41378 was a
/// health port that anyone could keep busy for ever).
const CONNECTION: Duration = Duration::from_secs(15);

/// Time to wait after the kernel refused a connection, out of descriptors as a rule.
const REFUSED: Duration = Duration::from_millis(100);

/// Connections that wait in the kernel for their turn.
const BACKLOG: u32 = 128;

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

pub(crate) type Answer = Response<Full<Bytes>>;

/// Listens; at an unspecified address of either family on all addresses of both.
pub(crate) async fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    if !at.ip().is_unspecified() {
        return TcpListener::bind(at).await;
    }
    match listen_dual(at.port()) {
        // The kernel has no IPv6.
        Err(err) if err.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), at.port())).await
        }
        listening => listening,
    }
}

fn listen_dual(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    // Whatever net.ipv6.bindv6only says.
    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

/// Answers every request, until dropped: its connections end with it. So many are served at a time; more wait in the
/// kernel's queue. `about` is for the log.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    about: &'static str,
    places: usize,
    answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
) where
    F: Future<Output = Answer> + Send + 'static,
{
    let answer = Arc::new(answer);
    let places = Arc::new(Semaphore::new(places));
    let mut connections = JoinSet::new();
    // The semaphore is never closed: the loop ends only with the task.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = Arc::clone(&answer);
                connections.spawn(async move {
                    connection(stream, about, answer).await;
                    drop(place);
                });
            }
            Err(err) => {
                tracing::warn!(%err, about, "accepting a connection");
                tokio::time::sleep(REFUSED).await;
            }
        }
    }
}

async fn connection<F: Future<Output = Answer>>(
    stream: TcpStream,
    about: &'static str,
    answer: Arc<impl Fn(Request<Incoming>) -> F>,
) {
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => tracing::debug!(%err, about, "connection"),
        Err(_) => tracing::debug!(about, "connection: too slow"),
    }
}

/// The refusal of a method that changes things. The head of an answer to HEAD is that of GET; hyper leaves out the body.
pub(crate) fn refuse_method(method: &Method) -> Option<Answer> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    Some(refusal)
}

pub(crate) fn response(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
