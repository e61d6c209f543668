//! The `CNI_*` variables.

use std::ffi::OsString;

use portolan_ipam::AttachmentId;
use serde::{Deserialize, Serialize};

use super::{CniError, Code};

/// What the runtime wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add,
    /// Disconnect one.
    Del,
    /// Tell whether a container is connected as ADD had reported.
    Check,
    /// Remove what is no longer in use.
    Gc,
    /// Tell whether ADD would work.
    Status,
    /// Tell the versions.
    Version,
}

impl Command {
    /// Reads `CNI_COMMAND`.
    ///
    /// # Errors
    /// Code 4 when it is missing or unknown.
    pub fn parse(get: &impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        Ok(match &*required(get, "CNI_COMMAND")? {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => {
                let shown: String = other.chars().take(20).collect();
                return Err(invalid(format!(
                    "CNI_COMMAND {shown:?} is not ADD, DEL, CHECK, GC, STATUS or VERSION"
                )));
            }
        })
    }
}

/// Which attachment ADD, DEL and CHECK are about. `CNI_PATH` is not read: this plugin starts no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// The attachment.
    pub attachment: AttachmentId,
    /// The path of its network namespace, absolute. Always there for ADD and CHECK.
    pub netns: Option<String>,
    /// The pod that it is of.
    pub pod: PodRef,
}

impl Environment {
    /// Reads and checks the variables that `command` needs.
    ///
    /// # Errors
    /// Code 4 with the variable's name.
    pub fn parse(command: Command, get: &impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let container = required(get, "CNI_CONTAINERID")?;
        let ifname = required(get, "CNI_IFNAME")?;
        let attachment = AttachmentId::new(container, ifname).map_err(|err| invalid(err.to_string()))?;
        let lenient = command == Command::Del;
        let netns = match optional(get, "CNI_NETNS").and_then(absolute) {
            Ok(None) if !lenient => return Err(missing("CNI_NETNS")),
            Err(err) if !lenient => return Err(err),
            // DEL works without a namespace, so one that cannot be is as good as none.
            netns => netns.unwrap_or(None),
        };
        let pod = match optional(get, "CNI_ARGS").and_then(|args| PodRef::parse(&args.unwrap_or_default())) {
            Err(err) if !lenient => return Err(err),
            pod => pod.unwrap_or_default(),
        };
        Ok(Self { attachment, netns, pod })
    }
}

/// The pod's names from `CNI_ARGS`, empty where the runtime did not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`
    pub namespace: String,
    /// `K8S_POD_NAME`
    pub name: String,
    /// `K8S_POD_UID`
    pub uid: String,
}

impl PodRef {
    /// Reads `KEY=VALUE;KEY=VALUE`. Other keys are the runtime's business.
    ///
    /// # Errors
    /// Code 4 for a part without `=`, or a name that Kubernetes would not have accepted.
    fn parse(args: &str) -> Result<Self, CniError> {
        let mut pod = Self::default();
        for part in args.split(';').filter(|part| !part.is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| invalid("CNI_ARGS is not KEY=VALUE;KEY=VALUE".into()))?;
            let field = match key {
                "K8S_POD_NAMESPACE" => &mut pod.namespace,
                "K8S_POD_NAME" => &mut pod.name,
                "K8S_POD_UID" => &mut pod.uid,
                _ => continue,
            };
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            if value.len() > NAME_MAX || !value.bytes().all(plain) {
                return Err(invalid(format!("{key} in CNI_ARGS is not a Kubernetes name")));
            }
            *field = value.to_owned();
        }
        Ok(pod)
    }
}

/// Longest DNS subdomain, which is the longest name Kubernetes accepts.
const NAME_MAX: usize = 253;

fn required(get: &impl Fn(&str) -> Option<OsString>, name: &str) -> Result<String, CniError> {
    optional(get, name)?.ok_or_else(|| missing(name))
}

fn optional(get: &impl Fn(&str) -> Option<OsString>, name: &str) -> Result<Option<String>, CniError> {
    let value = get(name).filter(|value| !value.is_empty());
    value.map(|value| value.into_string().map_err(|_| invalid(format!("{name} is not UTF-8")))).transpose()
}

fn absolute(path: Option<String>) -> Result<Option<String>, CniError> {
    match path {
        Some(path) if !path.starts_with('/') => Err(invalid("CNI_NETNS is not an absolute path".into())),
        path => Ok(path),
    }
}

fn missing(name: &str) -> CniError {
    invalid(format!("{name} is not set: this program is started by a container runtime"))
}

fn invalid(msg: String) -> CniError {
    CniError::new(Code::InvalidEnvironment, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(command: Command, change: &[(&str, &str)]) -> Result<Environment, CniError> {
        let mut all = vec![("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/x")];
        all.extend(change);
        let get = |name: &str| all.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        Environment::parse(command, &get)
    }

    #[test]
    fn pod_names_are_found_among_other_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;X=a=b;K8S_POD_UID=u-1;";
        let pod = parse(Command::Add, &[("CNI_ARGS", args)]).unwrap().pod;
        assert_eq!(pod, PodRef { namespace: "shop".into(), name: "web-0".into(), uid: "u-1".into() });
    }

    #[test]
    fn bad_variables_are_named() {
        for (name, value) in [
            ("CNI_CONTAINERID", ""),
            ("CNI_IFNAME", ""),
            ("CNI_NETNS", ""),
            ("CNI_NETNS", "run/netns/x"),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "K8S_POD_NAME=../../x"),
        ] {
            let error = parse(Command::Add, &[(name, value)]).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert!(error.msg.contains(name), "{name}={value}: {}", error.msg);
        }
    }

    #[test]
    fn del_overlooks_what_it_does_not_need() {
        for change in [("CNI_NETNS", ""), ("CNI_NETNS", "x"), ("CNI_ARGS", "junk")] {
            assert!(parse(Command::Del, &[change]).is_ok(), "{change:?}");
        }
        assert!(parse(Command::Del, &[("CNI_CONTAINERID", "../x")]).is_err());
    }
}
