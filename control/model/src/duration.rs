//! Durations as Kubernetes writes them (`metav1.Duration`, Go's `time.ParseDuration`), in whole seconds.

/// The seconds of a text like `90s`, `1m30s` or `2h`; `None` if it is not one, or too long for 64 bits. Fractions and units
/// below a second are not taken: what is read here are times that protocols count in seconds.
pub(crate) fn seconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (mut rest, mut sum) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let unit = after.chars().next()?;
        let factor = match unit {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = &after[unit.len_utf8()..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_kubernetes_writes_them() {
        for (text, expected) in
            [("90s", 90), ("1m30s", 90), ("1h", 3600), ("1h0m1s", 3601), ("0s", 0), ("0", 0)]
        {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for bad in [
            "",
            "90",
            "s",
            "1.5s",
            "-1s",
            "90 s",
            "90sec",
            "100ms",
            "1d",
            "99999999999999999999s",
            "5s\u{e9}",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        assert_eq!(seconds(&format!("{}h", u64::MAX)), None);
    }
}
