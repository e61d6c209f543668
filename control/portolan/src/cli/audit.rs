//! `portolan audit`: whether the kernel's tables are what the objects want.

use std::process::ExitCode;

use super::text::{Column, Table, or_dash};
use super::{Global, Output, client};
use crate::api::AuditView;

pub(super) fn run(output: Output, global: &Global) -> anyhow::Result<ExitCode> {
    let differences = client::audit(&global.socket)?;
    output.emit(differences.as_slice(), table)?;
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(differences: &[AuditView]) -> String {
    if differences.is_empty() {
        return "the kernel's tables are what the objects want\n".to_owned();
    }
    let mut table = Table::new(["PLACE", "DESIRED", "KERNEL"].map(Column::Left));
    for AuditView { place, desired, kernel } in differences {
        let text = |side: &Option<String>| or_dash(side.as_deref().unwrap_or_default());
        table.row([place.as_str().into(), text(desired), text(kernel)]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::plain;

    #[test]
    fn differences_are_listed_with_both_sides() {
        let difference = AuditView {
            place: "10.96.0.10:80 TCP".into(),
            desired: Some("flags 0x0, backends 10.244.1.2:8080".into()),
            kernel: None,
        };
        assert_eq!(
            plain(&table(&[difference])),
            "\
PLACE              DESIRED                              KERNEL
10.96.0.10:80 TCP  flags 0x0, backends 10.244.1.2:8080  -
"
        );
        assert_eq!(table(&[]), "the kernel's tables are what the objects want\n");
    }
}
