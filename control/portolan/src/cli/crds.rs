//! `portolan crds`.

use anyhow::Context;

/// The beginning of the output.
const HEAD: &str = "# The kinds of portolan.dev/v1alpha1, as `portolan crds` prints them.\n";

/// Every CustomResourceDefinition, as YAML.
pub(super) fn yaml() -> anyhow::Result<String> {
    let mut text = HEAD.to_owned();
    for crd in portolan_model::crds() {
        text += "---\n";
        text += &serde_yaml_ng::to_string(&crd).context("writing YAML")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_manifest_is_what_the_command_prints() {
        let manifest = include_str!("../../../../deploy/crds.yaml");
        assert!(
            manifest == super::yaml().unwrap(),
            "deploy/crds.yaml is not up to date: `portolan crds > deploy/crds.yaml` makes it so"
        );
    }
}
