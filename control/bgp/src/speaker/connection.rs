//! One TCP connection with what is still to be sent.

use std::io::{self, ErrorKind};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    /// Since when the peer has taken nothing of it.
    stuck_since: Option<Instant>,
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum Event {
    /// Bytes came.
    Received(Vec<u8>),
    /// Everything was sent.
    Sent,
    /// It ended; the reason, if it is more than that.
    Lost(Option<String>),
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, out: Vec::new(), stuck_since: None }
    }

    /// Sends bytes after those before.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.stuck_since.get_or_insert_with(Instant::now);
    }

    /// Nothing is left to be sent.
    pub(super) fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// Since when the peer has taken nothing.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        self.stuck_since
    }

    /// What happens next.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        match self.poll_send(context) {
            Poll::Ready(Ok(())) => return Poll::Ready(Event::Sent),
            Poll::Ready(Err(error)) => return Poll::Ready(lost(&error)),
            Poll::Pending => {}
        }
        self.poll_receive(context)
    }

    /// Ready when the last byte is gone; pending also while there is none.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            std::task::ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_write(&self.out) {
                Ok(sent) => {
                    self.out.drain(..sent);
                    self.stuck_since = (!self.out.is_empty()).then(Instant::now);
                    if self.out.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    }

    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        let mut buffer = [0; READ];
        loop {
            if let Err(error) = std::task::ready!(self.stream.poll_read_ready(context)) {
                return Poll::Ready(lost(&error));
            }
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Poll::Ready(Event::Lost(None)),
                Ok(len) => return Poll::Ready(Event::Received(buffer[..len].to_vec())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(lost(&error)),
            }
        }
    }

    /// Sends what is left and ends the connection. What the peer still sends is read and thrown away: closing would
    /// reset the connection otherwise, and the peer might never read why.
    pub(super) async fn finish(mut self) {
        let ending = async {
            self.stream.write_all(&self.out).await?;
            self.stream.shutdown().await?;
            let mut buffer = [0; READ];
            while self.stream.read(&mut buffer).await? > 0 {}
            io::Result::Ok(())
        };
        // A peer that is gone need not know.
        let _ = tokio::time::timeout(FINISH, ending).await;
    }
}

fn lost(error: &io::Error) -> Event {
    Event::Lost(Some(error.to_string()))
}

/// Bytes that are read at once: two of the longest messages.
const READ: usize = 8192;

/// How long an end may take.
const FINISH: Duration = Duration::from_secs(2);
