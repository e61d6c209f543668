//! Which services are ours, and what they may have.

use portolan_model::{Entry, LoadBalancer, LoadBalancerPool, Protocol, Service, ServiceKey};

use crate::{Record, Settings};

/// A service that is ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ours<'a> {
    pub(crate) key: &'a ServiceKey,
    pub(crate) service: &'a Service,
    pub(crate) wish: &'a LoadBalancer,
}

impl<'a> Ours<'a> {
    /// The service, if it is ours: of our class, or of none while we are the default. Who is no longer the default keeps
    /// those that it gave something.
    pub(crate) fn new(
        key: &'a ServiceKey,
        entry: &'a Entry,
        settings: &Settings,
        record: &Record,
    ) -> Option<Self> {
        let service = entry.service.as_ref()?;
        let wish = service.load_balancer.as_deref()?;
        let ours = match &wish.class {
            Some(class) => *class == settings.class,
            None => settings.is_default || record.contains_key(key),
        };
        ours.then_some(Self { key, service, wish })
    }

    /// Older services come first; without a time they are the youngest. As the planner sorts owners of an address.
    pub(crate) fn rank(&self) -> (u64, &'a ServiceKey) {
        (self.service.created.map_or(u64::MAX, |created| created.digits()), self.key)
    }

    /// Whether a pool's selectors name it.
    pub(crate) fn is_selected_by(&self, pool: &LoadBalancerPool) -> bool {
        let namespaces = &pool.namespaces;
        (namespaces.is_empty() || namespaces.contains(self.key.namespace()))
            && pool.services.matches(&self.wish.labels)
    }
}

/// Services that may share one address. Each is compared with all others: what one key can cost is bounded.
pub(crate) const SHARERS_MAX: usize = 256;

/// Why two services cannot have one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clash {
    /// They have no sharing key in common.
    Key,
    /// Both have this port.
    Port(u16, Protocol),
    /// One keeps outside clients on the node that they ask and the other does not, or both do and have different pods: no
    /// node would be right for both.
    Policy,
    /// As many have it as may.
    Many,
}

impl Clash {
    /// In words, after "the other service …".
    pub(crate) fn text(self) -> String {
        match self {
            Clash::Key => "shares it with nobody, or under another portolan.dev/sharing-key".to_owned(),
            Clash::Port(port, protocol) => format!("has port {port}/{protocol} there as well"),
            Clash::Policy => {
                let rule = "sharing takes externalTrafficPolicy Cluster for all, or Local and the same spec.selector";
                format!("needs other nodes: {rule}")
            }
            Clash::Many => format!("is one of {SHARERS_MAX} that share it, as many as may"),
        }
    }
}

/// Whether two services can have one address: the same key, no port in common, and outside clients may come by the
/// same nodes.
pub(crate) fn fit(a: &Service, b: &Service) -> Result<(), Clash> {
    let (Some(wish_a), Some(wish_b)) = (&a.load_balancer, &b.load_balancer) else { return Err(Clash::Key) };
    if wish_a.sharing_key.is_none() || wish_a.sharing_key != wish_b.sharing_key {
        return Err(Clash::Key);
    }
    let common = a
        .ports
        .iter()
        .find(|port| b.ports.iter().any(|other| (other.port, other.protocol) == (port.port, port.protocol)));
    if let Some(port) = common {
        return Err(Clash::Port(port.port, port.protocol));
    }
    let same_pods = !wish_a.selector.is_empty() && wish_a.selector == wish_b.selector;
    match (a.external_local, b.external_local) {
        (false, false) => Ok(()),
        (true, true) if same_pods => Ok(()),
        _ => Err(Clash::Policy),
    }
}
