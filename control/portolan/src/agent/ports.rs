//! Whether there are masquerade ports left, and who has them if not.

use portolan_abi::{NO_SERVICE, counter};
use portolan_apply::PortUser;

use super::state::Core;

/// Backends that a warning names.
const NAMED: usize = 3;

/// Remembers how many flows found no port so far.
#[derive(Debug, Default)]
pub(super) struct PortWatch {
    refused: Option<u64>,
}

impl PortWatch {
    /// What the operator should know: a warning if flows found no port since the last call.
    pub(super) fn look(&mut self, core: &Core, (first, last): (u16, u16)) -> Option<String> {
        let counters = core.applier.tables().counters().ok()?;
        let refused = *counters.get(counter::DROP_NO_PORT as usize)?;
        let before = self.refused.replace(refused)?;
        let new = refused.checked_sub(before).filter(|new| *new > 0)?;
        let users = core.applier.port_users(NAMED).unwrap_or_default();
        let users: Vec<String> = users.iter().map(|user| text(core, user)).collect();
        Some(format!(
            "masquerade ports: {new} packets of new flows found none of {} that was free. Most are taken by {}. Widen \
             --masquerade-range, add backends, or let the service's externalTrafficPolicy be Local",
            u32::from(last - first) + 1,
            users.join("; ")
        ))
    }
}

fn text(core: &Core, user: &PortUser) -> String {
    let of_service = || {
        let services =
            core.applier.services().find(|(_, _, ports)| ports.iter().any(|it| it.index == user.service));
        services.map_or_else(|| format!("service #{}", user.service), |(key, _, _)| format!("service {key}"))
    };
    let name =
        if user.service == NO_SERVICE { "traffic out of the cluster".to_owned() } else { of_service() };
    let clients: Vec<String> =
        user.clients.iter().map(|(addr, flows)| format!("{addr} with {flows}")).collect();
    format!("{name} at {} {}: {} flows, of {}", user.backend, user.protocol, user.flows, clients.join(", "))
}
