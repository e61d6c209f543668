//! The network configuration that comes on stdin.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use ipnetwork::IpNetwork;
use portolan_ipam::AttachmentId;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::{CniError, Code, Mac};

/// The versions of the specification that we speak, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    /// 0.3.1
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// 0.4.0, with CHECK.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0, without `ips[].version`.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0, with GC and STATUS.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What we answer with when the input names none that we know.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version that a configuration asks for.
    ///
    /// # Errors
    /// Code 1 for one that we do not speak; 6 when the input is no object.
    pub fn of(config: &Value) -> Result<Self, CniError> {
        let config = config
            .as_object()
            .ok_or_else(|| CniError::new(Code::Decode, "the network configuration is not a JSON object"))?;
        // A configuration without a version is of 0.1.0 by the specification.
        let asked = config.get("cniVersion").cloned().unwrap_or_else(|| "0.1.0".into());
        Self::deserialize(&asked).map_err(|_| {
            let shown: String = asked.to_string().chars().take(40).collect();
            CniError::new(Code::IncompatibleVersion, format!("cniVersion {shown} is not supported"))
                .with_details("supported are 0.3.1, 0.4.0, 1.0.0 and 1.1.0")
        })
    }
}

/// A network configuration as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// The version to answer in.
    pub cni_version: Version,
    /// The network's name, `[A-Za-z0-9][A-Za-z0-9_.-]*`.
    #[serde(deserialize_with = "network_name")]
    pub name: String,
    /// What the runtime passes on for this pod.
    #[serde(default, deserialize_with = "or_default")]
    pub runtime_config: RuntimeConfig,
    /// What the chain had answered to ADD. Kept as it came: DEL must not fail over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<Value>,
    /// GC only: what is still in use.
    #[serde(rename = "cni.dev/valid-attachments", default, skip_serializing_if = "Option::is_none")]
    valid_attachments: Option<Vec<AttachmentId>>,
    /// The same under the name that runtimes used first.
    #[serde(rename = "cni.dev/attachments", default, skip_serializing_if = "Option::is_none")]
    attachments: Option<Vec<AttachmentId>>,
    /// Our own settings.
    #[serde(default, deserialize_with = "or_default")]
    pub portolan: Overrides,
}

impl NetworkConfig {
    /// Reads a configuration whose version is known already.
    ///
    /// # Errors
    /// Code 7 with the field and the reason.
    pub fn parse(config: Value) -> Result<Self, CniError> {
        serde_json::from_value(config).map_err(|err| {
            CniError::new(Code::InvalidConfig, "the network configuration is not valid")
                .with_details(err.to_string())
        })
    }

    /// The attachments in use, from both names. `None`: the runtime did not say, which is not the same as none.
    pub fn valid_attachments(&self) -> Option<impl Iterator<Item = &AttachmentId>> {
        if self.valid_attachments.is_none() && self.attachments.is_none() {
            return None;
        }
        Some(self.valid_attachments.iter().chain(&self.attachments).flatten())
    }
}

/// `runtimeConfig`: what the runtime fills in for the capabilities that our configuration lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Ports of the host that lead to the pod.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Limits of the pod's traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Addresses that are asked for.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpNetwork>,
    /// The MAC address that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// A hostPort. Two conflict only when protocol, port and host address meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host, 0 for none.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: std::num::NonZeroU16,
    /// Transport, TCP when the runtime does not say.
    #[serde(default)]
    pub protocol: Protocol,
    /// The one host address that it is for. `None`: all.
    #[serde(
        rename = "hostIP",
        default,
        deserialize_with = "host_ip",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_ip: Option<IpAddr>,
}

/// Transport protocol of a hostPort.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    #[default]
    #[serde(alias = "TCP", alias = "")]
    Tcp,
    /// UDP
    #[serde(alias = "UDP")]
    Udp,
    /// SCTP
    #[serde(alias = "SCTP")]
    Sctp,
}

/// Rates in bits per second, bursts in bits; 0 is no limit. Ingress is towards the pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress_rate: u64,
    /// To the pod.
    pub ingress_burst: u64,
    /// From the pod.
    pub egress_rate: u64,
    /// From the pod.
    pub egress_burst: u64,
}

/// `portolan` in the configuration: where the agent is. Written by the administrator, as the whole configuration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Overrides {
    /// The agent's socket.
    #[serde(deserialize_with = "plain_path")]
    pub socket: PathBuf,
    /// The agent's state directory.
    #[serde(deserialize_with = "plain_path")]
    pub state_dir: PathBuf,
}

impl Default for Overrides {
    fn default() -> Self {
        Self { socket: "/run/portolan/agent.sock".into(), state_dir: "/var/lib/portolan".into() }
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(input: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

fn network_name<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    let name = String::deserialize(input)?;
    // The same rule as for container ids: the specification has one for both.
    let valid = AttachmentId::new(&*name, "eth0").is_ok();
    if valid {
        Ok(name)
    } else {
        Err(de::Error::custom("name is not of the form [A-Za-z0-9][A-Za-z0-9_.-]*"))
    }
}

fn host_ip<'de, D: Deserializer<'de>>(input: D) -> Result<Option<IpAddr>, D::Error> {
    let text: Option<String> = Option::deserialize(input)?;
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|_| de::Error::custom("hostIP is not an IP address"))).transpose()
}

fn plain_path<'de, D: Deserializer<'de>>(input: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(input)?;
    let plain = |path: &Path| {
        path.is_absolute() && path.components().all(|part| !matches!(part, Component::ParentDir))
    };
    if plain(&path) {
        Ok(path)
    } else {
        Err(de::Error::custom("socket and stateDir in portolan must be absolute paths without '..'"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(change: Value) -> Result<NetworkConfig, CniError> {
        let mut config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "portolan-cni"});
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        NetworkConfig::parse(config)
    }

    #[test]
    fn capabilities_are_understood() {
        let config = parse(json!({"runtimeConfig": {
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "udp", "hostIP": "127.0.0.1"},
                             {"hostPort": 80, "containerPort": 8080, "hostIP": ""}],
            "bandwidth": {"ingressRate": 1000},
            "ips": ["10.0.0.7", "fd00::7/64"],
            "mac": "02:00:00:00:00:0a",
            "somethingElse": 1,
        }}));
        let runtime = config.unwrap().runtime_config;
        assert_eq!(runtime.port_mappings[0].protocol, Protocol::Udp);
        assert_eq!(runtime.port_mappings[0].host_ip, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(runtime.port_mappings[1].host_ip, None);
        assert_eq!(runtime.bandwidth.unwrap().ingress_rate, 1000);
        assert_eq!(runtime.ips, ["10.0.0.7/32".parse().unwrap(), "fd00::7/64".parse().unwrap()]);
        assert_eq!(runtime.mac.unwrap().to_string(), "02:00:00:00:00:0a");
    }

    #[test]
    fn null_means_absent() {
        let config = parse(json!({"runtimeConfig": null, "prevResult": null, "portolan": null})).unwrap();
        assert_eq!(config.runtime_config, RuntimeConfig::default());
        assert_eq!(config.portolan, Overrides::default());
    }

    #[test]
    fn nonsense_is_an_invalid_configuration() {
        for change in [
            json!({"name": "../pods"}),
            json!({"name": ""}),
            json!({"name": 7}),
            json!({"portolan": {"socket": "agent.sock"}}),
            json!({"portolan": {"stateDir": "/var/lib/../../etc"}}),
            json!({"portolan": {"sockett": "/x"}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 65536, "containerPort": 1}]}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 0}]}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]}}),
            json!({"runtimeConfig": {"mac": "02:00:00:00:00"}}),
            json!({"runtimeConfig": {"ips": ["10.0.0.300"]}}),
            json!({"cni.dev/valid-attachments": [{"containerID": "../x", "ifname": "eth0"}]}),
        ] {
            assert_eq!(parse(change.clone()).unwrap_err().code, Code::InvalidConfig, "{change}");
        }
    }

    #[test]
    fn attachments_in_use_come_from_either_name_and_absence_is_told_from_none() {
        let one = json!([{"containerID": "a", "ifname": "eth0"}]);
        let count = |change: Value| parse(change).unwrap().valid_attachments().map(Iterator::count);
        assert_eq!(count(json!({})), None);
        assert_eq!(count(json!({"cni.dev/valid-attachments": []})), Some(0));
        assert_eq!(count(json!({"cni.dev/attachments": one})), Some(1));
        assert_eq!(count(json!({"cni.dev/attachments": one, "cni.dev/valid-attachments": one})), Some(2));
    }

    #[test]
    fn a_configuration_survives_the_way_to_the_agent() {
        let config = parse(json!({
            "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080}]},
            "prevResult": {"ips": []},
            "cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}],
        }))
        .unwrap();
        let sent = serde_json::to_value(&config).unwrap();
        assert_eq!(NetworkConfig::parse(sent).unwrap(), config);
    }
}
