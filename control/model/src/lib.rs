//! Kubernetes objects as Portolan understands them: parsed, valid, comparable.
//!
//! Two layers. The wire structs (private) take what the API or a file gives, tolerant of unknown fields. From
//! them come the domain types, which exist only if they are valid, are compact, and compare by value.
//!
//! The wire structs are our own, not `k8s-openapi`'s: only some forty fields matter here, that crate takes
//! minutes to build, and its types refuse a whole object with a text where we must name the field by its path
//! ([`Invalid::field`]) and may keep the rest ([`Reading::warnings`]).

mod address;
mod bgp;
mod crd;
mod custom;
mod duration;
mod invalid;
mod load_balancer;
mod name;
mod node;
mod pod;
mod pool;
mod read;
mod selector;
mod service;
mod slice;
mod status;
mod store;
mod wire;

pub use address::Family;
pub use bgp::{BgpAdvertisement, BgpPeer, PasswordSource};
pub use crd::crds;
pub use custom::{AddressCount, LoadBalancerPoolStatus, ObjectStatus, StatusCondition};
pub use invalid::Invalid;
pub use load_balancer::{ADDRESSES_ANNOTATION, LoadBalancer, POOL_ANNOTATION, SHARING_ANNOTATION};
pub use name::{Kind, Name, NamespacedName, ObjectKey, ServiceKey};
pub use node::Node;
pub use pod::Pod;
pub use pool::{AddressRange, LoadBalancerPool};
pub use read::{Identity, Object, Reading, Refused, identify, read, service_of};
pub use selector::{Labels, Selector, Selectors};
pub use service::{Port, Protocol, Service, ServiceType, Timestamp};
pub use slice::{Endpoint, EndpointSlice, Hints, SlicePort};
pub use status::ServiceStatus;
pub use store::{Entry, Event, Store, Touched};
