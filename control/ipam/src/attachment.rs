//! The key of everything a pod's interface owns on this node.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One interface of one container: what CNI calls an attachment.
///
/// It exists only when both names are harmless, so it may go into device names, logs and messages. Source: CNI 1.1.0, "Parameters".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Names", into = "Names")]
pub struct AttachmentId {
    container: String,
    ifname: String,
}

impl AttachmentId {
    /// Checks both names.
    ///
    /// # Errors
    /// [`InvalidAttachment`] names the field and the rule that it breaks.
    pub fn new(container: impl Into<String>, ifname: impl Into<String>) -> Result<Self, InvalidAttachment> {
        let (container, ifname) = (container.into(), ifname.into());
        check_container(&container)?;
        check_ifname(&ifname)?;
        Ok(Self { container, ifname })
    }

    /// The container id, `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most [`CONTAINER_ID_MAX`] bytes.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The interface's name inside the pod, 1 to 15 printable bytes.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    /// A stable 128-bit digest (FNV-1a) for names of files and devices. It identifies, it does not authenticate.
    pub fn digest(&self) -> u128 {
        let bytes = self.container.bytes().chain([0]).chain(self.ifname.bytes());
        bytes.fold(FNV_OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(FNV_PRIME))
    }

    /// The name of the host's end of the pod's link: `ptl` and 10 hexadecimal digits, 13 bytes.
    pub fn host_ifname(&self) -> String {
        let digest = self.digest();
        format!("ptl{:010x}", (digest ^ (digest >> 64)) & 0xff_ffff_ffff)
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.ifname)
    }
}

/// Why a pair of names is no attachment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAttachment {
    /// The container id is empty, too long or has a character outside the whitelist.
    #[error(
        "container id {shown} is not of the form [A-Za-z0-9][A-Za-z0-9_.-]* with at most {CONTAINER_ID_MAX} characters"
    )]
    Container {
        /// The id, escaped and cut.
        shown: String,
    },
    /// The interface name is empty, too long or one that the kernel or the specification forbids.
    #[error(
        "interface name {shown} is not 1 to 15 printable characters without '/', ':', '%' and spaces, and neither '.' nor '..'"
    )]
    Ifname {
        /// The name, escaped and cut.
        shown: String,
    },
}

/// Longest accepted container id in bytes. Runtimes use 64; the limit bounds records and messages.
pub const CONTAINER_ID_MAX: usize = 200;

/// `IFNAMSIZ - 1`.
const IFNAME_MAX: usize = 15;

fn check_container(id: &str) -> Result<(), InvalidAttachment> {
    let tail = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let valid = id.len() <= CONTAINER_ID_MAX
        && id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && id.bytes().all(tail);
    if valid { Ok(()) } else { Err(InvalidAttachment::Container { shown: shown(id) }) }
}

fn check_ifname(name: &str) -> Result<(), InvalidAttachment> {
    // '%' would make the kernel treat the name as a pattern and pick another one.
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    let valid =
        (1..=IFNAME_MAX).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(allowed);
    if valid { Ok(()) } else { Err(InvalidAttachment::Ifname { shown: shown(name) }) }
}

/// Escaped, so that hostile input cannot forge a log line, and cut to 40 characters.
fn shown(input: &str) -> String {
    let cut: String = input.chars().take(40).collect();
    let dots = if cut.len() < input.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

/// The form that CNI's `cni.dev/valid-attachments` has.
#[derive(Serialize, Deserialize)]
struct Names {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

impl TryFrom<Names> for AttachmentId {
    type Error = InvalidAttachment;

    fn try_from(names: Names) -> Result<Self, Self::Error> {
        Self::new(names.container, names.ifname)
    }
}

impl From<AttachmentId> for Names {
    fn from(id: AttachmentId) -> Self {
        Self { container: id.container, ifname: id.ifname }
    }
}

// The constants of FNV-1a for 128 bits.
const FNV_OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const FNV_PRIME: u128 = (1 << 88) + 0x13b;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_place_are_refused() {
        for container in ["", "../x", "a/b", "-a", ".a", "a b", "a\n", "ä", "a\0b", &"a".repeat(201)] {
            assert!(
                matches!(AttachmentId::new(container, "eth0"), Err(InvalidAttachment::Container { .. })),
                "{container:?}"
            );
        }
        for ifname in
            ["", ".", "..", "a/b", "a:b", "eth 0", "eth\t0", "eth%d", "é", "sixteencharacter", "a\0"]
        {
            assert!(
                matches!(AttachmentId::new("a", ifname), Err(InvalidAttachment::Ifname { .. })),
                "{ifname:?}"
            );
        }
    }

    #[test]
    fn ordinary_names_are_accepted_and_survive_json() {
        for (container, ifname) in [("a", "eth0"), (&*"f".repeat(64), "fifteencharact1"), ("A_b.c-1", "n.1")]
        {
            let id = AttachmentId::new(container, ifname).unwrap();
            let json = serde_json::to_string(&id).unwrap();
            assert_eq!(serde_json::from_str::<AttachmentId>(&json).unwrap(), id);
        }
    }

    #[test]
    fn json_cannot_bypass_the_check() {
        let hostile = r#"{"containerID":"../../etc","ifname":"eth0"}"#;
        let error = serde_json::from_str::<AttachmentId>(hostile).unwrap_err();
        assert!(error.to_string().contains("container id \"../../etc\""), "{error}");
    }

    #[test]
    fn host_name_fits_the_kernel_and_tells_attachments_apart() {
        let names: std::collections::HashSet<String> =
            (0..10_000).map(|i| AttachmentId::new(format!("c{i}"), "eth0").unwrap().host_ifname()).collect();
        assert_eq!(names.len(), 10_000);
        assert!(names.iter().all(|name| name.len() == 13 && name.starts_with("ptl")));
    }

    #[test]
    fn long_hostile_names_are_cut_in_messages() {
        let error = AttachmentId::new("/".repeat(100_000), "eth0").unwrap_err();
        assert!(error.to_string().len() < 200);
    }
}
