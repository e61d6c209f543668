//! Random packets through the loaded programs and through the host: both must agree on everything.

use portolan_core::{Family, V4, V6};
use portolan_tests::packet::build::Packet;
use portolan_tests::packet::entry::HOOKS;
use portolan_tests::packet::family::Tested;
use portolan_tests::packet::fixture::site::Site;
use portolan_tests::packet::host::{Host, Machine, agree};
use portolan_tests::packet::kernel::{Kernel, in_namespace};
use portolan_tests::packet::random::{carried, damaged, errors, packets};
use portolan_tests::packet::script::{Leaves, Place};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// A few packets in a row, so that later ones meet flows of earlier ones; each at a hook.
type Row = Vec<(usize, Vec<u8>)>;

/// See [`Row`]; and whether services return directly.
fn rows(site: Site) -> impl Strategy<Value = (bool, Row)> {
    let bytes = |packet: Packet| packet.bytes();
    let frame = prop_oneof![
        3 => packets(Just(site)).prop_map(bytes),
        1 => errors(Just(site)).prop_map(bytes),
        1 => carried(Just(site)).prop_map(bytes),
        1 => damaged(Just(site)),
    ];
    (any::<bool>(), prop::collection::vec((0..HOOKS.len(), frame), 1..12))
}

/// Whether the kernel takes it for a test run, and it is not of the other family.
fn fits<F: Family>(frame: &[u8]) -> bool {
    let kind = frame.get(12..14).map(|kind| u16::from_be_bytes([kind[0], kind[1]]));
    match kind {
        Some(kind) if kind == V4::ETHERTYPE || kind == V6::ETHERTYPE => {
            kind == F::ETHERTYPE && frame.len() >= 14 + F::HEADER_LEN
        }
        Some(_) => frame.len() > 14,
        None => false,
    }
}

fn same<F: Tested>(
    kernel: &mut Kernel,
    site: &Site,
    (direct, row): &(bool, Row),
) -> Result<(), TestCaseError> {
    kernel.clear::<F>();
    let world = if *direct { site.direct_world() } else { site.busy_world() };
    let mut host = Host::<F>::new(&world);
    Machine::<F>::change(kernel, &world);
    for (hook, frame) in row {
        if !fits::<F>(frame) {
            continue;
        }
        let (hook, ifindex) = HOOKS[*hook];
        let place = Place { hook, ifindex };
        let (on_host, mut in_kernel) = (host.run(place, frame), Machine::<F>::run(kernel, place, frame));
        // The kernel does not show where to, and not which way it took.
        in_kernel.short = on_host.short;
        if let (Leaves::Redirected(..), Leaves::Redirected(..)) = (on_host.leaves, in_kernel.leaves) {
            in_kernel.leaves = on_host.leaves;
        }
        prop_assert_eq!(&on_host, &in_kernel, "at {:?}", place);
        agree::<F>(&[&mut host, kernel]).map_err(TestCaseError::fail)?;
    }
    Ok(())
}

fn agrees<F: Tested>(site: &Site) {
    in_namespace(|| {
        let mut kernel = Kernel::load();
        let mut runner = TestRunner::new(ProptestConfig::with_cases(300));
        let kernel = std::cell::RefCell::new(&mut kernel);
        let result = runner.run(&rows(*site), |row| same::<F>(&mut kernel.borrow_mut(), site, &row));
        result.unwrap_or_else(|error| panic!("{error}"));
    });
}

#[test]
fn host_and_kernel_agree_on_random_packets_over_ipv4() {
    agrees::<V4>(&Site::v4());
}

#[test]
fn host_and_kernel_agree_on_random_packets_over_ipv6() {
    agrees::<V6>(&Site::v6());
}
