//! The table of cases through the loaded programs, side by side with the host.

use portolan_core::{V4, V6};
use portolan_tests::packet::family::Tested;
use portolan_tests::packet::fixture::run_all;
use portolan_tests::packet::fixture::site::Site;
use portolan_tests::packet::host::Host;
use portolan_tests::packet::kernel::{Kernel, in_namespace};
use portolan_tests::packet::world::World;

fn holds<F: Tested>(site: &Site) {
    let failures = in_namespace(|| {
        let mut kernel = Kernel::load();
        run_all::<F>(site, |run| {
            kernel.clear::<F>();
            run(&mut [&mut Host::<F>::new(&World::empty()), &mut kernel]);
        })
    });
    assert!(failures.is_empty(), "{} failed:\n\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_case_holds_in_the_kernel_over_ipv4() {
    holds::<V4>(&Site::v4());
}

#[test]
fn every_case_holds_in_the_kernel_over_ipv6() {
    holds::<V6>(&Site::v6());
}
