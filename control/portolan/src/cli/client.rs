//! Asking the agent over its socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::{
    AuditView, BgpPeerView, BgpRouteView, LoadBalancerView, PodView, Query, Reply, Request, ServiceView,
    Status,
};

/// Time for each read and write. The agent answers in milliseconds, also with ten thousands of services.
const PATIENCE: Duration = Duration::from_secs(5);

/// The agent gave no answer, or none that is of use.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "the agent does not run on this node (nothing answers at {}): start it, or name its socket with --socket",
        path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket belongs to another user.
    #[error("the agent's socket {} is not yours to use: run this as root", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// It listens, but says nothing.
    #[error("the agent does not answer at {}: it is starting, or stuck; its log says which", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// It ended the connection.
    #[error(
        "the agent closed {} without an answer: it was stopped, or you are not root; its log says which",
        path.display()
    )]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// Something else failed on the way.
    #[error("asking the agent at {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It says no.
    #[error("the agent says: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// Its answer makes no sense here.
    #[error("the agent's answer was not understood ({what}): use the `portolan` of the agent's version")]
    Unexpected {
        /// What is wrong with it.
        what: String,
    },
}

/// The agent's and the node's state.
pub(super) fn status(socket: &Path) -> Result<Status, AskError> {
    match ask(socket, Query::Status)? {
        Reply::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// All services.
pub(super) fn services(socket: &Path) -> Result<Vec<ServiceView>, AskError> {
    match ask(socket, Query::Services)? {
        Reply::Services(services) => Ok(services),
        other => Err(unexpected(&other)),
    }
}

/// All pods of the node.
pub(super) fn pods(socket: &Path) -> Result<Vec<PodView>, AskError> {
    match ask(socket, Query::Pods)? {
        Reply::Pods(pods) => Ok(pods),
        other => Err(unexpected(&other)),
    }
}

/// What of the kernel's tables is not as it should be.
pub(super) fn audit(socket: &Path) -> Result<Vec<AuditView>, AskError> {
    match ask(socket, Query::Audit)? {
        Reply::Audit(differences) => Ok(differences),
        other => Err(unexpected(&other)),
    }
}

/// All services of type LoadBalancer.
pub(super) fn load_balancers(socket: &Path) -> Result<Vec<LoadBalancerView>, AskError> {
    match ask(socket, Query::LoadBalancers)? {
        Reply::LoadBalancers(services) => Ok(services),
        other => Err(unexpected(&other)),
    }
}

/// All BGP peers of the node.
pub(super) fn bgp_peers(socket: &Path) -> Result<Vec<BgpPeerView>, AskError> {
    match ask(socket, Query::BgpPeers)? {
        Reply::BgpPeers(peers) => Ok(peers),
        other => Err(unexpected(&other)),
    }
}

/// All prefixes that the node announces.
pub(super) fn bgp_routes(socket: &Path) -> Result<Vec<BgpRouteView>, AskError> {
    match ask(socket, Query::BgpRoutes)? {
        Reply::BgpRoutes(routes) => Ok(routes),
        other => Err(unexpected(&other)),
    }
}

fn ask(socket: &Path, query: Query) -> Result<Reply, AskError> {
    let line = exchange(socket, &Request { query }).map_err(|error| explain(socket, error))?;
    match serde_json::from_str(&line) {
        Ok(Reply::Error(message)) => Err(AskError::Refused { message }),
        Ok(reply) => Ok(reply),
        Err(error) => Err(AskError::Unexpected { what: error.to_string() }),
    }
}

/// One line there, one line back.
fn exchange(socket: &Path, request: &Request) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    if reply.ends_with('\n') { Ok(reply) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn explain(socket: &Path, source: io::Error) -> AskError {
    let path = socket.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NotRunning { path },
        io::ErrorKind::PermissionDenied => AskError::Forbidden { path },
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent { path },
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            AskError::Closed { path }
        }
        _ => AskError::Io { path, source },
    }
}

fn unexpected(reply: &Reply) -> AskError {
    let what = match reply {
        Reply::Status(_) => "a status",
        Reply::Services(_) => "services",
        Reply::Pods(_) => "pods",
        Reply::Audit(_) => "an audit",
        Reply::LoadBalancers(_) => "services of type LoadBalancer",
        Reply::BgpPeers(_) => "BGP peers",
        Reply::BgpRoutes(_) => "routes",
        Reply::Error(_) => "an error",
    };
    AskError::Unexpected { what: format!("it sent {what}, which nobody asked for") }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    /// Answers one connection with these bytes; joining gives what was asked.
    pub(crate) fn answer_once(socket: &Path, answer: Vec<u8>) -> JoinHandle<String> {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut question = String::new();
            let mut reader = BufReader::new(stream);
            reader.read_line(&mut question).unwrap();
            let mut stream = reader.into_inner();
            stream.write_all(&answer).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // The asker closes first: nothing of the answer is lost to a reset.
            let _ = stream.read(&mut [0]);
            question
        })
    }

    fn socket() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        (directory, path)
    }

    #[test]
    fn a_question_is_one_line_and_its_answer_comes_back() {
        let (_directory, path) = socket();
        let sent = Status { node: "n1".into(), ..Status::default() };
        let reply = serde_json::to_string(&Reply::Status(Box::new(sent.clone()))).unwrap() + "\n";
        let agent = answer_once(&path, reply.into_bytes());
        assert_eq!(status(&path).unwrap(), sent);
        assert_eq!(agent.join().unwrap(), "{\"query\":\"status\"}\n");
    }

    #[test]
    fn without_an_agent_one_line_says_what_to_do() {
        let (_directory, path) = socket();
        let missing = services(&path).unwrap_err();
        // Nobody listens on what a killed agent left.
        drop(UnixListener::bind(&path).unwrap());
        let left = services(&path).unwrap_err();
        for error in [missing, left] {
            let text = error.to_string();
            assert!(matches!(error, AskError::NotRunning { .. }), "{text}");
            assert!(text.contains("start it") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn half_an_answer_is_none() {
        let (_directory, path) = socket();
        let agent = answer_once(&path, b"{\"services\":[]}".to_vec());
        assert!(matches!(services(&path), Err(AskError::Closed { .. })));
        agent.join().unwrap();
    }

    #[test]
    fn an_answer_to_another_question_is_refused() {
        let (_directory, path) = socket();
        let agent = answer_once(&path, b"{\"pods\":[]}\n".to_vec());
        assert!(matches!(services(&path), Err(AskError::Unexpected { .. })));
        agent.join().unwrap();
    }

    #[test]
    fn the_agents_own_words_are_passed_on() {
        let (_directory, path) = socket();
        let agent = answer_once(&path, b"{\"error\":\"no such question\"}\n".to_vec());
        assert_eq!(pods(&path).unwrap_err().to_string(), "the agent says: no such question");
        agent.join().unwrap();
    }
}
