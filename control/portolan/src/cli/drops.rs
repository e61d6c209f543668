//! `portolan drop …`: what became of packets, from the pinned counters.

use std::cmp::Reverse;

use clap::{Args, Subcommand};
use portolan_abi::counter;
use portolan_node::Tables;
use serde::Serialize;

use super::text::{BAD, Cell, Column, FAINT, Table};
use super::{Global, Output};

/// Looking at drops.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List drops by reason, with what each means
    #[command(after_help = "Example:\n  portolan drop list --all")]
    List(List),
}

/// Options of `portolan drop list`.
#[derive(Args, Clone, Copy, Debug)]
pub struct List {
    /// Also list reasons that never occurred, and packets that were not dropped
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(command: Command, global: &Global) -> anyhow::Result<()> {
    let Command::List(List { all, output }) = command;
    let packets = Tables::open(&global.pins)?.counters()?;
    output.emit(view(&packets, all).as_slice(), table)
}

/// Packets of one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct OutcomeView {
    reason: &'static str,
    /// They did not reach who they were sent to.
    dropped: bool,
    packets: u64,
    meaning: &'static str,
}

/// Drops first, and what occurs most first of them.
fn view(packets: &[u64], all: bool) -> Vec<OutcomeView> {
    let outcomes = counter::ALL.iter().zip(packets).map(|(outcome, packets)| OutcomeView {
        reason: outcome.name,
        dropped: outcome.is_drop(),
        packets: *packets,
        meaning: outcome.meaning.trim(),
    });
    let mut views: Vec<_> = outcomes.filter(|view| all || (view.dropped && view.packets > 0)).collect();
    views.sort_by_key(|view| (!view.dropped, Reverse(view.packets)));
    views
}

fn table(views: &[OutcomeView]) -> String {
    if views.is_empty() {
        return "no packet was dropped\n".to_owned();
    }
    let mut table = Table::new([Column::Left("REASON"), Column::Right("PACKETS"), Column::Left("MEANING")]);
    for view in views {
        let style = match (view.packets, view.dropped) {
            (0, _) => FAINT,
            (_, true) => BAD,
            (_, false) => anstyle::Style::new(),
        };
        let reason = Cell::styled(view.reason, style);
        table.row([reason, view.packets.to_string().into(), Cell::styled(view.meaning, FAINT)]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::plain;

    fn packets() -> Vec<u64> {
        let mut packets = vec![0; counter::ALL.len()];
        packets[counter::TO_POD as usize] = 1_000_000;
        packets[counter::DROP_TTL as usize] = 3;
        packets[counter::REJECTED_NO_BACKEND as usize] = 12;
        packets
    }

    #[test]
    fn drops_that_occurred_are_listed_with_the_most_frequent_first() {
        assert_eq!(
            plain(&table(&view(&packets(), false))),
            "\
REASON               PACKETS  MEANING
rejected-no-backend       12  The service has no backend: the client was told at once. Add an endpoint that is ready.
ttl                        3  The time to live ran out (RFC 1812 5.3.1). Look for a loop in the routes, unless this was a traceroute.
"
        );
    }

    #[test]
    fn all_lists_every_outcome_and_drops_before_the_rest() {
        let views = view(&packets(), true);
        assert_eq!(views.len(), counter::ALL.len());
        let first_other = views.iter().position(|view| !view.dropped).unwrap();
        assert!(views[first_other..].iter().all(|view| !view.dropped));
        assert_eq!((views[first_other].reason, views[first_other].packets), ("to-pod", 1_000_000));
        assert_eq!(views[0].reason, "rejected-no-backend");
    }

    /// How advice begins.
    const VERBS: [&str; 18] = [
        "add", "address", "capture", "check", "give", "have", "ignore", "look", "raise", "remove", "report",
        "run", "send", "stop", "use", "widen", "set", "ask",
    ];

    #[test]
    fn every_drop_says_what_to_do() {
        let advises = |meaning: &str| {
            let parts = meaning.trim().split(['.', ':', ',']);
            parts
                .filter_map(|part| part.split_whitespace().next())
                .any(|word| VERBS.contains(&word.to_lowercase().as_str()))
        };
        assert!(!advises(" Traffic policy Local, and no backend on this node."), "a fact is no advice");
        let drops = counter::ALL.iter().filter(|outcome| outcome.is_drop());
        let silent: Vec<_> = drops.filter(|drop| !advises(drop.meaning)).collect();
        assert!(silent.is_empty(), "these do not say what would change them: {silent:#?}");
    }

    #[test]
    fn no_drop_is_said_in_words() {
        assert_eq!(table(&view(&vec![0; counter::ALL.len()], false)), "no packet was dropped\n");
    }

    #[test]
    fn without_tables_the_error_says_how_they_come_to_be() {
        let pins = tempfile::tempdir().unwrap();
        let global = Global { socket: "/nowhere".into(), pins: pins.path().into() };
        let command =
            Command::List(List { all: false, output: Output { format: crate::cli::Format::Table } });
        let error = run(command, &global).unwrap_err().to_string();
        assert!(error.contains("`portolan agent` creates it"), "{error}");
    }
}
