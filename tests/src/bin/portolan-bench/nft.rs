//! nftables rules as kube-proxy writes them: one map from address, protocol and port to a service's chain, there a
//! random number to an endpoint's chain, there the translation; masquerading by mark.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::Netns;

/// Port of all services.
const PORT: u16 = 8080;

/// The address of a service, in any namespace that has services.
pub(crate) fn service(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 1).to_bits() + number)
}

/// Lets nft do in a namespace what a file says; how long it took.
pub(crate) fn load(netns: &Netns, rules: &str) -> Result<Duration> {
    let begun = Instant::now();
    let mut nft = netns.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().context("nft has no input")?.write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft does not take the rules");
    Ok(begun.elapsed())
}

/// One more service.
pub(crate) fn added(number: u32, to: (Ipv4Addr, u16)) -> String {
    let address = service(number);
    format!(
        "table ip bench {{\n{}}}\nadd element ip bench cluster-ips {{ {address} }}\n\
         add element ip bench service-ips {{ {address} . tcp . {PORT} : goto service-{number} }}\n",
        chains(number, to)
    )
}

/// Another endpoint behind a service.
pub(crate) fn moved(number: u32, (address, port): (Ipv4Addr, u16)) -> String {
    format!(
        "flush chain ip bench endpoint-{number}\n\
         add rule ip bench endpoint-{number} ip saddr {address} jump mark-for-masquerade\n\
         add rule ip bench endpoint-{number} meta l4proto tcp dnat to {address}:{port}\n"
    )
}

/// A service's chain and its endpoint's.
fn chains(number: u32, (address, port): (Ipv4Addr, u16)) -> String {
    let vip = service(number);
    format!(
        "chain endpoint-{number} {{\n ip saddr {address} jump mark-for-masquerade\n \
         meta l4proto tcp dnat to {address}:{port}\n}}\n\
         chain service-{number} {{\n ip daddr {vip} tcp dport {PORT} ip saddr != 10.0.0.0/8 \
         jump mark-for-masquerade\n numgen random mod 1 vmap {{ 0 : goto endpoint-{number} }}\n}}\n"
    )
}

/// Tables, hooks, and so many services with one endpoint behind them all.
pub(crate) fn ruleset(services: u32, to: (Ipv4Addr, u16)) -> String {
    let mut text = String::from(
        "table ip bench\ndelete table ip bench\ntable ip bench {\n\
         chain mark-for-masquerade {\n meta mark set meta mark or 0x4000\n}\n\
         chain masquerading {\n meta mark & 0x4000 == 0 return\n meta mark set meta mark xor 0x4000\n \
         masquerade fully-random\n}\n",
    );
    let mut elements = Vec::new();
    let mut addresses = Vec::new();
    for number in 0..services {
        let address = service(number);
        text += &chains(number, to);
        elements.push(format!("{address} . tcp . {PORT} : goto service-{number}"));
        addresses.push(address.to_string());
    }
    let (elements, addresses) = (elements.join(", "), addresses.join(", "));
    let _ = write!(
        text,
        "map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }} }}\n\
         map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         set cluster-ips {{ type ipv4_addr; elements = {{ {addresses} }} }}\n\
         set nodeport-ips {{ type ipv4_addr; elements = {{ 192.0.2.11 }} }}\n\
         chain services {{\n ip daddr . meta l4proto . th dport vmap @service-ips\n \
         ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n}}\n\
         chain firewall-check {{\n ip daddr . meta l4proto . th dport vmap @firewall-ips\n}}\n\
         chain service-endpoints-check {{\n ip daddr . meta l4proto . th dport vmap @no-endpoint-services\n}}\n\
         chain nodeport-endpoints-check {{\n ip daddr @nodeport-ips ip daddr . meta l4proto . th dport \
         vmap @no-endpoint-services\n}}\n\
         chain cluster-ips-check {{\n ip daddr @cluster-ips reject\n}}\n\
         chain filter-prerouting-pre-dnat {{\n type filter hook prerouting priority -110\n \
         ct state new jump firewall-check\n}}\n\
         chain filter-input {{\n type filter hook input priority -110\n ct state new jump nodeport-endpoints-check\n \
         ct state new jump service-endpoints-check\n}}\n\
         chain filter-forward {{\n type filter hook forward priority -110\n ct state new jump service-endpoints-check\n \
         ct state new jump cluster-ips-check\n}}\n\
         chain filter-output {{\n type filter hook output priority -110\n ct state new jump service-endpoints-check\n}}\n\
         chain filter-output-post-dnat {{\n type filter hook output priority -90\n ct state new jump cluster-ips-check\n}}\n\
         chain nat-prerouting {{\n type nat hook prerouting priority dstnat\n jump services\n}}\n\
         chain nat-output {{\n type nat hook output priority -100\n jump services\n}}\n\
         chain nat-postrouting {{\n type nat hook postrouting priority srcnat\n jump masquerading\n}}\n}}\n"
    );
    text
}
