//! From objects to what the BGP speaker takes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portolan_bgp::{Aggregation, Community, Identity, LargeCommunity, Password, Peer, Route, aggregate};
use portolan_model::{BgpPeer, Family, PasswordSource};
use portolan_plan::Advertised;

use super::options::AnnounceOptions;

/// Who this node is to its peers.
pub(super) fn identity(options: &AnnounceOptions, node: &str, addresses: &[IpAddr]) -> Identity {
    let v4 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let v6 = addresses.iter().find_map(|address| match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    let router_id = options.bgp_router_id.or(v4).unwrap_or_else(|| number_of(node));
    Identity {
        listen: options.bgp_listen.clone(),
        next_hop_v4: v4,
        next_hop_v6: v6,
        ..Identity::new(router_id, options.bgp_asn)
    }
}

/// The same at every start: a router takes another identifier for another speaker. FNV-1a with 32 bits.
fn number_of(node: &str) -> Ipv4Addr {
    let hash =
        node.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    Ipv4Addr::from_bits(hash.max(1))
}

/// Peers that can work, and of the others why not, by name.
pub(super) fn peers(objects: &[BgpPeer], identity: &Identity) -> (Vec<Peer>, BTreeMap<String, String>) {
    let (mut peers, mut problems): (Vec<Peer>, BTreeMap<String, String>) = Default::default();
    for object in objects {
        match peer(object, identity, &peers) {
            Ok(peer) => peers.push(peer),
            Err(problem) => drop(problems.insert(object.name.to_string(), problem)),
        }
    }
    (peers, problems)
}

fn peer(object: &BgpPeer, identity: &Identity, others: &[Peer]) -> Result<Peer, String> {
    let family = |family: &Family| match family {
        Family::V4 => portolan_bgp::Family::Ipv4,
        Family::V6 => portolan_bgp::Family::Ipv6,
    };
    let peer = Peer {
        my_asn: object.my_asn,
        peer_port: object.peer_port,
        hold_time: object.hold_time,
        keepalive_time: object.keepalive_time,
        source_address: object.source_address,
        ebgp_multihop: object.ebgp_multihop,
        ttl_security: object.ttl_security,
        password: object.password.as_ref().map(password).transpose()?,
        families: object.families.iter().map(family).collect(),
        graceful_restart: object.graceful_restart,
        passive: object.passive,
        next_hop_v4: object.next_hop_v4,
        next_hop_v6: object.next_hop_v6,
        ..Peer::new(&*object.name, object.peer_address, object.peer_asn)
    };
    peer.validate(identity).map_err(|invalid| invalid.to_string())?;
    let same = |other: &&Peer| (other.peer_address, other.peer_port) == (peer.peer_address, peer.peer_port);
    match others.iter().find(same) {
        Some(other) => Err(format!(
            "peer {}: peerAddress: peer {} has it, too: remove one of them",
            peer.name, other.name
        )),
        None => Ok(peer),
    }
}

/// A last end of line is the editor's and not the secret's.
fn password(source: &PasswordSource) -> Result<Password, String> {
    match source {
        PasswordSource::File(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                format!(
                    "password.file {}: {error}: put the password there, or correct the path",
                    path.display()
                )
            })?;
            Ok(Password::new(text.strip_suffix('\n').unwrap_or(&text)))
        }
        PasswordSource::Secret(secret) => Err(format!(
            "password.secretRef {secret} is not known to this agent: give it a password.file on the node"
        )),
    }
}

/// Routes to announce; without public addresses if `serving` is false, because packets to them might find nothing. The node's
/// pods stay announced: they are nowhere else.
pub(super) fn routes(advertised: &[Advertised], serving: bool) -> Vec<Route> {
    let routes = advertised.iter().flat_map(|it| {
        let object = &it.advertisement;
        let lengths = Aggregation { ipv4: object.aggregation_v4, ipv6: object.aggregation_v6 };
        let public = it.addresses.iter().copied().filter(|_| serving);
        let prefixes = aggregate(public, lengths).into_iter().chain(it.pod_cidrs.iter().copied());
        let peers: BTreeSet<String> = object.peers.iter().map(|name| name.to_string()).collect();
        let large = object.large_communities.iter();
        let route = Route {
            communities: object.communities.iter().copied().map(Community).collect(),
            large_communities: large.map(|[asn, first, second]| large_of(*asn, *first, *second)).collect(),
            local_preference: object.local_preference,
            peers: (!peers.is_empty()).then_some(peers),
            ..Route::new(ipnetwork::IpNetwork::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED)))
        };
        prefixes.map(move |prefix| Route { prefix, ..route.clone() })
    });
    routes.collect()
}

const fn large_of(asn: u32, first: u32, second: u32) -> LargeCommunity {
    LargeCommunity { asn, first, second }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use portolan_model::{Event, Object, Store, read};
    use portolan_plan::Announcing;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: AnnounceOptions,
    }

    fn options(words: &[&str]) -> AnnounceOptions {
        Arguments::try_parse_from(["agent"].iter().chain(words)).unwrap().options
    }

    fn object(kind: &str, name: &str, spec: Value) -> Object {
        let document = json!({"apiVersion": "portolan.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        read(&document).unwrap().unwrap().object
    }

    fn bgp_peer(name: &str, spec: Value) -> BgpPeer {
        let mut whole = json!({"peerASN": 64513, "peerAddress": "192.0.2.1"});
        spec.as_object().unwrap().iter().for_each(|(field, value)| whole[field] = value.clone());
        let Object::BgpPeer(peer) = object("BGPPeer", name, whole) else { panic!("another kind") };
        peer
    }

    fn advertised(spec: Value, addresses: &[&str]) -> Advertised {
        let mut store = Store::default();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
            "spec": {"podCIDRs": ["10.244.1.0/24"]}});
        store.apply(Event::Upsert(read(&node).unwrap().unwrap().object));
        store.apply(Event::Upsert(object("BGPAdvertisement", "all", spec)));
        let mut planned = Announcing::new("a", "").plan(&store).advertised.remove(0);
        planned.addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        planned
    }

    #[test]
    fn the_identifier_is_the_option_or_the_nodes_address_or_made_of_its_name() {
        let addresses: Vec<IpAddr> = ["2001:db8::1", "192.0.2.11"].map(|it| it.parse().unwrap()).into();
        let found = identity(&options(&[]), "node1", &addresses);
        assert_eq!((found.router_id.to_string().as_str(), found.local_asn), ("192.0.2.11", 64_512));
        assert_eq!(found.next_hop_v6, "2001:db8::1".parse().ok());
        assert!(found.listen.is_empty() && found.forwarding_preserved);
        let said = options(&["--bgp-router-id", "10.0.0.1", "--bgp-asn", "65000"]);
        let found = identity(&said, "node1", &addresses);
        assert_eq!((found.router_id.to_string().as_str(), found.local_asn), ("10.0.0.1", 65_000));
        let made = |name: &str| identity(&options(&[]), name, &addresses[..1]).router_id;
        assert_eq!(made("node1"), made("node1"));
        assert_ne!(made("node1"), made("node2"));
    }

    #[test]
    fn a_peer_that_cannot_work_is_left_out_and_the_others_are_not() {
        let identity = identity(&options(&[]), "node1", &["192.0.2.11".parse().unwrap()]);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        let secret =
            |name: &str| bgp_peer(name, json!({"password": {"file": file}, "peerAddress": "192.0.2.2"}));
        let objects = [
            bgp_peer("good", json!({})),
            secret("guarded"),
            bgp_peer("passive", json!({"passive": true, "peerAddress": "192.0.2.3"})),
            bgp_peer("twice", json!({})),
        ];
        let (found, problems) = peers(&objects, &identity);
        assert_eq!(found.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["good"]);
        assert_eq!(problems.keys().collect::<Vec<_>>(), ["guarded", "passive", "twice"]);
        assert!(problems["guarded"].contains("password.file"), "{problems:?}");
        assert!(problems["passive"].contains("listen"), "{problems:?}");
        assert!(problems["twice"].contains("peer good has it"), "{problems:?}");
        std::fs::write(&file, "s3cret\n").unwrap();
        let (found, problems) = peers(&objects[..2], &identity);
        assert_eq!((found.len(), problems.len()), (2, 0));
        assert_eq!(found[1].password, Some(Password::new("s3cret")));
    }

    #[test]
    fn routes_have_what_their_advertisement_says() {
        let spec = json!({"communities": ["64512:100", "64512:1:2", "no-export"], "localPref": 200,
            "peers": ["tor1"], "aggregationLength": 24, "podCIDRs": true});
        let it = advertised(spec, &["198.51.100.1", "198.51.100.2", "2001:db8:f::1"]);
        let routes = routes(&[it], true);
        let prefixes: Vec<String> = routes.iter().map(|route| route.prefix.to_string()).collect();
        assert_eq!(prefixes, ["198.51.100.0/24", "2001:db8:f::1/128", "10.244.1.0/24"]);
        for route in &routes {
            let texts: Vec<String> = route.communities.iter().map(ToString::to_string).collect();
            assert_eq!(texts, ["64512:100", "no-export"]);
            assert_eq!(
                route.large_communities.first().map(ToString::to_string).as_deref(),
                Some("64512:1:2")
            );
            assert_eq!(route.local_preference, Some(200));
            assert_eq!(route.peers, Some(["tor1".to_owned()].into()));
        }
    }

    #[test]
    fn a_node_that_does_not_follow_its_objects_announces_its_pods_alone() {
        let it = advertised(json!({"podCIDRs": true}), &["198.51.100.1"]);
        assert_eq!(routes(std::slice::from_ref(&it), true).len(), 2);
        let left = routes(&[it], false);
        assert_eq!(left.iter().map(|route| route.prefix.to_string()).collect::<Vec<_>>(), ["10.244.1.0/24"]);
        assert_eq!(left[0].peers, None);
    }
}
