//! Helm's own engine, asked about the chart.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::files::{documents, root};

/// What Helm says about the chart with some values.
pub(crate) struct Chart {
    /// Every document that would be applied, without CustomResourceDefinitions.
    pub(crate) documents: Vec<Value>,
    /// The CustomResourceDefinitions.
    pub(crate) crds: Vec<Value>,
    /// What is told after an installation.
    pub(crate) notes: String,
    /// What `helm lint --strict` complains about.
    pub(crate) complaints: Vec<String>,
    /// Why nothing can be installed.
    pub(crate) error: Option<String>,
}

impl Chart {
    /// Asks for release `portolan` in namespace `kube-system`.
    pub(crate) fn with(values: &Value) -> Self {
        let answer = ask_helm(values);
        let files = answer["files"].as_object();
        let files: Vec<(&String, &str)> =
            files.into_iter().flatten().map(|(name, text)| (name, text.as_str().unwrap())).collect();
        let (notes, manifests): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|(name, _)| name.ends_with("NOTES.txt"));
        let crds = answer["crds"].as_array().into_iter().flatten();
        let messages = answer["lint"]["messages"].as_array().unwrap();
        // 2: a warning.
        let complaints = messages.iter().filter(|it| it["severity"].as_u64().unwrap() >= 2);
        Self {
            documents: manifests.into_iter().flat_map(|(_, text)| documents(text)).collect(),
            crds: crds.flat_map(|crd| documents(crd.as_str().unwrap())).collect(),
            notes: notes.into_iter().map(|(_, text)| text).collect(),
            complaints: complaints.map(|it| format!("{}: {}", it["path"], it["error"])).collect(),
            error: answer["error"].as_str().map(str::to_owned),
        }
    }

    /// The document of this kind and name.
    pub(crate) fn document(&self, kind: &str, name: &str) -> &Value {
        let found = self.find(kind, name);
        found.unwrap_or_else(|| panic!("no {kind} {name}; Helm: {:?}", self.error))
    }

    /// [`document`](Self::document), if there is one.
    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.documents.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == name)
    }

    /// The pod of a DaemonSet or Deployment.
    pub(crate) fn pod(&self, kind: &str, name: &str) -> &Value {
        &self.document(kind, name)["spec"]["template"]["spec"]
    }
}

/// The words of the command line of a pod's only container.
pub(crate) fn arguments(pod: &Value) -> Vec<&str> {
    pod["containers"][0]["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

fn ask_helm(values: &Value) -> Value {
    let engine = target().join("helm");
    assert!(
        engine.join("helm_python").is_dir(),
        "Helm is not at {}: run `cargo xtask setup`",
        engine.display()
    );
    let request = json!({
        "chart": root().join("deploy/chart/portolan"),
        "values": values,
        "release": "portolan",
        "namespace": "kube-system",
    });
    // It needs no network, and gets none.
    let mut helm = Command::new("unshare")
        .args(["--net", "python3", "-B"])
        .arg(root().join("control/portolan/tests/host_deploy/helm.py"))
        .arg(engine)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare and python3 are there");
    helm.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let output = helm.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The directory of build results that this test is in: DIRECTORY/debug/deps/TEST.
fn target() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(3).expect("cargo put it there").to_owned()
}
