//! Bars of text.

use std::collections::BTreeMap;

/// Characters of a full bar.
const WIDTH: usize = 40;
/// Of its fair share, what a backend must get at least. With 500 requests and three backends a fair hash stays above
/// it in all but one of 300,000 runs (4.7 standard deviations), with 1,000 always.
const LEAST_OF_FAIR: f64 = 0.7;

/// A row for each name: its bar, its count and its share. The longest bar is full.
pub(crate) fn bars(counts: &BTreeMap<String, usize>) -> String {
    let width = counts.keys().map(String::len).max().unwrap_or(0);
    let most = counts.values().max().copied().unwrap_or(0).max(1);
    let all = counts.values().sum::<usize>().max(1);
    let row = |(name, count): (&String, &usize)| {
        let bar = "█".repeat((count * WIDTH).div_ceil(most));
        let share = *count as f64 * 100.0 / all as f64;
        format!("{name:width$}  {bar:WIDTH$}  {count:5}  {share:5.1} %\n")
    };
    counts.iter().map(row).collect()
}

/// One bar of two parts.
pub(crate) fn parts(first: usize, second: usize) -> String {
    let all = (first + second).max(1);
    let length = (first * WIDTH + all / 2) / all;
    let rest = if first + second == 0 { 0 } else { WIDTH - length };
    format!("{}{}", "█".repeat(length), "░".repeat(rest))
}

/// What is wrong with how requests were spread over `names`: nothing if each got about its share.
pub(crate) fn skew(counts: &BTreeMap<String, usize>, names: &[String]) -> String {
    let fair = counts.values().sum::<usize>() as f64 / names.len().max(1) as f64;
    let few = |name: &&String| (counts.get(*name).copied().unwrap_or(0) as f64) < fair * LEAST_OF_FAIR;
    let strangers =
        counts.keys().filter(|name| !names.contains(name)).map(|name| format!("{name} is no backend"));
    let poor = names.iter().filter(few).map(|name| {
        format!("{name} got {} of {fair:.0} that are its share", counts.get(name).copied().unwrap_or(0))
    });
    strangers.chain(poor).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: &[(&str, usize)]) -> BTreeMap<String, usize> {
        all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn bars_are_as_long_as_their_counts() {
        let text = bars(&counts(&[("a", 500), ("long", 250), ("none", 0)]));
        let lengths: Vec<usize> = text.lines().map(|line| line.matches('█').count()).collect();
        assert_eq!(lengths, [40, 20, 0]);
        assert!(text.lines().next().unwrap().ends_with("  500   66.7 %"), "{text}");
    }

    #[test]
    fn two_parts_fill_a_bar() {
        assert_eq!(parts(1, 3), format!("{}{}", "█".repeat(10), "░".repeat(30)));
        assert_eq!(parts(0, 0), "");
    }

    #[test]
    fn a_backend_without_its_share_is_named() {
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(skew(&counts(&[("a", 40), ("b", 60)]), &names), "");
        assert_eq!(skew(&counts(&[("a", 100)]), &names), "b got 0 of 50 that are its share");
        assert_eq!(skew(&counts(&[("a", 30), ("b", 30), ("x", 1)]), &names), "x is no backend");
    }
}
