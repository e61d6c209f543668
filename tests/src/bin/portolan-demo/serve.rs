//! The web server of a pod, as a process of its own: it stays when the demo leaves its cluster up.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use portolan_tests::lab::WebServer;

/// Port of every web server: `targetPort` of the service.
pub(crate) const PORT: u16 = 8080;

/// Answers with `name` until SIGTERM, as a container does.
pub(crate) fn until_told(name: &str) -> Result<ExitCode> {
    let end = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&end))?;
    let mut server = WebServer::start_here(PORT, name)?;
    while !end.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
    server.stop();
    Ok(ExitCode::SUCCESS)
}
