//! `portolan bgp …`.

use clap::Subcommand;

use super::text::{BAD, Cell, Column, GOOD, Table, WARN, duration, join, or_dash};
use super::{Global, Output, client};
use crate::api::{BgpPeerView, BgpRouteView};

/// Looking at BGP.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List the routers that this node has a session with, or should have
    #[command(after_help = "Example:\n  portolan bgp peers")]
    Peers(Output),
    /// List the prefixes that this node announces, and to whom
    #[command(after_help = "Example:\n  portolan bgp routes -o json")]
    Routes(Output),
}

pub(super) fn run(command: Command, global: &Global) -> anyhow::Result<()> {
    match command {
        Command::Peers(output) => output.emit(client::bgp_peers(&global.socket)?.as_slice(), peers),
        Command::Routes(output) => output.emit(client::bgp_routes(&global.socket)?.as_slice(), routes),
    }
}

fn peers(peers: &[BgpPeerView]) -> String {
    if peers.is_empty() {
        return "no BGP peers on this node\n".to_owned();
    }
    let headings = ["NAME", "ADDRESS", "AS", "STATE", "SINCE", "FAMILIES", "ANNOUNCED", "NOTE"];
    let mut table = Table::new(headings.map(Column::Left));
    for peer in peers {
        let up = peer.state == "Established";
        let announced = format!("{} IPv4, {} IPv6", peer.announced.ipv4, peer.announced.ipv6);
        table.row([
            peer.name.as_str().into(),
            address(peer).into(),
            peer.peer_asn.to_string().into(),
            Cell::styled(&peer.state, if up { GOOD } else { BAD }),
            or_dash(&peer.uptime_seconds.map(duration).unwrap_or_default()),
            or_dash(&join(&peer.families)),
            if up { announced.into() } else { or_dash("") },
            note(peer, up),
        ]);
    }
    table.render()
}

/// With its port, if that is not BGP's.
fn address(peer: &BgpPeerView) -> String {
    match peer.port {
        179 => peer.address.to_string(),
        port => std::net::SocketAddr::new(peer.address, port).to_string(),
    }
}

/// What is wrong now: errors of sessions that are there again are over.
fn note(peer: &BgpPeerView, up: bool) -> Cell {
    let error = peer.last_error.iter().filter(|_| !up);
    let text = peer.warnings.iter().chain(error).cloned().collect::<Vec<_>>().join("; ");
    Cell::styled(text, if up { WARN } else { BAD })
}

fn routes(routes: &[BgpRouteView]) -> String {
    if routes.is_empty() {
        return "nothing is announced by BGP on this node\n".to_owned();
    }
    let headings = ["PREFIX", "NEXT HOPS", "COMMUNITIES", "PREFERENCE", "PEERS", "WAITING"];
    let mut table = Table::new(headings.map(Column::Left));
    for route in routes {
        table.row([
            route.prefix.to_string().into(),
            or_dash(&join(&route.next_hops)),
            or_dash(&join(&route.communities)),
            or_dash(&route.local_preference.map(|it| it.to_string()).unwrap_or_default()),
            or_dash(&join(&route.peers)),
            Cell::styled(join(&route.waiting), WARN),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::super::text::plain;
    use super::*;
    use crate::api::PrefixesView;

    fn peer(name: &str, state: &str, error: Option<&str>) -> BgpPeerView {
        let up = state == "Established";
        BgpPeerView {
            name: name.into(),
            address: "192.0.2.1".parse().unwrap(),
            port: 179,
            peer_asn: 64_513,
            my_asn: 64_512,
            state: state.into(),
            uptime_seconds: up.then_some(61),
            router_id: None,
            families: if up { vec!["IPv4".into(), "IPv6".into()] } else { Vec::new() },
            hold_time: None,
            graceful_restart: up,
            announced: PrefixesView { ipv4: 2, ipv6: 1 },
            received: PrefixesView::default(),
            warnings: Vec::new(),
            last_error: error.map(Into::into),
        }
    }

    #[test]
    fn each_peer_has_a_row_and_one_without_a_session_says_why() {
        let other = BgpPeerView { port: 1790, ..peer("tor2", "LeftOut", Some("no password")) };
        let rows = [peer("tor1", "Established", Some("an old error")), other];
        let expected = "\
NAME  ADDRESS         AS     STATE        SINCE  FAMILIES    ANNOUNCED       NOTE
tor1  192.0.2.1       64513  Established  1m 1s  IPv4, IPv6  2 IPv4, 1 IPv6
tor2  192.0.2.1:1790  64513  LeftOut      -      -           -               no password
";
        assert_eq!(plain(&peers(&rows)), expected);
        assert_eq!(peers(&[]), "no BGP peers on this node\n");
    }

    #[test]
    fn each_route_has_a_row_with_who_is_told() {
        let route = |prefix: &str, hops: &[&str], told: &[&str], waiting: &[&str]| BgpRouteView {
            prefix: prefix.parse().unwrap(),
            next_hops: hops.iter().map(|hop| hop.parse().unwrap()).collect(),
            communities: if told.is_empty() {
                Vec::new()
            } else {
                vec!["64512:100".into(), "64512:1:2".into()]
            },
            local_preference: (!told.is_empty()).then_some(200),
            peers: told.iter().map(|&name| name.into()).collect(),
            waiting: waiting.iter().map(|&name| name.into()).collect(),
        };
        let rows = [
            route("198.51.100.10/32", &["192.0.2.11"], &["tor1"], &["tor2"]),
            route("2001:db8:f::10/128", &[], &[], &["tor1"]),
        ];
        let expected = "\
PREFIX              NEXT HOPS   COMMUNITIES           PREFERENCE  PEERS  WAITING
198.51.100.10/32    192.0.2.11  64512:100, 64512:1:2  200         tor1   tor2
2001:db8:f::10/128  -           -                     -           -      tor1
";
        assert_eq!(plain(&routes(&rows)), expected);
        assert_eq!(routes(&[]), "nothing is announced by BGP on this node\n");
    }
}
