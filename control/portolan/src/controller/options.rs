//! What can be chosen when the controller starts.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use http::Uri;
use ipnetwork::IpNetwork;
use portolan_kubernetes::LeaseName;
use portolan_pool::Settings;

use crate::agent::{LogFormat, SERVICE_CIDRS, SourceSpec};

/// Options of `portolan controller`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "It needs no root, and one is enough for all nodes. A second one on the same directory is refused; of several on \
    one API server one leads and the others wait.\n\n\
    Example:\n  portolan controller --source dir:/etc/portolan/objects\n  portolan controller --source kubernetes"
)]
pub struct Options {
    /// Where objects come from and what is given goes to: dir:PATH, a directory of Kubernetes YAML; or kubernetes, the API
    /// server of the cluster that this process is a pod of; or kubernetes:KUBECONFIG
    #[arg(long, value_name = "SOURCE")]
    pub source: SourceSpec,
    /// The file that it keeps what it gave in, and that agents read it from: in their directory. Not set:
    /// portolan-status.yaml in the directory of the source. With kubernetes the statuses of Services are that
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Addresses of API servers (https://HOST:PORT) to use in turn instead of the configuration's
    #[arg(long = "apiserver", value_name = "URL", value_delimiter = ',')]
    pub api_servers: Vec<Uri>,
    /// With kubernetes: the Lease that says which controller leads, as NAMESPACE/NAME or NAME. Without a namespace it is in
    /// that of the configuration: in a pod the pod's own
    #[arg(long, value_name = "LEASE", default_value = "portolan-controller", value_parser = lease)]
    pub lease: LeaseName,
    /// How long a leader that is not heard of leads
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub lease_duration: u64,
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
            document_addresses: matches!(self.source, SourceSpec::Dir(_)),
        }
    }
}

fn lease(text: &str) -> Result<LeaseName, String> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, text),
    };
    if name.is_empty() || name.contains('/') || namespace.as_ref().is_some_and(String::is_empty) {
        return Err(format!("expected NAMESPACE/NAME or NAME, found {text:?}"));
    }
    Ok(LeaseName { namespace, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use portolan_kubernetes::{Interest, writes};
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }

    /// The documents of a kind in the manifest.
    fn of_kind(kind: &str) -> Value {
        let text = include_str!("../../../../deploy/controller.yaml");
        let documents = serde_yaml_ng::Deserializer::from_str(text);
        let mut documents =
            documents.map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap());
        documents.find(|document| document["kind"] == kind).unwrap()
    }

    /// What rules allow, as `group/resource verb`, sorted.
    fn allowed(rules: &Value) -> Vec<String> {
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
        };
        let mut all = Vec::new();
        for rule in rules.as_array().unwrap() {
            for resource in texts(&rule["resources"]) {
                let group = rule["apiGroups"][0].as_str().unwrap();
                all.extend(texts(&rule["verbs"]).iter().map(|verb| format!("{group}/{resource} {verb}")));
            }
        }
        all.sort();
        all
    }

    #[test]
    fn the_cluster_role_allows_what_the_controller_does_and_nothing_else() {
        let reads = Interest::CONTROLLER.resources();
        let reads = reads.iter().flat_map(|it| ["list", "watch"].map(|verb| format!("{it} {verb}")));
        let mut wanted: Vec<String> = reads.chain(writes()).collect();
        wanted.sort();
        assert_eq!(allowed(&of_kind("ClusterRole")["rules"]), wanted);
    }

    #[test]
    fn the_role_allows_to_hold_the_lease_that_the_options_name_and_no_other() {
        let container = &of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0];
        let words = container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let options = Arguments::try_parse_from(words).unwrap().options;
        assert_eq!(options.source, SourceSpec::Kubernetes(None));
        assert!(!options.settings().document_addresses, "the controller itself writes them");

        let role = of_kind("Role");
        let leases = ["create", "get", "patch"].map(|verb| format!("coordination.k8s.io/leases {verb}"));
        assert_eq!(allowed(&role["rules"]), leases);
        assert_eq!(role["rules"][1]["resourceNames"], json!([options.lease.name]));
        let namespaces = ["Role", "RoleBinding", "Deployment", "ServiceAccount"]
            .map(|kind| of_kind(kind)["metadata"]["namespace"].clone());
        assert!(
            namespaces.iter().all(|it| *it == namespaces[0]),
            "the lease is in the pod's namespace: {namespaces:?}"
        );
        assert_eq!(options.lease.namespace, None);
    }

    #[test]
    fn a_lease_is_named_with_or_without_its_namespace() {
        assert_eq!(lease("a/b"), Ok(LeaseName { namespace: Some("a".into()), name: "b".into() }));
        assert_eq!(lease("b"), Ok(LeaseName { namespace: None, name: "b".into() }));
        for bad in ["", "/b", "a/", "a/b/c"] {
            assert!(lease(bad).unwrap_err().contains("NAMESPACE/NAME"), "{bad}");
        }
    }
}
