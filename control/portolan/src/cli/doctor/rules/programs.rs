//! The kernel and its eBPF programs. `RLIMIT_MEMLOCK` is no concern: since 5.11, before the oldest kernel that is supported,
//! their memory is counted in the cgroup.

use super::Report;
use crate::cli::doctor::facts::{Facts, Program};

pub(super) fn kernel(facts: &Facts, report: &mut Report) {
    for lack in &facts.lacking {
        let (found, remedy) = lack.rsplit_once(": ").unwrap_or((lack, "see the text"));
        report.error(found, "the agent does not start without it", remedy);
    }
}

pub(super) fn jit(facts: &Facts, report: &mut Report) {
    match facts.sysctl("net/core/bpf_jit_enable") {
        Some("0") => report.warning(
            "net.core.bpf_jit_enable is 0",
            "programs are interpreted: every packet takes several times as long",
            "`sysctl -w net.core.bpf_jit_enable=1`",
        ),
        Some(_) => {}
        // Only the machine's first network namespace shows it.
        None => report.note(
            "net.core.bpf_jit_enable is not to be seen here: whether programs are compiled is not told",
        ),
    }
}

pub(super) fn netns_mount(facts: &Facts, report: &mut Report) {
    if let Some(mount) = facts.netns_mount.as_ref().filter(|mount| !mount.propagates) {
        report.warning(
            format!("the mount {} that /run/netns belongs to is private", mount.point),
            "an agent in a container does not see network namespaces made after it started, and cannot add their pods",
            format!(
                "on the node `mount --make-rshared {}`; for a container `mountPropagation: HostToContainer`",
                mount.point
            ),
        );
    }
}

pub(super) fn order(facts: &Facts, report: &mut Report) {
    for hook in &facts.hooks {
        let own = hook.programs.iter().position(|program| program.own);
        let place = format!("{} {}", hook.device, hook.direction);
        for (at, program) in hook.programs.iter().enumerate().filter(|(_, program)| !program.own) {
            let told = format!("{} {} on {place}", program.how, program.name);
            match own {
                Some(own) if own < at => report.note(format!(
                    "{told} comes after Portolan's: it sees what Portolan leaves to the stack, and no more"
                )),
                Some(_) => report.warning(
                    format!("{told} comes before Portolan's"),
                    why(program),
                    remedy(program, &place),
                ),
                None => report.warning(
                    format!("{told}: Portolan's will come after it"),
                    why(program),
                    remedy(program, &place),
                ),
            }
        }
    }
}

pub(super) fn xdp(facts: &Facts, report: &mut Report) {
    for link in facts.uplinks() {
        if let Some(program) = link.xdp {
            report.warning(
                format!("XDP program {program} on uplink {}", link.name),
                "it sees packets before Portolan does: what it drops or sends elsewhere reaches no service or pod, and no \
                 counter of Portolan",
                format!(
                    "`bpftool prog show id {program}` tells whose it is; if it is left over, `ip link set dev {} xdp off`",
                    link.name
                ),
            );
        }
    }
}

fn why(program: &Program) -> String {
    let next = if program.how == "tcx" { "TCX_NEXT" } else { "TC_ACT_UNSPEC" };
    format!(
        "packets for which it returns anything but {next} never come to Portolan's program: services and pods do not get them"
    )
}

fn remedy(program: &Program, place: &str) -> String {
    let look = if program.how == "tcx" {
        "`bpftool net list` tells what it is".to_owned()
    } else {
        format!("`tc filter show dev {place}` tells what it is")
    };
    format!(
        "{look}; remove it if nobody needs it, or have its owner attach it behind, or return {}",
        match program.how {
            "tcx" => "TCX_NEXT",
            _ => "TC_ACT_UNSPEC",
        }
    )
}
