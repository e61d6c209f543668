use proptest::prelude::*;

use super::*;

const TERM: Duration = Duration::from_secs(15);

fn lease(holder: &str, version: u64) -> Lease {
    Lease { holder: holder.into(), duration: Some(TERM), transitions: 3, version: version.to_string() }
}

fn candidate(now: Instant) -> Election {
    Election::new("a".into(), TERM, now)
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn who_finds_no_lease_makes_it_and_renews_it() {
    let start = Instant::now();
    let mut it = candidate(start);
    assert_eq!(it.next(start), Action::Read);
    it.read(start, None);
    assert_eq!(it.next(start), Action::Create);
    assert_eq!(it.leads_until(), None);
    it.wrote(start + seconds(1), lease("a", 1));
    assert_eq!(it.leads_until(), Some(start + seconds(10)), "counted from when it was sent");
    let renewal = start + seconds(3);
    assert_eq!(it.next(start + seconds(1)), Action::Wait(renewal));
    assert_eq!(it.next(renewal), Action::Renew { version: "1".into() });
    it.wrote(renewal, lease("a", 2));
    assert_eq!(it.leads_until(), Some(renewal + seconds(10)));
}

#[test]
fn a_lease_is_taken_over_when_it_was_not_renewed_for_its_duration_by_the_own_clock() {
    let start = Instant::now();
    let mut it = candidate(start);
    let (mut now, mut version) = (start, 1);
    // Renewed again and again: never taken.
    while now < start + seconds(60) {
        match it.next(now) {
            Action::Wait(until) => now = until,
            Action::Read => {
                version += u64::from(now < start + seconds(40));
                it.read(now, Some(lease("b", version)));
            }
            Action::Take { version, transitions } => {
                assert!(now >= start + seconds(40) + TERM - seconds(2), "{:?}", now - start);
                assert_eq!(transitions, 4);
                it.wrote(now, lease("a", version.parse::<u64>().unwrap() + 1));
                assert!(it.leads(now));
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("it was never taken");
}

#[test]
fn a_lease_that_was_given_back_is_taken_at_once() {
    let now = Instant::now();
    let mut it = candidate(now);
    it.next(now);
    it.read(now, Some(lease("", 7)));
    assert_eq!(it.next(now), Action::Take { version: "7".into(), transitions: 4 });
}

#[test]
fn who_cannot_renew_stops_before_others_may_begin() {
    let start = Instant::now();
    let mut it = candidate(start);
    it.next(start);
    it.read(start, None);
    it.next(start);
    it.wrote(start, lease("a", 1));
    let mut now = start;
    while now < start + seconds(14) {
        match it.next(now) {
            Action::Wait(until) => now = until,
            _ => it.failed(now),
        }
    }
    assert!(!it.leads(start + seconds(10)) && it.leads(start + seconds(9)));
    it.read(now, Some(lease("b", 2)));
    assert_eq!(it.leads_until(), None, "it is another's");
}

#[test]
fn who_resigns_gives_back_what_it_has_and_nothing_else() {
    let now = Instant::now();
    let mut it = candidate(now);
    assert_eq!(it.resign(now), None);
    it.next(now);
    it.read(now, None);
    it.next(now);
    it.wrote(now, lease("a", 9));
    assert_eq!(it.resign(now), Some("9".into()));
    assert_eq!((it.leads_until(), it.resign(now)), (None, None));
}

/// A server, and candidates whose requests take their time, get lost, or whose answers do.
struct World {
    now: Instant,
    lease: Option<Lease>,
    version: u64,
    nodes: Vec<Node>,
}

struct Node {
    election: Election,
    /// Sent, and not answered yet.
    request: Option<(Action, Instant)>,
    /// Stopped until then.
    stopped: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered(u64),
    AnswerLost(u64),
    RequestLost,
}

impl World {
    /// What the server does with a request; `None`: it refuses.
    fn serve(&mut self, who: &str, action: &Action) -> Option<Option<Lease>> {
        let allowed = match action {
            Action::Read => return Some(self.lease.clone()),
            Action::Create => self.lease.is_none(),
            Action::Take { version, .. } | Action::Renew { version } => {
                self.lease.as_ref().is_some_and(|lease| lease.version == *version)
            }
            Action::Wait(_) => unreachable!("not a request"),
        };
        allowed.then(|| {
            self.version += 1;
            self.lease = Some(lease(who, self.version));
            self.lease.clone()
        })
    }

    fn leaders(&self) -> usize {
        self.nodes.iter().filter(|node| node.election.leads(self.now)).count()
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => (0..3000_u64).prop_map(Fate::Answered),
        1 => (0..3000_u64).prop_map(Fate::AnswerLost),
        1 => Just(Fate::RequestLost),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn there_are_never_two_leaders_and_in_the_end_there_is_one(
        fates in prop::collection::vec((fate(), 0..200_u64), 400), stops in prop::collection::vec((0..3_usize, 0..40_u64), 400),
    ) {
        let start = Instant::now();
        let node = |name: &str| Node {
            election: Election::new(name.into(), TERM, start), request: None, stopped: start,
        };
        let mut world = World { now: start, lease: None, version: 0, nodes: ["a", "b", "c"].map(node).into() };
        let mut fates = fates.into_iter();
        for (stopped, pause) in stops {
            world.now += Duration::from_millis(137);
            // One in twenty steps stops somebody, for up to twenty seconds.
            if pause < 2 {
                world.nodes[stopped].stopped = world.now + seconds(pause * 10 + 10);
            }
            for at in 0..world.nodes.len() {
                if world.now < world.nodes[at].stopped {
                    continue;
                }
                step(&mut world, at, &mut fates);
            }
            prop_assert!(world.leaders() <= 1);
        }
        // Calm: everything is answered at once.
        for _ in 0..400 {
            world.now += Duration::from_millis(137);
            for at in 0..world.nodes.len() {
                step(&mut world, at, &mut std::iter::empty());
            }
            prop_assert!(world.leaders() <= 1);
        }
        prop_assert_eq!(world.leaders(), 1);
    }
}

/// The server acts on a request when it is sent or when it is answered, whichever is worse: here when it is answered, which is
/// up to three seconds later.
fn step(world: &mut World, at: usize, fates: &mut impl Iterator<Item = (Fate, u64)>) {
    let now = world.now;
    let name = world.nodes[at].election.identity().to_owned();
    if let Some((action, due)) = world.nodes[at].request.take() {
        if now < due {
            world.nodes[at].request = Some((action, due));
            return;
        }
        match fates.next().map_or(Fate::Answered(0), |(fate, _)| fate) {
            Fate::RequestLost => world.nodes[at].election.failed(now),
            Fate::AnswerLost(_) => {
                world.serve(&name, &action);
                world.nodes[at].election.failed(now);
            }
            Fate::Answered(_) => {
                let served = world.serve(&name, &action);
                let election = &mut world.nodes[at].election;
                match (action, served) {
                    (Action::Read, Some(found)) => election.read(now, found),
                    (_, Some(Some(lease))) => election.wrote(now, lease),
                    _ => election.refused(now),
                }
            }
        }
        return;
    }
    match world.nodes[at].election.next(now) {
        Action::Wait(_) => {}
        action => {
            let delay = fates.next().map_or(0, |(fate, _)| match fate {
                Fate::Answered(delay) | Fate::AnswerLost(delay) => delay,
                Fate::RequestLost => 3000,
            });
            world.nodes[at].request = Some((action, now + Duration::from_millis(delay)));
        }
    }
}
