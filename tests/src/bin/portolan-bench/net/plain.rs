//! Client and server behind a forwarding namespace: nothing else, or nftables rules.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use portolan_tests::lab::Netns;

use super::traffic::{self, Server};
use crate::nft;

/// Port of the server, and of the services.
const PORT: u16 = 8080;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 2, 2);

/// Two veth pairs and a namespace that forwards between them.
pub(crate) struct Forwarding {
    pub(crate) client: Netns,
    router: Netns,
    /// Before the namespace that it is in.
    _server: Server,
    _backend: Netns,
}

impl Forwarding {
    pub(crate) fn new(label: &str) -> Result<Self> {
        let [client, router, backend] =
            ["client", "router", "server"].map(|part| Netns::new(&format!("{label}-{part}")));
        let (client, router, backend) = (client?, router?, backend?);
        for (number, end) in [(1, &client), (2, &backend)] {
            end.ip(&format!("link add eth0 type veth peer name v{number} netns {}", router.name()))?;
            end.ip("link set eth0 up")?;
            router.ip(&format!("link set v{number} up"))?;
            end.ip(&format!("address add 10.9.{number}.2/24 dev eth0"))?;
            router.ip(&format!("address add 10.9.{number}.1/24 dev v{number}"))?;
            end.ip(&format!("route add default via 10.9.{number}.1"))?;
        }
        router.sysctl("net/ipv4/ip_forward", "1")?;
        traffic::ready(&client)?;
        let server = Server::start(&backend, PORT)?;
        Ok(Self { client, router, _server: server, _backend: backend })
    }

    /// The server itself.
    pub(crate) fn server(&self) -> SocketAddr {
        (SERVER, PORT).into()
    }

    /// Changes the endpoint of one service of those loaded, and adds a service: seconds of each.
    pub(crate) fn change_rules(&self, services: u32) -> Result<[f64; 2]> {
        let moved = nft::load(&self.router, &nft::moved(services / 2, (SERVER, PORT)))?;
        let added = nft::load(&self.router, &nft::added(services, (SERVER, PORT)))?;
        Ok([moved.as_secs_f64(), added.as_secs_f64()])
    }

    /// Loads rules for so many services, all with the one server behind them; how long that took.
    pub(crate) fn load_rules(&self, services: u32) -> Result<Duration> {
        nft::load(&self.router, &nft::ruleset(services, (SERVER, PORT)))
    }
}
