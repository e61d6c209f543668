//! FRR: zebra and bgpd.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Neighbor, Router, Way};

const DAEMONS: &str = "/usr/lib/frr";

pub(super) fn start(router: &mut Router, asn: u32, neighbors: &[Neighbor]) -> Result<()> {
    let log = |name| format!("hostname router\nlog file {} debugging\n", router.file(name));
    std::fs::write(router.directory.join("zebra.conf"), log("zebra.log"))?;
    let text = log("bgpd.log") + &configuration(asn, neighbors)?;
    std::fs::write(router.directory.join("bgpd.conf"), text)?;
    // Without it the shell complains with every answer.
    std::fs::write(router.directory.join("vtysh.conf"), "")?;
    for daemon in ["zebra", "bgpd"] {
        let [config, pid] = ["conf", "pid"].map(|end| router.file(&format!("{daemon}.{end}")));
        let (zebra, shell) = (router.file("zserv.api"), router.directory.display().to_string());
        let arguments =
            ["-f", &config, "-i", &pid, "-z", &zebra, "--vty_socket", &shell, "-A", "127.0.0.1", "-P", "0"];
        router.spawn(&format!("{DAEMONS}/{daemon}"), &arguments)?;
    }
    Ok(())
}

fn configuration(asn: u32, neighbors: &[Neighbor]) -> Result<String> {
    let mut text = format!(
        "debug bgp neighbor-events\nrouter bgp {asn}\n bgp router-id 192.0.2.1\n no bgp ebgp-requires-policy\n \
         bgp bestpath as-path multipath-relax\n no bgp default ipv4-unicast\n"
    );
    for neighbor in neighbors {
        let address = neighbor.address;
        let mut line = |words: String| writeln!(text, " neighbor {address} {words}");
        line(format!("remote-as {}", neighbor.asn))?;
        line(format!("timers {} {}", neighbor.hold / 3, neighbor.hold))?;
        line("timers connect 1".to_owned())?;
        line(format!("update-source {}", neighbor.local))?;
        if neighbor.passive {
            line("passive".to_owned())?;
        }
        if let Some(password) = &neighbor.password {
            line(format!("password {password}"))?;
        }
        if let Some(hops) = neighbor.multihop {
            line(format!("ebgp-multihop {hops}"))?;
        }
        if neighbor.ttl_security {
            line("ttl-security hops 1".to_owned())?;
        }
    }
    for family in ["ipv4", "ipv6"] {
        writeln!(text, " address-family {family} unicast\n  maximum-paths 8\n  maximum-paths ibgp 8")?;
        for neighbor in neighbors {
            writeln!(text, "  neighbor {} activate", neighbor.address)?;
        }
        writeln!(text, " exit-address-family")?;
    }
    Ok(text)
}

pub(super) fn ask(router: &Router, words: &str) -> Result<String> {
    let own = router.directory.display().to_string();
    // It would write what it was asked into the home directory.
    let history = ["--histfile", "/dev/null"];
    let arguments: Vec<&str> = ["--vty_socket", &own, "--config_dir", &own]
        .into_iter()
        .chain(history)
        .chain(["-c", words])
        .collect();
    router.run("vtysh", &arguments)
}

/// Both daemons are there, and know each other.
pub(super) fn is_ready(router: &Router) -> bool {
    let has = |words, text: &str| ask(router, words).is_ok_and(|said| said.contains(text));
    has("show zebra client summary", "bgp") && has("show bgp summary json", "peers")
}

pub(super) fn paths(router: &Router, prefix: &str) -> Result<Vec<Way>> {
    let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
    let said = ask(router, &format!("show bgp {family} unicast {prefix} json"))?;
    let said: Value = serde_json::from_str(&said).with_context(|| format!("FRR says {said}"))?;
    Ok(said["paths"].as_array().into_iter().flatten().map(way).collect())
}

fn way(path: &Value) -> Way {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let hops = path["nexthops"].as_array().into_iter().flatten();
    let global = hops.filter_map(|hop| hop["ip"].as_str()).find(|ip| !ip.starts_with("fe80"));
    Way {
        next_hop: global.and_then(|ip| ip.parse().ok()),
        // So it calls an empty path.
        as_path: text(&path["aspath"]["string"]).replace("Local", ""),
        preference: path["locPrf"].as_u64().and_then(|number| number.try_into().ok()),
        communities: text(&path["community"]["string"]),
        large_communities: text(&path["largeCommunity"]["string"]),
    }
}
