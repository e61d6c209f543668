//! A BGP speaker inside a namespace.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use portolan_bgp::{Identity, Peer, PeerStatus, Route, Speaker, State};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Netns, poll};

type Order = Box<dyn FnOnce(&mut Speaker) + Send>;

/// A speaker on a thread inside a namespace. Dropping it is what a restart looks like to its peers.
#[derive(Debug)]
pub struct Speaking {
    orders: Option<UnboundedSender<Wish>>,
    thread: Option<JoinHandle<()>>,
}

enum Wish {
    Order(Order),
    Withdraw(String),
}

impl Speaking {
    /// Starts a speaker with peers; without routes it does not tell them that they have everything.
    ///
    /// # Errors
    /// The speaker or a peer is set to what cannot work.
    pub fn start(netns: &Netns, identity: Identity, peers: Vec<Peer>) -> Result<Self> {
        let (orders, wishes) = unbounded_channel();
        let (started, outcome) = std::sync::mpsc::channel();
        let thread = netns.spawn(move || speak(identity, wishes, &started))?;
        let speaking = Self { orders: Some(orders), thread: Some(thread) };
        outcome.recv().context("the speaker's thread ended")??;
        speaking.ask(move |speaker| speaker.set_peers(peers))??;
        Ok(speaking)
    }

    /// Has the speaker do something.
    ///
    /// # Errors
    /// Its thread has ended.
    pub fn ask<T: Send + 'static>(&self, work: impl FnOnce(&mut Speaker) -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = std::sync::mpsc::channel();
        // Nobody waits for the answer only where the test has failed.
        let order: Order = Box::new(move |speaker| drop(answer.send(work(speaker))));
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(Wish::Order(order)).is_ok());
        if !sent {
            bail!("the speaker has ended");
        }
        answered.recv().context("the speaker's thread ended")
    }

    /// Announces prefixes without tags, and no others.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn announce(&self, prefixes: &[&str]) -> Result<()> {
        let routes = prefixes.iter().map(|prefix| Ok(Route::new(prefix.parse()?)));
        let routes: Vec<Route> = routes.collect::<Result<_>>()?;
        Ok(self.ask(move |speaker| speaker.set_routes(routes))??)
    }

    /// The status of the first peer.
    ///
    /// # Errors
    /// As [`ask`](Self::ask); or there is no peer.
    pub fn status(&self) -> Result<PeerStatus> {
        self.ask(|speaker| speaker.status().into_iter().next())?.context("there is no peer")
    }

    /// Waits until the first peer's status is as wanted.
    ///
    /// # Errors
    /// It is not so in time; the error has the status.
    pub fn until(&self, what: &str, wanted: impl Fn(&PeerStatus) -> bool) -> Result<PeerStatus> {
        let polled = poll(PATIENCE, what, || self.status().ok().filter(|status| wanted(status)));
        polled.with_context(|| format!("{:#?}", self.status()))
    }

    /// Waits until the first peer's session is established.
    ///
    /// # Errors
    /// As [`until`](Self::until).
    pub fn established(&self) -> Result<PeerStatus> {
        self.until("the session is established", |status| status.state == State::Established)
    }

    /// Ends all sessions so that peers forget the routes.
    ///
    /// # Errors
    /// The speaker panicked.
    pub fn withdraw(mut self, message: &str) -> Result<()> {
        if let Some(orders) = self.orders.take() {
            // A thread that has ended is noticed below.
            let _ = orders.send(Wish::Withdraw(message.to_owned()));
        }
        let thread = self.thread.take().context("the speaker has ended")?;
        thread.join().map_err(|_| anyhow::anyhow!("the speaker panicked"))
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said why.
            let _ = thread.join();
        }
    }
}

/// A speaker's life. Its runtime has this one thread, so that all sockets are in the namespace.
fn speak(
    identity: Identity,
    mut wishes: UnboundedReceiver<Wish>,
    started: &std::sync::mpsc::Sender<Result<()>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime needs no more than descriptors");
    runtime.block_on(async {
        let outcome = Speaker::start(identity).context("starting the speaker");
        let (speaker, outcome) = match outcome {
            Ok(speaker) => (Some(speaker), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // Who started it waits.
        let _ = started.send(outcome);
        let Some(mut speaker) = speaker else { return };
        while let Some(wish) = wishes.recv().await {
            match wish {
                Wish::Order(order) => order(&mut speaker),
                Wish::Withdraw(message) => return speaker.withdraw(&message).await,
            }
        }
    });
}

/// Time for a session to become what is wanted.
const PATIENCE: Duration = Duration::from_secs(30);
