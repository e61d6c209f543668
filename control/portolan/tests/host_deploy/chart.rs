//! The Helm chart, as Helm's own engine reads it.

use std::collections::BTreeSet;

use clap::{CommandFactory, Parser};
use portolan::cli::Arguments;
use serde_json::{Map, Value, json};

use crate::files::{documents, read, root};
use crate::helm::{Chart, arguments};

/// What has to be given.
fn least() -> Value {
    json!({"apiServers": ["https://192.0.2.10:6443"]})
}

/// [`least`] and these.
fn with(more: Value) -> Value {
    let (Value::Object(mut values), Value::Object(more)) = (least(), more) else { unreachable!() };
    values.extend(more);
    Value::Object(values)
}

/// A value for everything that the chart turns into an option, and the words that come of it.
fn everything() -> (Value, Vec<&'static str>, Vec<&'static str>) {
    let values = json!({
        "apiServers": ["https://192.0.2.10:6443", "https://[2001:db8::11]:6443"],
        "serviceCIDRs": ["10.96.0.0/16", "fd00:10:96::/112"],
        "routingMode": "vxlan",
        "overlay": {"port": 4789, "id": 16_777_215, "family": "ipv6"},
        "mtu": 1400,
        "masquerade": false,
        "nonMasqueradeCIDRs": ["192.0.2.0/24"],
        "routablePods": ["10.244.0.0/17", "2001:db8:1::/48"],
        "externalMode": "hybrid",
        "externalSelection": "maglev",
        "externalIPs": true,
        "departedBackends": "reset",
        "nodePortRange": "31000-31999",
        "nodePortAddresses": ["192.0.2.0/24", "2001:db8::/64"],
        "masqueradeRange": "20000-29999",
        "socketCgroup": "/sys/fs/cgroup",
        "loadBalancerClass": "example.com/lb",
        "bgp": {"asn": 4_200_000_000_u32, "listen": ["0.0.0.0:179", "[::]:179"]},
        "l2": {"interfaces": ["eth0", "bond0.7"], "port": 7947},
        "onStop": "withdraw",
        // Such numbers have an exponent, if a template prints them as they are.
        "sizes": {
            "services": 65_536, "slots": 4_194_304, "backends": 131_072, "frontends": 131_072, "sources": 1_000_000,
            "clients": 2_000_000, "flows": 16_777_216
        },
        "auditInterval": 30,
        "metricsBindAddress": "0.0.0.0:10250",
        "healthzBindAddress": "[::]:10257",
        "logFormat": "json",
        "agent": {"extraArgs": ["--force-clsact"]},
        "controller": {
            "leaseDuration": 20, "defaultLoadBalancer": false, "extraArgs": ["--state=/tmp/state"]
        }
    });
    let agent = vec![
        "agent",
        "--node-name=$(NODE_NAME)",
        "--source=kubernetes",
        "--apiserver=https://192.0.2.10:6443,https://[2001:db8::11]:6443",
        "--service-cidr=10.96.0.0/16,fd00:10:96::/112",
        "--routing-mode=vxlan",
        "--overlay-port=4789",
        "--overlay-id=16777215",
        "--overlay-family=ipv6",
        "--mtu=1400",
        "--masquerade=false",
        "--non-masquerade-cidr=192.0.2.0/24",
        "--routable-pods=10.244.0.0/17,2001:db8:1::/48",
        "--external-mode=hybrid",
        "--external-selection=maglev",
        "--departed-backends=reset",
        "--node-port-range=31000-31999",
        "--nodeport-addresses=192.0.2.0/24,2001:db8::/64",
        "--masquerade-range=20000-29999",
        "--socket-cgroup=/sys/fs/cgroup",
        "--load-balancer-class=example.com/lb",
        "--bgp-asn=4200000000",
        "--bgp-listen=0.0.0.0:179,[::]:179",
        "--l2-interfaces=eth0,bond0.7",
        "--l2-port=7947",
        "--on-stop=withdraw",
        "--services=65536",
        "--slots=4194304",
        "--backends=131072",
        "--frontends=131072",
        "--sources=1000000",
        "--clients=2000000",
        "--flows=16777216",
        "--audit-interval=30",
        "--metrics=0.0.0.0:10250",
        "--healthz-bind-address=[::]:10257",
        "--log-format=json",
        "--external-ips",
        "--force-clsact",
    ];
    let controller = vec![
        "controller",
        "--source=kubernetes",
        "--apiserver=https://192.0.2.10:6443,https://[2001:db8::11]:6443",
        "--service-cidr=10.96.0.0/16,fd00:10:96::/112",
        "--lease-duration=20",
        "--load-balancer-class=example.com/lb",
        "--default-load-balancer=false",
        "--log-format=json",
        "--state=/tmp/state",
    ];
    (values, agent, controller)
}

/// Options that no value of the chart has: what pods of a cluster do not need, or what the chart's mounts settle.
const NOT_VALUES: [&str; 14] = [
    // Each node's own.
    "bgp-router-id",
    "bpffs",
    "cgroup-root",
    "cni-bin-dir",
    "cni-conf-dir",
    "force-clsact",
    "help",
    // The chart's role is for this one.
    "lease",
    "no-cni-install",
    "pins",
    "socket",
    "state",
    "state-dir",
    "version",
];

#[test]
fn helm_has_nothing_to_complain_about() {
    for values in [json!({}), least(), everything().0, monitored()] {
        assert_eq!(Chart::with(&values).complaints, Vec::<String>::new(), "with {values}");
    }
}

#[test]
fn the_chart_has_the_version_of_what_it_installs() {
    let chart = &documents(&read("deploy/chart/portolan/Chart.yaml"))[0];
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_value_becomes_an_option_that_the_binary_has() {
    let (values, agent, controller) = everything();
    let chart = Chart::with(&values);
    for (kind, name, expected) in
        [("DaemonSet", "portolan", agent), ("Deployment", "portolan-controller", controller)]
    {
        let words = arguments(chart.pod(kind, name));
        assert_eq!(words, expected, "{kind}");
        let line = std::iter::once("portolan").chain(words);
        if let Err(error) = Arguments::try_parse_from(line) {
            panic!("{kind}: {error}");
        }
    }
}

#[test]
fn every_option_of_the_binary_is_a_value_or_left_out_on_purpose() {
    let (_, agent, controller) = everything();
    for (command, words) in [("agent", agent), ("controller", controller)] {
        let given: BTreeSet<&str> =
            words.iter().filter_map(|word| word.strip_prefix("--")?.split('=').next()).collect();
        let mut root = Arguments::command();
        root.build();
        let command = root.find_subcommand(command).unwrap();
        let options = command.get_arguments().filter_map(|option| option.get_long());
        let forgotten: Vec<&str> =
            options.filter(|it| !given.contains(it) && !NOT_VALUES.contains(it)).collect();
        assert!(
            forgotten.is_empty(),
            "{}: {forgotten:?}: give each a value in deploy/chart/portolan (values.yaml, values.schema.json, \
             templates/_helpers.tpl) and in this test, or name it in NOT_VALUES",
            command.get_name()
        );
    }
}

#[test]
fn what_is_not_set_is_left_to_the_binary() {
    let chart = Chart::with(&least());
    let words = arguments(chart.pod("DaemonSet", "portolan"));
    let set = ["agent", "--node-name", "--source", "--apiserver", "--service-cidr"];
    assert_eq!(words.iter().map(|word| word.split('=').next().unwrap()).collect::<Vec<_>>(), set);
    let words = arguments(chart.pod("Deployment", "portolan-controller"));
    assert_eq!(
        words,
        [
            "controller",
            "--source=kubernetes",
            "--apiserver=https://192.0.2.10:6443",
            "--service-cidr=10.96.0.0/12,fd00:10:96::/112"
        ]
    );
}

/// Without what a chart adds to tell releases apart.
fn without_labels(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields
                .iter()
                .filter(|(name, _)| !["labels", "selector", "labelSelector"].contains(&&***name));
            Value::Object(kept.map(|(name, value)| (name.clone(), without_labels(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_labels).collect()),
        other => other.clone(),
    }
}

#[test]
fn the_chart_installs_what_the_plain_manifests_do() {
    let chart = Chart::with(&with(json!({"image": {"tag": "latest"}})));
    let entries = std::fs::read_dir(root().join("deploy")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let manifests: Vec<String> =
        names.filter(|name| name.ends_with(".yaml") && name != "crds.yaml").collect();
    assert!(manifests.contains(&"portolan.yaml".to_owned()));
    for manifest in manifests {
        for document in documents(&read(&format!("deploy/{manifest}"))) {
            let (kind, name) =
                (document["kind"].as_str().unwrap(), document["metadata"]["name"].as_str().unwrap());
            let (plain, rendered) = (without_labels(&document), without_labels(chart.document(kind, name)));
            let (plain, rendered) = (pretty(&plain), pretty(&rendered));
            assert!(plain == rendered, "{manifest}: {kind} {name}:\n{plain}\nthe chart's:\n{rendered}");
        }
    }
}

fn pretty(value: &Value) -> String {
    serde_yaml_ng::to_string(value).unwrap()
}

#[test]
fn the_kinds_that_come_with_the_chart_are_those_of_the_model() {
    let kinds: Vec<Value> =
        portolan_model::crds().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect();
    assert_eq!(Chart::with(&least()).crds, kinds);
}

#[test]
fn pods_find_their_service_accounts_and_selectors_only_their_own_pods() {
    let chart = Chart::with(&with(json!({"controller": {"replicas": 3}})));
    let selector =
        |kind: &str, name: &str| chart.document(kind, name)["spec"]["selector"]["matchLabels"].clone();
    let labels =
        |kind: &str, name: &str| chart.document(kind, name)["spec"]["template"]["metadata"]["labels"].clone();
    for (kind, name) in [("DaemonSet", "portolan"), ("Deployment", "portolan-controller")] {
        assert_eq!(selector(kind, name), labels(kind, name));
        assert_eq!(chart.pod(kind, name)["serviceAccountName"], name);
        chart.document("ServiceAccount", name);
        let binding = chart.document("ClusterRoleBinding", name);
        assert_eq!(
            binding["subjects"][0],
            json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"})
        );
        assert_eq!(binding["roleRef"]["name"], name);
        chart.document("ClusterRole", name);
    }
    assert_ne!(selector("DaemonSet", "portolan"), selector("Deployment", "portolan-controller"));
    assert_eq!(chart.document("Deployment", "portolan-controller")["spec"]["replicas"], 3);
}

#[test]
fn the_controller_has_no_right_on_its_node_and_can_be_left_out() {
    let chart = Chart::with(&least());
    let pod = chart.pod("Deployment", "portolan-controller");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let own = &pod["containers"][0]["securityContext"];
    assert_eq!(
        (&own["allowPrivilegeEscalation"], &own["readOnlyRootFilesystem"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(own["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!((&pod["hostNetwork"], &pod["volumes"]), (&Value::Null, &Value::Null));

    let without = Chart::with(&with(json!({"controller": {"enabled": false}})));
    let left = without.documents.iter().filter(|it| it["metadata"]["name"] == "portolan-controller");
    assert_eq!(left.count(), 0);
    without.document("DaemonSet", "portolan");
}

#[test]
fn the_image_is_one_and_can_be_named_by_digest() {
    let image = |values: &Value| {
        let chart = Chart::with(values);
        let of = |kind: &str, name: &str| chart.pod(kind, name)["containers"][0]["image"].clone();
        let (agent, controller) = (of("DaemonSet", "portolan"), of("Deployment", "portolan-controller"));
        assert_eq!(agent, controller);
        agent.as_str().unwrap().to_owned()
    };
    assert_eq!(image(&least()), concat!("portolan:", env!("CARGO_PKG_VERSION")));
    assert_eq!(
        image(&with(json!({"image": {"repository": "example.com/p", "tag": "1"}}))),
        "example.com/p:1"
    );
    let digest = format!("sha256:{}", "0".repeat(64));
    assert_eq!(image(&with(json!({"image": {"digest": digest}}))), format!("portolan@{digest}"));
}

#[test]
fn the_kubelet_asks_where_the_agent_answers() {
    for (address, port) in [(None, 10_256), (Some("0.0.0.0:11256"), 11_256), (Some("[::]:12256"), 12_256)] {
        let chart = Chart::with(&with(json!({"healthzBindAddress": address})));
        let probe = &chart.pod("DaemonSet", "portolan")["containers"][0]["livenessProbe"]["httpGet"];
        assert_eq!(probe["port"], port);
    }
}

#[test]
fn the_log_level_reaches_both() {
    let chart = Chart::with(&with(json!({"logLevel": "portolan=debug"})));
    for (kind, name) in [("DaemonSet", "portolan"), ("Deployment", "portolan-controller")] {
        let variables = chart.pod(kind, name)["containers"][0]["env"].as_array().unwrap();
        assert!(variables.contains(&json!({"name": "RUST_LOG", "value": "portolan=debug"})), "{kind}");
    }
}

#[test]
fn what_pods_may_have_reaches_them() {
    let own = json!({
        "nodeSelector": {"example.com/role": "edge"},
        "tolerations": [{"key": "example.com/edge", "operator": "Exists"}],
        "podAnnotations": {"example.com/team": "net"},
        "resources": {"limits": {"memory": "256Mi"}},
        "priorityClassName": "example"
    });
    let values =
        with(json!({"agent": own, "controller": own, "image": {"pullSecrets": [{"name": "registry"}]}}));
    let chart = Chart::with(&values);
    for (kind, name) in [("DaemonSet", "portolan"), ("Deployment", "portolan-controller")] {
        let pod = chart.pod(kind, name);
        for field in ["nodeSelector", "tolerations", "priorityClassName"] {
            assert_eq!(pod[field], own[field], "{kind}");
        }
        assert_eq!(pod["containers"][0]["resources"]["limits"], own["resources"]["limits"], "{kind}");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]), "{kind}");
        let template = &chart.document(kind, name)["spec"]["template"];
        assert_eq!(template["metadata"]["annotations"], own["podAnnotations"], "{kind}");
    }
}

#[test]
fn directories_of_the_node_can_be_elsewhere() {
    let values = with(json!({"hostPaths": {"cniConf": "/var/lib/cni/conf"}}));
    let chart = Chart::with(&values);
    let volumes = chart.pod("DaemonSet", "portolan")["volumes"].as_array().unwrap();
    let path = |name: &str| volumes.iter().find(|it| it["name"] == name).unwrap()["hostPath"]["path"].clone();
    assert_eq!((path("cni-conf"), path("cni-bin")), (json!("/var/lib/cni/conf"), json!("/opt/cni/bin")));
}

fn monitored() -> Value {
    with(json!({
        "metricsBindAddress": "0.0.0.0:10249",
        "serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": true},
        "dashboard": {"enabled": true}
    }))
}

#[test]
fn prometheus_and_grafana_get_what_the_files_say() {
    let chart = Chart::with(&monitored());
    let service = &chart.document("Service", "portolan-agent")["spec"];
    assert_eq!((&service["clusterIP"], &service["ports"][0]["port"]), (&json!("None"), &json!(10_249)));
    let agent = &chart.document("DaemonSet", "portolan")["spec"]["selector"]["matchLabels"];
    assert_eq!(&service["selector"], agent);
    let monitor = chart.document("ServiceMonitor", "portolan-agent");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let labels = chart.document("Service", "portolan-agent")["metadata"]["labels"].as_object().unwrap();
    let wanted: &Map<String, Value> = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    assert!(wanted.iter().all(|(name, value)| labels.get(name) == Some(value)), "{wanted:?} of {labels:?}");

    let rules = &documents(&read("deploy/prometheus/alerts.yaml"))[0];
    assert_eq!(&chart.document("PrometheusRule", "portolan")["spec"], rules);
    let map = chart.document("ConfigMap", "portolan-dashboard");
    assert_eq!(map["data"]["portolan.json"], read("deploy/grafana/portolan.json"));

    let without = Chart::with(&least());
    for kind in ["Service", "ServiceMonitor", "PrometheusRule", "ConfigMap"] {
        assert!(!without.documents.iter().any(|it| it["kind"] == kind), "{kind} though nobody asked for it");
    }
}

#[test]
fn what_cannot_work_is_refused_with_what_to_do() {
    let refusals = [
        (json!({}), "name the API servers' own addresses"),
        (with(json!({"serviceMonitor": {"enabled": true}})), "set metricsBindAddress"),
        (
            with(json!({"serviceMonitor": {"enabled": true}, "metricsBindAddress": "127.0.0.1:10249"})),
            "set another, as 0.0.0.0:10249",
        ),
    ];
    for (values, expected) in refusals {
        let error = Chart::with(&values).error.unwrap_or_else(|| panic!("{values} is taken"));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn values_that_no_option_takes_are_refused_with_their_names() {
    let bad = [
        (json!({"routeingMode": "vxlan"}), "routeingMode"),
        (json!({"routingMode": "tunnel"}), "routingMode"),
        (json!({"serviceCIDRs": []}), "serviceCIDRs"),
        (json!({"serviceCIDRs": ["10.96.0.0"]}), "serviceCIDRs"),
        (json!({"apiServers": ["192.0.2.10:6443"]}), "apiServers"),
        (json!({"masquerade": "no"}), "masquerade"),
        (json!({"nodePortRange": "30000"}), "nodePortRange"),
        (json!({"nodePortAddresses": ["primary", "192.0.2.0/24"]}), "nodePortAddresses"),
        (json!({"overlay": {"id": 16_777_216}}), "overlay"),
        (json!({"sizes": {"flow": 1}}), "flow"),
        (json!({"metricsBindAddress": "10249"}), "metricsBindAddress"),
        (json!({"agent": {"privileged": false}}), "privileged"),
        (json!({"controller": {"replicas": 0}}), "replicas"),
        (json!({"image": {"digest": "latest"}}), "digest"),
    ];
    for (values, name) in bad {
        let error = Chart::with(&with(values.clone())).error.unwrap_or_else(|| panic!("{values} is taken"));
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn values_and_their_schema_have_the_same_names() {
    let schema: Value = serde_json::from_str(&read("deploy/chart/portolan/values.schema.json")).unwrap();
    let values = &documents(&read("deploy/chart/portolan/values.yaml"))[0];
    same_names(values, &schema, "");
}

fn same_names(values: &Value, schema: &Value, place: &str) {
    let (Some(values), Some(properties)) = (values.as_object(), schema["properties"].as_object()) else {
        return;
    };
    // Helm's own, for charts of charts.
    let described = properties.keys().filter(|name| *name != "global");
    assert_eq!(
        values.keys().collect::<BTreeSet<_>>(),
        described.collect::<BTreeSet<_>>(),
        "at {place:?} values.yaml and values.schema.json differ"
    );
    assert_eq!(schema["additionalProperties"], false, "at {place:?} anything goes");
    for (name, value) in values {
        same_names(value, &properties[name], &format!("{place}.{name}"));
    }
}

#[test]
fn the_notes_tell_what_the_values_need() {
    let native = Chart::with(&least()).notes;
    assert!(
        native.contains("rollout status daemonset/portolan") && native.contains("routingMode=vxlan"),
        "{native}"
    );
    let overlay = Chart::with(&with(json!({"routingMode": "vxlan"}))).notes;
    assert!(!overlay.contains("each other's addresses directly"), "{overlay}");
}
