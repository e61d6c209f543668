//! The announcer with its sockets, on a thread of its own: heartbeats must go out while the rest of the process is busy.

mod clock;
mod driver;
mod filter;
mod groups;
mod packet;
mod state;
mod udp;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use tokio::sync::{Notify, oneshot};

use crate::config::{Interface, Invalid, Member, Settings, Vip, check_members, check_vips};
use crate::status::Status;
use state::State;

/// A node that announces addresses, together with others.
///
/// Dropping it is what a crash looks like to the others: they take its addresses over when its last heartbeat is too old.
/// [`withdraw`](Self::withdraw) has them do so at once.
#[derive(Debug)]
pub struct Announcer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    ended: Option<oneshot::Receiver<()>>,
}

/// Why there is no announcer.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings cannot work.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The system refuses.
    #[error("starting the thread that announces addresses: {0}")]
    Thread(#[from] io::Error),
}

/// What the thread shares with its owner.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something was changed from outside.
    news: Notify,
}

impl Shared {
    /// Never held across a wait.
    fn state(&self) -> MutexGuard<'_, State> {
        // Only the thread could leave it half changed, and that would have ended with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Announcer {
    /// An announcer in the network namespace of the calling thread. It owns nothing until it has members, addresses and
    /// an interface.
    ///
    /// # Errors
    /// The settings cannot work, or there can be no more threads.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        settings.validate()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared { state: Mutex::new(State::new(settings)), news: Notify::new() });
        let (end, ended) = oneshot::channel();
        let of_thread = Arc::clone(&shared);
        // A thread starts in its parent's namespaces.
        let thread = std::thread::Builder::new().name("portolan-l2".into()).spawn(move || {
            runtime.block_on(driver::run(of_thread));
            // Nobody waits if it was dropped.
            let _ = end.send(());
        })?;
        Ok(Self { shared, thread: Some(thread), ended: Some(ended) })
    }

    /// Makes these the nodes that announce, this one included: its addresses are what heartbeats are sent from. The first list
    /// must be complete: a node that believes to be alone does not wait for others.
    ///
    /// # Errors
    /// One of them cannot work; then nothing is changed.
    pub fn set_members(&self, members: Vec<Member>) -> Result<(), Invalid> {
        check_members(&members)?;
        self.change(|state| state.set_members(clock::now(), members));
        Ok(())
    }

    /// Makes these the addresses to announce.
    ///
    /// # Errors
    /// One of them cannot work; then nothing is changed.
    pub fn set_vips(&self, vips: Vec<Vip>) -> Result<(), Invalid> {
        check_vips(&vips)?;
        self.change(|state| state.set_vips(clock::now(), vips));
        Ok(())
    }

    /// Makes these the interfaces to announce on, as they are now. To be called whenever one of them comes, goes, gets or loses
    /// its carrier, or changes its address.
    pub fn set_interfaces(&self, interfaces: Vec<Interface>) {
        self.change(|state| state.set_interfaces(clock::now(), interfaces));
    }

    /// Everything as it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.shared.state().status(clock::now(), SystemTime::now());
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            status
                .warnings
                .push("the thread that announces addresses has ended: restart the agent".to_owned());
        }
        status
    }

    /// Gives all addresses up and has the others take them over at once. Returns when they have been told.
    pub async fn withdraw(mut self) {
        self.change(|state| state.leave(clock::now()));
        if let Some(ended) = self.ended.take() {
            // A thread that panicked tells nobody anything.
            let _ = ended.await;
        }
    }

    fn change(&self, work: impl FnOnce(&mut State)) {
        work(&mut self.shared.state());
        self.shared.news.notify_one();
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.change(State::stop);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said why.
            let _ = thread.join();
        }
    }
}
