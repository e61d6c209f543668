//! `portolan status`.

mod data_plane;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use data_plane::DataPlane;

use super::text::{
    BAD, Cell, Column, GOOD, HEAD, Table, WARN, clean, duration, join, microseconds, paint, section,
};
use super::{AskError, Global, Output, client};
use crate::api::Status;

/// From this share on a table is said to be almost full.
const ALMOST_FULL: u64 = 90;

pub(super) fn run(output: Output, global: &Global) -> anyhow::Result<ExitCode> {
    match client::status(&global.socket) {
        Ok(status) => {
            output.emit(&status, text)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error @ (AskError::NotRunning { .. } | AskError::Silent { .. } | AskError::Closed { .. })) => {
            // Packets do not need the agent: what they do need is what the operator wants to know now.
            output.emit(&DataPlane::read(&global.pins, &error), DataPlane::text)?;
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

fn text(status: &Status) -> String {
    let ready = if status.ready { paint("ready", GOOD) } else { paint("not ready", BAD) };
    let up = duration(status.uptime_seconds);
    let agent = format!("{} on node {}, {ready}, up {up}", clean(&status.version), clean(&status.node));
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(&entry(name, &value));
    };
    line("Agent", agent);
    line("Addresses", or_none(join(&status.addresses)));
    line("podCIDRs", or_none(join(status.pod_cidrs.iter().map(pod_cidr))));
    line("Programs", programs(status));
    let sockets = status.socket_cgroup.as_deref().map(|path| format!("balanced in cgroup {}", clean(path)));
    line("Sockets", sockets.unwrap_or_else(|| "left alone (--socket-cgroup)".to_owned()));
    line("Outside", outside(&status.external_mode));
    line("Services", status.services.to_string());
    line("Pods", status.pods.to_string());
    line("Routes", status.routes.to_string());
    line(
        "Last change",
        format!("took {} ({} so far)", microseconds(status.last_sync_microseconds), status.syncs),
    );
    if !status.tables.is_empty() {
        text.push('\n');
        text.push_str(&tables(status));
    }
    text.push_str(&section("Not ready", &status.not_ready, BAD));
    text.push_str(&section("Warnings", &status.warnings, WARN));
    text.push_str(&section("Conditions of services", &status.conditions, WARN));
    text.push_str(&section("Refused documents", &status.refused_documents, WARN));
    text
}

/// A line of `name  value`.
fn entry(name: &str, value: &str) -> String {
    let blanks = " ".repeat(13usize.saturating_sub(name.len()));
    format!("{}{blanks}{value}\n", paint(name, HEAD))
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

fn pod_cidr(view: &crate::api::CidrView) -> String {
    clean(&format!("{} ({} of {} used)", view.cidr, view.used, view.capacity))
}

/// `tcx at eth0 (uplink), lo (loopback)`.
fn programs(status: &Status) -> String {
    if status.interfaces.is_empty() {
        return paint("attached nowhere yet", WARN);
    }
    let places = status.interfaces.iter().map(|(name, role)| format!("{name} ({role})"));
    clean(&format!("{} at {} and every pod", status.attach_mode, join(places)))
}

/// `dsr (answered by the backend's node)`.
fn outside(mode: &str) -> String {
    let how = match mode {
        "dsr" => "clients are answered by the backend's node",
        "hybrid" => "TCP clients are answered by the backend's node, UDP clients through this one",
        _ => "clients of backends elsewhere are masqueraded",
    };
    clean(&format!("{mode} ({how})"))
}

fn tables(status: &Status) -> String {
    let mut table = Table::new([
        Column::Left("TABLE"),
        Column::Right("USED"),
        Column::Right("CAPACITY"),
        Column::Right("FULL"),
    ]);
    for (name, (used, capacity)) in &status.tables {
        // A table without room is full, whatever is in it.
        let percent = used.saturating_mul(100).checked_div(*capacity).unwrap_or(100);
        let style = match percent {
            0..ALMOST_FULL => anstyle::Style::new(),
            ALMOST_FULL..100 => WARN,
            _ => BAD,
        };
        table.row([
            name.as_str().into(),
            used.to_string().into(),
            capacity.to_string().into(),
            Cell::styled(format!("{percent}%"), style),
        ]);
    }
    table.render()
}
