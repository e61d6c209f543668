//! BIRD 2.

use std::fmt::Write;

use anyhow::Result;

use super::{Neighbor, Router, Way};

pub(super) fn start(router: &mut Router, asn: u32, neighbors: &[Neighbor]) -> Result<()> {
    let mut text = format!(
        "router id 192.0.2.1;\nlog \"{}\" all;\ndebug protocols {{ states, events }};\n\
         protocol device {{ scan time 1; }}\n\
         protocol direct {{ ipv4; ipv6; }}\n\
         protocol kernel {{ learn; merge paths on; ipv4 {{ export where source = RTS_BGP; }}; }}\n\
         protocol kernel {{ learn; merge paths on; ipv6 {{ export where source = RTS_BGP; }}; }}\n",
        router.file("bird.log")
    );
    for (number, neighbor) in neighbors.iter().enumerate() {
        write!(text, "protocol bgp n{number} {{\n{}}}\n", protocol(asn, neighbor))?;
    }
    std::fs::write(router.directory.join("bird.conf"), text)?;
    let [config, socket, pid] = ["bird.conf", "bird.ctl", "bird.pid"].map(|name| router.file(name));
    router.spawn("bird", &["-f", "-c", &config, "-s", &socket, "-P", &pid])
}

fn protocol(asn: u32, neighbor: &Neighbor) -> String {
    let Neighbor { address, asn: theirs, local, hold, .. } = neighbor;
    let mut lines = vec![
        format!("local {local} as {asn}"),
        format!("neighbor {address} as {theirs}"),
        format!("hold time {hold}"),
        "connect delay time 1".to_owned(),
        "connect retry time 1".to_owned(),
        "error wait time 1, 2".to_owned(),
        format!("passive {}", if neighbor.passive { "on" } else { "off" }),
        "ipv4 { import all; export none; }".to_owned(),
        "ipv6 { import all; export none; }".to_owned(),
    ];
    lines.extend(neighbor.password.as_ref().map(|password| format!("password \"{password}\"")));
    lines.extend(neighbor.multihop.map(|hops| format!("multihop {hops}")));
    lines.extend(neighbor.ttl_security.then(|| "ttl security on".to_owned()));
    lines.iter().map(|line| format!("  {line};\n")).collect()
}

pub(super) fn ask(router: &Router, words: &str) -> Result<String> {
    let socket = router.file("bird.ctl");
    let arguments: Vec<&str> = ["-s", &socket].into_iter().chain(words.split_whitespace()).collect();
    router.run("birdc", &arguments)
}

pub(super) fn paths(router: &Router, prefix: &str) -> Result<Vec<Way>> {
    match ask(router, &format!("show route all {prefix}")) {
        // It is an error to birdc.
        Err(error) if format!("{error:#}").contains("Network not found") => Ok(Vec::new()),
        said => said.map(|text| parse(&text)),
    }
}

/// Ways in the output of `show route all`: each begins with `unicast`, its attributes follow on lines of their own.
fn parse(text: &str) -> Vec<Way> {
    let mut ways: Vec<Way> = Vec::new();
    for line in text.lines() {
        if line.contains(" unicast [") {
            ways.push(Way::default());
        }
        let (Some(way), Some((name, value))) = (ways.last_mut(), line.trim().split_once(": ")) else {
            continue;
        };
        match name {
            // IPv6 has a link-local address after it, or none.
            "BGP.next_hop" => way.next_hop = value.split(' ').next().and_then(|word| word.parse().ok()),
            "BGP.as_path" => value.clone_into(&mut way.as_path),
            "BGP.local_pref" => way.preference = value.parse().ok(),
            "BGP.community" => way.communities = tags(value),
            "BGP.large_community" => way.large_communities = tags(value),
            _ => {}
        }
    }
    ways
}

/// `(64512, 1, 2) (64512, 1, 3)` → `64512:1:2 64512:1:3`.
fn tags(text: &str) -> String {
    text.replace(", ", ":").replace(',', ":").replace(['(', ')'], "")
}
