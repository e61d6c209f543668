//! Packets kept as files: crashes that were found, and one of each kind. The fuzzer starts from them.

use std::collections::BTreeSet;
use std::path::Path;

use portolan_abi::counter;
use portolan_tests::packet::entry::every_hook;

fn corpus() -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let entries = std::fs::read_dir(&directory).expect("the corpus is there");
    let files = entries.map(|entry| entry.expect("the corpus can be read").path());
    let packets = files.filter(|path| path.extension().is_some_and(|extension| extension == "bin"));
    packets
        .map(|path| (path.display().to_string(), std::fs::read(&path).expect("a file can be read")))
        .collect()
}

#[test]
fn every_packet_of_the_corpus_gets_a_verdict() {
    for (name, bytes) in corpus() {
        let result = std::panic::catch_unwind(|| every_hook(&bytes));
        assert!(result.is_ok(), "{name}");
    }
}

#[test]
fn the_corpus_reaches_every_outcome_that_a_packet_alone_can_have() {
    let reached: BTreeSet<u32> = corpus().iter().flat_map(|(_, bytes)| every_hook(bytes)).collect();
    // These need another state of the node, or the kernel.
    let out_of_reach = [
        counter::DROP_NOT_IP,
        counter::DROP_NO_LOCAL_BACKEND,
        counter::DROP_NO_ROUTE,
        counter::DROP_NO_PORT,
        counter::DROP_NO_NODE_ADDRESS,
        counter::DROP_DANGLING,
        counter::DROP_KERNEL,
        counter::DROP_FLOW_TABLE,
        counter::DROP_SOURCE_RANGE,
        counter::FRAGMENTS_RELEASED,
        counter::REJECTED_DEPARTED,
    ];
    let missing: Vec<&str> = counter::ALL
        .iter()
        .filter(|outcome| !reached.contains(&outcome.index) && !out_of_reach.contains(&outcome.index))
        .map(|outcome| outcome.name)
        .collect();
    assert!(missing.is_empty(), "no packet of the corpus is counted as {missing:?}");
}
