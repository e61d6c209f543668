//! The allocator on a real file system.

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use portolan_ipam::{AttachmentId, Ipam, IpamError, Meta, Settings};

/// A directory of this test's own, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portolan-ipam-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn settings() -> Settings {
    Settings::new(vec!["10.0.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()])
}

fn id(n: usize) -> AttachmentId {
    AttachmentId::new(format!("{n:064x}"), "eth0").unwrap()
}

fn meta(n: usize) -> Meta {
    Meta {
        network: "portolan".into(),
        pod_namespace: "default".into(),
        pod_name: format!("web-5d4b8c7f9-{n:05}"),
        pod_uid: "5f9c3c0e-6f0e-4c53-9f5e-0d3d7a4a9a11".into(),
        netns: format!("/var/run/netns/cni-{n:032x}"),
        host_ifname: id(n).host_ifname(),
        mac: "02:00:00:00:00:01".into(),
        host_ports: Vec::new(),
    }
}

#[test]
fn allocations_survive_a_restart_and_the_directory_is_private() {
    let dir = Dir::new("restart");
    let ipam = Ipam::open(&dir.0, settings()).unwrap();
    let given = ipam.allocate(&id(1), meta(1), SystemTime::now()).unwrap();
    drop(ipam);
    let ipam = Ipam::open(&dir.0, settings()).unwrap();
    let known = ipam.get(&id(1)).unwrap();
    assert_eq!((known.addresses, known.meta), (given, meta(1)));
    assert_eq!(std::fs::metadata(&dir.0).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_second_process_cannot_open_the_same_directory() {
    let dir = Dir::new("lock");
    let _ipam = Ipam::open(&dir.0, settings()).unwrap();
    assert!(matches!(Ipam::open(&dir.0, settings()), Err(IpamError::Locked { .. })));
}

#[test]
fn garbage_collection_releases_what_is_not_valid() {
    let dir = Dir::new("retain");
    let ipam = Ipam::open(&dir.0, settings()).unwrap();
    for n in 0..4 {
        ipam.allocate(&id(n), meta(n), SystemTime::now()).unwrap();
    }
    let valid = HashSet::from([id(1), id(7)]);
    let released = ipam.retain(&valid, SystemTime::now()).unwrap();
    assert_eq!(released.len(), 3);
    assert_eq!(ipam.list().into_iter().map(|allocation| allocation.id).collect::<Vec<_>>(), [id(1)]);
}

#[test]
fn parallel_callers_get_distinct_addresses_and_share_flushes() {
    let dir = Dir::new("parallel");
    let ipam = Ipam::open(&dir.0, settings()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..10 {
            let ipam = &ipam;
            scope.spawn(move || {
                for n in thread * 20..(thread + 1) * 20 {
                    ipam.allocate(&id(n), meta(n), SystemTime::now()).unwrap();
                    if n % 2 == 0 {
                        ipam.release(&id(n), SystemTime::now()).unwrap();
                    }
                }
            });
        }
    });
    check_distinct(&ipam, 100);
    drop(ipam);
    check_distinct(&Ipam::open(&dir.0, settings()).unwrap(), 100);
}

fn check_distinct(ipam: &Ipam, count: usize) {
    let list = ipam.list();
    let addresses: HashSet<_> = list.iter().flat_map(|allocation| allocation.addresses.iter()).collect();
    assert_eq!((list.len(), addresses.len()), (count, 2 * count));
}

#[test]
fn a_state_directory_that_cannot_be_written_is_reported_and_recovers() {
    let dir = Dir::new("blocked");
    drop(Ipam::open(&dir.0, settings()).unwrap());
    // A directory in the place of the temporary file stops every snapshot, also for root.
    let obstacle = dir.0.join(".allocations.log.tmp");
    std::fs::create_dir(&obstacle).unwrap();
    let ipam = Ipam::open(&dir.0, settings()).unwrap();
    let error = ipam.allocate(&id(1), meta(1), SystemTime::now()).unwrap_err();
    assert!(matches!(error, IpamError::Write { .. }), "{error}");
    assert!(ipam.health().is_err());
    assert!(ipam.list().is_empty());
    std::fs::remove_dir(&obstacle).unwrap();
    ipam.health().unwrap();
    ipam.allocate(&id(1), meta(1), SystemTime::now()).unwrap();
}

#[test]
#[ignore = "a measurement: cargo test -p portolan-ipam --test disk -- --ignored --nocapture"]
fn measure_the_time_of_an_allocation() {
    let dir = Dir::new("measure");
    let ipam = Ipam::open(&dir.0, settings()).unwrap();
    let mut raw = std::fs::File::create(dir.0.join("raw")).unwrap();
    let pairs = (0..200).map(|n| (timed_flush(&mut raw), timed(&ipam, n)));
    let (bare, alone): (Vec<Duration>, Vec<Duration>) = pairs.unzip();
    let floor = report("500 bytes and fdatasync", bare);
    let median = report("one after the other", alone);
    assert!(median < floor + Duration::from_millis(1), "{median:?} where the disk takes {floor:?}");
    let together = std::thread::scope(|scope| {
        let ipam = &ipam;
        let threads: Vec<_> = (1000..1110).map(|n| scope.spawn(move || timed(ipam, n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    report("110 at once", together);
}

fn timed_flush(raw: &mut std::fs::File) -> Duration {
    let start = Instant::now();
    raw.write_all(&[b'x'; 500]).unwrap();
    raw.sync_data().unwrap();
    start.elapsed()
}

fn timed(ipam: &Ipam, n: usize) -> Duration {
    let start = Instant::now();
    ipam.allocate(&id(n), meta(n), SystemTime::now()).unwrap();
    start.elapsed()
}

fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:?} p99 {:?} max {:?}", at(50), at(99), at(100));
    at(50)
}

#[test]
fn without_podcidrs_what_is_held_can_be_released_and_nothing_is_given() {
    let dir = Dir::new("no-cidrs");
    let given = Ipam::open(&dir.0, settings()).unwrap().allocate(&id(1), meta(1), SystemTime::now()).unwrap();
    let ipam = Ipam::open(&dir.0, Settings::new(Vec::new())).unwrap();
    assert_eq!(ipam.get(&id(1)).unwrap().addresses, given);
    let refused = ipam.allocate(&id(2), meta(2), SystemTime::now()).unwrap_err();
    assert!(refused.to_string().contains("no podCIDR is configured"), "{refused}");
    assert!(ipam.release(&id(1), SystemTime::now()).unwrap().is_some());
    assert!(ipam.get(&id(1)).is_none());
}
