//! The plugin's process: one operation, one answer on stdout, an exit code that says the same.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::netns::Netns;
use crate::pending;
use crate::proto::{self, Call, NoReply, Reply, Request};
use crate::spec::{CniError, Code, Command, Environment, NetworkConfig, Version};

/// Runs the operation that environment and stdin ask for.
pub fn main() -> ExitCode {
    // stdout belongs to the answer, and a backtrace helps nobody who reads a runtime's log.
    std::panic::set_hook(Box::new(|_| {}));
    let mut version = Version::NEWEST;
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        run(&|name| std::env::var_os(name), io::stdin(), &mut version)
    }))
    .unwrap_or_else(|_| {
        Err(CniError::new(Code::Internal, "portolan-cni failed by a defect of its own: please report it"))
    });
    let (text, code) = match result {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(answer)) => (answer.to_string(), ExitCode::SUCCESS),
        Err(error) => (error.to_json(version), ExitCode::FAILURE),
    };
    let printed = writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
    if printed.is_err() { ExitCode::FAILURE } else { code }
}

/// `version` becomes the one that the configuration asks for, as soon as that is known.
fn run(
    get: &impl Fn(&str) -> Option<OsString>,
    stdin: impl Read,
    version: &mut Version,
) -> Result<Option<Value>, CniError> {
    let command = Command::parse(get)?;
    if command == Command::Version {
        return Ok(Some(versions(stdin)));
    }
    let config = read_config(stdin)?;
    *version = Version::of(&config)?;
    let config = NetworkConfig::parse(config)?;
    check_supported(command, *version)?;
    match command {
        Command::Add => add(Environment::parse(command, get)?, config).map(Some),
        Command::Check => check(Environment::parse(command, get)?, config).map(|()| None),
        Command::Del => del(Environment::parse(command, get)?, config).map(|()| None),
        Command::Gc => gc(config).map(|()| None),
        Command::Status => status(config).map(|()| None),
        Command::Version => Ok(None),
    }
}

fn add(environment: Environment, config: NetworkConfig) -> Result<Value, CniError> {
    if config.prev_result.is_some() {
        let msg = "there is a prevResult: portolan-cni makes the interface and must be the first plugin of its list";
        return Err(CniError::new(Code::InvalidConfig, msg));
    }
    let netns = open_netns(&environment)?;
    let result = ask(&Request::Add(call(environment, config)), Some(&netns), Code::TryAgainLater)?;
    if result.is_object() {
        return Ok(result);
    }
    Err(CniError::new(Code::Io, "the agent's answer to ADD has no result: use the plugin of its version"))
}

fn check(environment: Environment, config: NetworkConfig) -> Result<(), CniError> {
    if config.prev_result.is_none() {
        return Err(CniError::new(
            Code::InvalidConfig,
            "CHECK needs prevResult in the network configuration",
        ));
    }
    let netns = open_netns(&environment)?;
    ask(&Request::Check(call(environment, config)), Some(&netns), Code::TryAgainLater).map(drop)
}

/// Without an agent the request is kept for it, so that the runtime can go on: a node must be able to stop pods at any time.
fn del(environment: Environment, config: NetworkConfig) -> Result<(), CniError> {
    // Gone, or no namespace any more: what is on the host goes all the same.
    let netns = environment.netns.as_deref().and_then(|path| Netns::open(path).ok());
    let call = call(environment, config);
    let request = Request::Del(call.clone());
    match send(&request, netns.as_ref()) {
        Err(NoReply::Down(_) | NoReply::Lost) => {}
        answer => return conclude(&request, answer, Code::TryAgainLater).map(drop),
    }
    let state_dir = &call.config.portolan.state_dir;
    let pending = pending::enqueue(state_dir, &call).map_err(|err| {
        let msg = format!(
            "the agent is not running, and the request could not be kept for it in {}: start the agent, or make room there",
            state_dir.display()
        );
        CniError::new(Code::Io, msg).with_details(err.to_string())
    })?;
    // An agent that started meanwhile may have looked before the file was there.
    match send(&request, netns.as_ref()) {
        Err(NoReply::Down(_) | NoReply::Lost) => Ok(()),
        answer => {
            // The agent has it now. Should the file stay, it is done twice, which is harmless.
            drop(pending.done());
            conclude(&request, answer, Code::TryAgainLater).map(drop)
        }
    }
}

fn gc(config: NetworkConfig) -> Result<(), CniError> {
    if config.valid_attachments().is_none() {
        return Err(CniError::new(
            Code::InvalidConfig,
            "GC needs cni.dev/valid-attachments in the network configuration",
        ));
    }
    ask(&Request::Gc { config }, None, Code::TryAgainLater).map(drop)
}

fn status(config: NetworkConfig) -> Result<(), CniError> {
    ask(&Request::Status { config }, None, Code::NotAvailable).map(drop)
}

fn call(environment: Environment, config: NetworkConfig) -> Call {
    Call { attachment: environment.attachment, netns: environment.netns, pod: environment.pod, config }
}

fn open_netns(environment: &Environment) -> Result<Netns, CniError> {
    // `Environment` has one for each command that comes here.
    let path = environment.netns.as_deref().unwrap_or_default();
    Netns::open(path).map_err(|err| CniError::new(Code::InvalidEnvironment, format!("CNI_NETNS: {err}")))
}

fn ask(request: &Request, netns: Option<&Netns>, unavailable: Code) -> Result<Value, CniError> {
    conclude(request, send(request, netns), unavailable)
}

fn send(request: &Request, netns: Option<&Netns>) -> Result<Reply, NoReply> {
    use std::os::fd::AsFd;
    proto::exchange(&request.config().portolan.socket, request, netns.map(AsFd::as_fd))
}

/// `unavailable` is the code for an agent that is not there or does not answer.
fn conclude(request: &Request, answer: Result<Reply, NoReply>, unavailable: Code) -> Result<Value, CniError> {
    let socket = request.config().portolan.socket.display();
    let no_reply = match answer {
        Ok(Reply::Result(value)) => return Ok(value),
        Ok(Reply::Error(error)) => return Err(error),
        Err(no_reply) => no_reply,
    };
    let (code, msg) = match &no_reply {
        NoReply::Down(_) => (
            unavailable,
            format!(
                "the portolan agent is not running: start it (`portolan agent`) and try again; nobody listens at {socket}"
            ),
        ),
        NoReply::Lost => {
            (unavailable, format!("the portolan agent at {socket} stopped during the request: see its log"))
        }
        NoReply::Late => {
            (unavailable, format!("the portolan agent at {socket} does not answer: see its log"))
        }
        NoReply::Io(_) => (Code::Io, format!("the portolan agent's socket {socket} cannot be used")),
        NoReply::Garbled(_) => (
            Code::Io,
            format!(
                "the portolan agent at {socket} answered in another language: use the plugin of its version"
            ),
        ),
    };
    Err(CniError::new(code, msg).with_details(no_reply.to_string()))
}

/// The versions, in the one that was asked for when we know it. Input that cannot be read does not matter here.
fn versions(stdin: impl Read) -> Value {
    let asked = read_config(stdin).and_then(|config| Version::of(&config)).unwrap_or(Version::NEWEST);
    json!({"cniVersion": asked, "supportedVersions": Version::ALL})
}

fn read_config(stdin: impl Read) -> Result<Value, CniError> {
    let mut input = Vec::new();
    stdin.take(CONFIG_MAX + 1).read_to_end(&mut input).map_err(|err| {
        CniError::new(Code::Io, "reading the network configuration from stdin").with_details(err.to_string())
    })?;
    if input.len() as u64 > CONFIG_MAX {
        return Err(CniError::new(
            Code::Decode,
            format!("the network configuration is larger than {CONFIG_MAX} bytes"),
        ));
    }
    serde_json::from_slice(&input).map_err(|err| {
        CniError::new(Code::Decode, "the network configuration is not JSON").with_details(err.to_string())
    })
}

/// Largest network configuration in bytes.
const CONFIG_MAX: u64 = 1 << 20;

fn check_supported(command: Command, version: Version) -> Result<(), CniError> {
    let (since, name) = match command {
        Command::Check => (Version::V0_4_0, "CHECK came with cniVersion 0.4.0"),
        Command::Gc => (Version::V1_1_0, "GC came with cniVersion 1.1.0"),
        Command::Status => (Version::V1_1_0, "STATUS came with cniVersion 1.1.0"),
        Command::Add | Command::Del | Command::Version => return Ok(()),
    };
    if version >= since { Ok(()) } else { Err(CniError::new(Code::IncompatibleVersion, name)) }
}
