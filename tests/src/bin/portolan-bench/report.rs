//! Measurements as tables, for the terminal and for docs/benchmarks.md.

use std::fmt::Write as _;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Seconds, shown in whatever is readable.
    Seconds,
    /// A ratio of two measurements.
    Times,
    /// Mebibytes.
    Mebibytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Nanoseconds if value < 100.0 => format!("{value:.1} ns"),
            Self::Nanoseconds => format!("{value:.0} ns"),
            Self::Seconds if value < 1e-3 => format!("{:.1} µs", value * 1e6),
            Self::Seconds if value < 1.0 => format!("{:.2} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::Times => format!("{value:.3} ×"),
            Self::Mebibytes => format!("{value:.0} MiB"),
        }
    }
}

/// What a measurement has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// The median is at most this.
    AtMost(f64),
    /// The median is at least this.
    AtLeast(f64),
    /// The 99th percentile is at most this.
    P99AtMost(f64),
}

/// One measured thing.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// The unit of the samples.
    pub(crate) unit: Unit,
    /// What they have to reach.
    pub(crate) goal: Option<Goal>,
    /// The measurements, at least one.
    pub(crate) samples: Vec<f64>,
    /// What was measured beside it in the same run.
    pub(crate) beside: String,
}

impl Row {
    /// A row without goal and peer.
    pub(crate) fn new(what: impl Into<String>, unit: Unit, samples: Vec<f64>) -> Self {
        Self { what: what.into(), unit, goal: None, samples, beside: String::new() }
    }

    /// With something to reach.
    pub(crate) fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    /// With what was measured beside it.
    pub(crate) fn beside(mut self, text: impl Into<String>) -> Self {
        self.beside = text.into();
        self
    }

    /// Whether the goal is reached; a row without one cannot miss it.
    pub(crate) fn passes(&self) -> bool {
        match self.goal {
            Some(Goal::AtMost(limit)) => median(&self.samples) <= limit,
            Some(Goal::AtLeast(limit)) => median(&self.samples) >= limit,
            Some(Goal::P99AtMost(limit)) => quantile(&self.samples, 0.99) <= limit,
            None => true,
        }
    }

    fn cells(&self) -> [String; 7] {
        let show = |value| self.unit.show(value);
        let goal = match self.goal {
            Some(Goal::AtMost(limit)) => format!("≤ {}", show(limit)),
            Some(Goal::AtLeast(limit)) => format!("≥ {}", show(limit)),
            Some(Goal::P99AtMost(limit)) => format!("p99 ≤ {}", show(limit)),
            None => String::new(),
        };
        let result = match self.goal {
            Some(_) if self.passes() => "PASS",
            Some(_) => "MISS",
            None => "",
        };
        let mut beside = self.beside.clone();
        if matches!(self.goal, Some(Goal::P99AtMost(_))) {
            let p99 = format!("p99 {}", show(quantile(&self.samples, 0.99)));
            beside = if beside.is_empty() { p99 } else { format!("{p99}; {beside}") };
        }
        let [min, middle, max] = [0.0, 0.5, 1.0].map(|part| show(quantile(&self.samples, part)));
        [self.what.clone(), goal, min, middle, max, beside, result.to_owned()]
    }
}

/// The measurements of one section.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// Its heading.
    pub(crate) title: &'static str,
    /// How it was measured, as Markdown.
    pub(crate) how: &'static str,
    /// What was measured.
    pub(crate) rows: Vec<Row>,
}

impl Section {
    /// A Markdown table, padded so that it is readable as text.
    pub(crate) fn table(&self) -> String {
        let head = ["what", "goal", "min", "median", "max", "beside", ""].map(str::to_owned);
        let mut lines = vec![head];
        lines.extend(self.rows.iter().map(Row::cells));
        let widths: Vec<usize> = (0..7)
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for (number, line) in lines.iter().enumerate() {
            let cells: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(text, "| {} |", cells.join(" | "));
            if number == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
                let _ = writeln!(text, "|{}|", rule.join("|"));
            }
        }
        text
    }
}

/// The middle of the samples.
pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The smallest sample that at least this part of all does not exceed.
pub(crate) fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Text of seconds, for cells.
pub(crate) fn seconds(value: f64) -> String {
    Unit::Seconds.show(value)
}

/// Text of nanoseconds, for cells.
pub(crate) fn nanoseconds(value: f64) -> String {
    Unit::Nanoseconds.show(value)
}

/// A whole number, readable.
pub(crate) fn thousands(number: u32) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}
