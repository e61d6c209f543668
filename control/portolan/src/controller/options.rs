//! What can be chosen when the controller starts.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use ipnetwork::IpNetwork;
use portolan_pool::Settings;

use crate::agent::{LogFormat, SERVICE_CIDRS, SourceSpec};

/// Options of `portolan controller`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "It needs no root, and one is enough for all nodes: a second one on the same state is refused.\n\n\
    Example:\n  portolan controller --source dir:/etc/portolan/objects"
)]
pub struct Options {
    /// Where objects come from: dir:PATH, a directory of Kubernetes YAML
    #[arg(long, value_name = "SOURCE")]
    pub source: SourceSpec,
    /// The file that it keeps what it gave in, and that agents read it from: in their directory. Not set:
    /// portolan-status.yaml in the directory of the source
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Ranges of services' cluster addresses, as agents have them: nothing in them is given
    #[arg(long = "service-cidr", value_delimiter = ',', default_values = SERVICE_CIDRS)]
    pub service_cidrs: Vec<IpNetwork>,
    /// The loadBalancerClass of services that get addresses here
    #[arg(long, value_name = "NAME", default_value = portolan_pool::CLASS)]
    pub load_balancer_class: String,
    /// Services without a loadBalancerClass get addresses here, too
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub default_load_balancer: bool,
    /// Form of the log on stderr; RUST_LOG chooses what is logged
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Options {
    pub(super) fn settings(&self) -> Settings {
        Settings {
            class: self.load_balancer_class.as_str().into(),
            is_default: self.default_load_balancer,
            service_cidrs: self.service_cidrs.clone(),
            document_addresses: true,
        }
    }
}
