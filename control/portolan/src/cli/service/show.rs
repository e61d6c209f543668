//! One service, drawn: frontends, arrows, backends and how the flows spread.

use std::fmt::Write;
use std::net::SocketAddr;

use super::super::text::{BAD, FAINT, GOOD, HEAD, WARN, clean, count, duration, join, paint, section};
use super::{frontend, full_name};
use crate::api::{BackendView, LocalView, PortView, ServiceView};

/// Characters of a full bar.
const BAR: u64 = 20;

/// The drawing.
pub(super) fn text(service: &ServiceView) -> String {
    let mut text = format!("{}\n", paint(&clean(&full_name(&service)), HEAD));
    if service.ports.is_empty() {
        text.push_str("  no port of it is served\n");
    }
    for port in &service.ports {
        text.push('\n');
        draw(port, &mut text);
    }
    text + &section("Conditions", &service.conditions, WARN) + &section("Notes", &service.notes, FAINT)
}

// Writing to a string cannot fail: results of `writeln!` are dropped throughout.
fn draw(port: &PortView, text: &mut String) {
    let name = if port.name.is_empty() { String::new() } else { format!("{} ", clean(&port.name)) };
    let title = format!("{name}{} {}", clean(&port.protocol), clean(&port.family));
    let _ = writeln!(text, "  {}  {}", paint(&title, HEAD), paint(&rules(port).join(", "), FAINT));
    let kinds = port.frontends.iter().map(|frontend| frontend.kind.chars().count()).max().unwrap_or(0);
    for at in &port.frontends {
        let _ = writeln!(text, "    {:kinds$}  {}", clean(&at.kind), frontend(at));
    }
    if port.frontends.is_empty() {
        let _ = writeln!(text, "    {}", paint("no frontend", BAD));
    }
    if let Some(sources) = &port.sources {
        let _ = writeln!(text, "    {}", admitted(sources));
    }
    if port.backends.is_empty() {
        let _ = writeln!(text, "      → {}", paint("no backend: clients are rejected", BAD));
    }
    let rows = Rows::of(&port.backends);
    for backend in &port.backends {
        let _ = writeln!(text, "      → {}", rows.line(backend).trim_end());
    }
    if let Some(local) = &port.local {
        let _ = writeln!(text, "    {}", local_set(port, local));
    }
}

/// Whom the load balancer's addresses admit.
fn admitted(sources: &[String]) -> String {
    if sources.is_empty() {
        return paint("load balancer addresses are closed: no source range is of this family", BAD);
    }
    format!("load balancer addresses are open to {} only", clean(&join(sources)))
}

/// The Local set, by how it differs from what is drawn.
fn local_set(port: &PortView, local: &LocalView) -> String {
    let drawn = port.backends.iter().filter(|backend| backend.local);
    let same = drawn.map(|it| SocketAddr::new(it.address, it.port)).eq(local.backends.iter().copied());
    let why = local.why.as_text().map_or_else(String::new, |why| format!(" ({why})"));
    match (local.backends.is_empty(), same) {
        (true, _) => paint("Local set: empty", WARN),
        (false, true) => format!("Local set: the local backends above{why}"),
        (false, false) => format!("Local set: {}{why}", join(&local.backends)),
    }
}

/// What the port does differently from others, after its flows.
fn rules(port: &PortView) -> Vec<String> {
    let mut rules = vec![count(usize::try_from(port.flows).unwrap_or(usize::MAX), "flow")];
    if let Some(seconds) = port.affinity {
        rules.push(format!("session affinity {}", duration(u64::from(seconds))));
    }
    if port.internal_local {
        rules.push("internalTrafficPolicy Local".to_owned());
    }
    if port.external_local {
        rules.push("externalTrafficPolicy Local".to_owned());
    }
    if port.direct {
        rules.push("direct return".to_owned());
    }
    if port.consistent {
        rules.push("consistent hashing".to_owned());
    }
    rules.extend(port.why.as_text().map(str::to_owned));
    rules
}

/// What the rows of one port have in common.
struct Rows {
    address: usize,
    flows: usize,
    total: u64,
}

impl Rows {
    fn of(backends: &[BackendView]) -> Self {
        let widest = |width: fn(&BackendView) -> usize| backends.iter().map(width).max().unwrap_or(0);
        Self {
            address: widest(|backend| address(backend).len()),
            flows: widest(|backend| backend.flows.to_string().len()),
            total: backends.iter().map(|backend| backend.flows).sum(),
        }
    }

    fn line(&self, backend: &BackendView) -> String {
        let (address_width, flows_width) = (self.address, self.flows);
        let (place, style) = if backend.local { ("local ", GOOD) } else { ("remote", FAINT) };
        let share = match self.total {
            0 => "     -".to_owned(),
            total => format!("{:5.1}%", backend.flows as f64 * 100.0 / total as f64),
        };
        let bar = bar(backend.flows, self.total);
        let address = address(backend);
        let place = paint(place, style);
        format!("{address:address_width$}  {place}  {:>flows_width$}  {share}  {bar}", backend.flows)
    }
}

fn address(backend: &BackendView) -> String {
    SocketAddr::new(backend.address, backend.port).to_string()
}

/// A bar as long as the share; anything above nothing is visible.
fn bar(flows: u64, total: u64) -> String {
    if flows == 0 || total == 0 {
        return String::new();
    }
    let length = (u128::from(flows) * u128::from(BAR)).div_ceil(u128::from(total));
    // At most `BAR`: no part is greater than the whole.
    "█".repeat(length as usize)
}
