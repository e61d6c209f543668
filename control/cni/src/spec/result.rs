//! What a successful ADD answers, in the shape of each version, and what CHECK compares with it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CniError, Code, Version};

/// A connected pod: what ADD made, and what CHECK finds in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Name of the host's end of the link.
    pub host_ifname: String,
    /// MAC address of the host's end.
    pub host_mac: Mac,
    /// MAC address of the pod's end.
    pub pod_mac: Mac,
    /// MTU of the link in bytes.
    pub mtu: u32,
    /// The pod's addresses.
    pub addresses: Vec<PodAddress>,
    /// The routes inside the pod.
    pub routes: Vec<Route>,
}

/// One address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodAddress {
    /// Address and prefix length as configured on the interface.
    pub address: IpNetwork,
    /// The next hop that belongs to it.
    pub gateway: Option<IpAddr>,
}

impl Attached {
    /// The result for the runtime: the host's end first, then the pod's, which the addresses refer to.
    pub fn success(&self, ifname: &str, netns: &str) -> Success {
        let host = Interface {
            name: self.host_ifname.clone(),
            mac: self.host_mac.to_string(),
            ..Interface::default()
        };
        let pod = Interface {
            name: ifname.to_owned(),
            mac: self.pod_mac.to_string(),
            sandbox: netns.to_owned(),
            ..Interface::default()
        };
        let with_mtu = |interface| Interface { mtu: Some(self.mtu), ..interface };
        let ip = |ip: &PodAddress| IpConfig { interface: Some(1), address: ip.address, gateway: ip.gateway };
        Success {
            interfaces: vec![with_mtu(host), with_mtu(pod)],
            ips: self.addresses.iter().map(ip).collect(),
            routes: self.routes.clone(),
        }
    }

    /// Compares what is there with what `previous` says ADD had made. Other plugins of the chain may have added to it.
    ///
    /// # Errors
    /// Code 103 with every difference.
    pub fn check(&self, previous: &Success, ifname: &str) -> Result<(), CniError> {
        let mut wrong = self.wrong_interface(previous, ifname);
        wrong.extend(self.wrong_addresses(previous, ifname));
        for route in &previous.routes {
            let ours = self.addresses.iter().any(|ip| ip.gateway.is_some() && ip.gateway == route.gw);
            if ours && !self.routes.iter().any(|found| found.dst == route.dst && found.gw == route.gw) {
                wrong.push(format!("the route to {} is missing", route.dst));
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let msg = format!("{ifname} is not as ADD had left it: delete the pod, so that it is made again");
        Err(CniError::new(Code::CheckFailed, msg).with_details(wrong.join("; ")))
    }

    fn wrong_interface(&self, previous: &Success, ifname: &str) -> Vec<String> {
        let is_pod = |interface: &&Interface| interface.name == ifname && !interface.sandbox.is_empty();
        let Some(pod) = previous.interfaces.iter().find(is_pod) else {
            return vec![format!("prevResult has no interface {ifname} with a sandbox")];
        };
        let mut wrong = Vec::new();
        if !pod.mac.eq_ignore_ascii_case(&self.pod_mac.to_string()) {
            wrong.push(format!("its MAC address is {}, it was {}", self.pod_mac, pod.mac));
        }
        if let Some(mtu) = pod.mtu.filter(|mtu| *mtu != self.mtu) {
            wrong.push(format!("its MTU is {}, it was {mtu}", self.mtu));
        }
        if !previous.interfaces.iter().any(|host| host.sandbox.is_empty() && host.name == self.host_ifname) {
            wrong.push(format!("prevResult does not have the host interface {}", self.host_ifname));
        }
        wrong
    }

    fn wrong_addresses(&self, previous: &Success, ifname: &str) -> Vec<String> {
        let on_pod = |ip: &&IpConfig| match ip.interface.map(|index| previous.interfaces.get(index)) {
            Some(Some(interface)) => interface.name == ifname && !interface.sandbox.is_empty(),
            Some(None) => false,
            None => true,
        };
        let before: Vec<IpNetwork> = previous.ips.iter().filter(on_pod).map(|ip| ip.address).collect();
        let now: Vec<IpNetwork> = self.addresses.iter().map(|ip| ip.address).collect();
        let gone = before.iter().filter(|address| !now.contains(address));
        let new = now.iter().filter(|address| !before.contains(address));
        gone.map(|address| format!("{address} is missing"))
            .chain(new.map(|address| format!("{address} is not in prevResult")))
            .collect()
    }
}

/// A CNI result, the newest version's fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// Interfaces made, in the order that `ips` refers to.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Addresses given.
    #[serde(default)]
    pub ips: Vec<IpConfig>,
    /// Routes made.
    #[serde(default)]
    pub routes: Vec<Route>,
}

impl Success {
    /// Reads a `prevResult` of any version we speak; fields that do not concern us are passed over.
    ///
    /// # Errors
    /// Code 7.
    pub fn parse(previous: &Value) -> Result<Self, CniError> {
        Self::deserialize(previous).map_err(|err| {
            CniError::new(Code::InvalidConfig, "prevResult is not a CNI result").with_details(err.to_string())
        })
    }

    /// The result as JSON in that version's shape: before 1.0.0 each address tells its family, before 1.1.0 there is no MTU.
    pub fn to_value(&self, version: Version) -> Value {
        let mut result = serde_json::json!({
            "cniVersion": version,
            "interfaces": self.interfaces,
            "ips": self.ips,
            "routes": self.routes,
            "dns": {},
        });
        if version < Version::V1_1_0 {
            for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
                interface.as_object_mut().map(|fields| fields.remove("mtu"));
            }
        }
        if version < Version::V1_0_0 {
            for (json, ip) in result["ips"].as_array_mut().into_iter().flatten().zip(&self.ips) {
                json["version"] = if ip.address.is_ipv4() { "4".into() } else { "6".into() };
            }
        }
        result
    }
}

/// One interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: String,
    /// Its MTU in bytes, since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The path of its network namespace, empty on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// One address of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index of its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Address and prefix length.
    pub address: IpNetwork,
    /// Its next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// One route of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads.
    pub dst: IpNetwork,
    /// Its next hop. `None`: the destination is on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

/// An Ethernet address of one station: neither a group's nor zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Checks the bytes (network order).
    ///
    /// # Errors
    /// [`InvalidMac`] for a group address and for zero.
    pub fn new(bytes: [u8; 6]) -> Result<Self, InvalidMac> {
        if bytes[0] & 1 == 1 || bytes == [0; 6] { Err(InvalidMac) } else { Ok(Self(bytes)) }
    }

    /// The bytes in network order.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

/// Not the address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a unicast MAC address of the form 02:00:00:00:00:01")]
pub struct InvalidMac;

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let hex = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let part = parts.next().filter(hex).ok_or(InvalidMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        if parts.next().is_some() { Err(InvalidMac) } else { Self::new(bytes) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests;
