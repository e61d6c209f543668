//! The table of cases on the host.

use portolan_core::{V4, V6};
use portolan_tests::packet::family::Tested;
use portolan_tests::packet::fixture::run_all;
use portolan_tests::packet::fixture::site::Site;
use portolan_tests::packet::host::Host;
use portolan_tests::packet::world::World;

fn holds<F: Tested>(site: &Site) {
    let failures = run_all::<F>(site, |run| run(&mut [&mut Host::<F>::new(&World::empty())]));
    assert!(failures.is_empty(), "{} failed:\n\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_case_holds_on_the_host_over_ipv4() {
    holds::<V4>(&Site::v4());
}

#[test]
fn every_case_holds_on_the_host_over_ipv6() {
    holds::<V6>(&Site::v6());
}
