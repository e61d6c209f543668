//! Sets of numbers that are mostly contiguous, kept as their runs: a /64 costs as much as one address.

use std::collections::BTreeMap;

/// A set of numbers, as runs that neither overlap nor touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    /// First number of each run to its last.
    runs: BTreeMap<u128, u128>,
}

impl Runs {
    /// Adds all numbers from `first` to `last`.
    pub(crate) fn insert(&mut self, mut first: u128, mut last: u128) {
        // Whatever overlaps the new run or touches it becomes part of it. Those that begin before it are one at most.
        if let Some((&begin, &end)) = self.runs.range(..=first).next_back()
            && end.saturating_add(1) >= first
        {
            first = begin;
            last = last.max(end);
        }
        let after = last.saturating_add(1);
        while let Some((&begin, &end)) = self.runs.range(first..=after.max(last)).next() {
            self.runs.remove(&begin);
            last = last.max(end);
        }
        self.runs.insert(first, last);
    }

    /// Takes one number out.
    pub(crate) fn remove(&mut self, number: u128) {
        let Some((first, last)) = self.run_of(number) else { return };
        self.runs.remove(&first);
        if first < number {
            self.runs.insert(first, number - 1);
        }
        if number < last {
            self.runs.insert(number + 1, last);
        }
    }

    pub(crate) fn contains(&self, number: u128) -> bool {
        self.run_of(number).is_some()
    }

    /// The first number from `number` on that is not in the set; `None` if there is none.
    pub(crate) fn next_absent(&self, number: u128) -> Option<u128> {
        match self.run_of(number) {
            None => Some(number),
            Some((_, last)) => last.checked_add(1),
        }
    }

    /// The runs in order, as first and last number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, u128)> {
        self.runs.iter().map(|(first, last)| (*first, *last))
    }

    /// Parts of the set from `first` to `last`.
    pub(crate) fn within(&self, first: u128, last: u128) -> impl Iterator<Item = (u128, u128)> {
        let from = self.run_of(first).map_or(first, |(begin, _)| begin);
        let runs = self.runs.range(from..=last.max(from));
        runs.map(move |(begin, end)| ((*begin).max(first), (*end).min(last)))
    }

    /// How many numbers from `first` to `last` are in the set.
    pub(crate) fn count_within(&self, first: u128, last: u128) -> u128 {
        self.within(first, last).fold(0, |sum, (first, last)| sum.saturating_add(size(first, last)))
    }

    fn run_of(&self, number: u128) -> Option<(u128, u128)> {
        let (&first, &last) = self.runs.range(..=number).next_back()?;
        (last >= number).then_some((first, last))
    }
}

/// How many numbers there are from `first` to `last`, at most `u128::MAX`.
pub(crate) const fn size(first: u128, last: u128) -> u128 {
    (last - first).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_a_set(steps in prop::collection::vec((any::<bool>(), 0_u8..40, 0_u8..6), 0..60)) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (insert, first, more) in steps {
                let (first, last) = (u128::from(first), u128::from(first + more));
                if insert {
                    runs.insert(first, last);
                    set.extend(first..=last);
                } else {
                    runs.remove(first);
                    set.remove(&first);
                }
            }
            for number in 0..50 {
                prop_assert_eq!(runs.contains(number), set.contains(&number));
                let absent = (number..).find(|number| !set.contains(number));
                prop_assert_eq!(runs.next_absent(number), absent);
                let count = set.range(5..=number.max(5)).count() as u128;
                prop_assert_eq!(runs.count_within(5, number.max(5)), count);
            }
            let all: Vec<_> = runs.iter().collect();
            prop_assert!(all.array_windows().all(|[a, b]| a.1 + 1 < b.0), "{:?} touch", all);
        }
    }

    #[test]
    fn the_largest_number_has_no_next() {
        let mut runs = Runs::default();
        runs.insert(u128::MAX - 1, u128::MAX);
        runs.insert(0, 0);
        assert_eq!(runs.next_absent(u128::MAX - 1), None);
        runs.remove(u128::MAX);
        assert_eq!(runs.next_absent(u128::MAX - 1), Some(u128::MAX));
        runs.insert(0, u128::MAX);
        assert_eq!(runs.iter().collect::<Vec<_>>(), [(0, u128::MAX)]);
        assert_eq!(runs.count_within(0, u128::MAX), u128::MAX);
    }
}
