//! When a registry says to come back, as far as its words get through: engines keep the header `Retry-After` to themselves.

use std::time::Duration;

/// Later than this is as good as never.
const LATEST: Duration = Duration::from_secs(24 * 3600);

/// What follows "retry-after", "retry after" or "try again in": seconds, or a duration as Go writes it (`1m30s`, `344.609µs`).
pub(super) fn of_words(words: &str) -> Option<Duration> {
    let words = words.to_lowercase();
    let after = ["retry-after", "retry after", "try again in"].iter().find_map(|key| Some(&words[words.find(key)? + key.len()..]))?;
    let text = after.trim_start_matches([':', '=', ' ', '"']);
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"µμ.".contains(c)).unwrap_or(text.len());
    duration(text[..end].trim_end_matches('.'))
}

fn duration(mut text: &str) -> Option<Duration> {
    let mut sum = 0.0;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let number: f64 = text[..digits].parse().ok()?;
        let rest = &text[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        sum += number
            * match &rest[..letters] {
                "" | "s" | "second" | "seconds" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" | "μs" => 1e-6,
                "ns" => 1e-9,
                "m" | "minute" | "minutes" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        text = &rest[letters..];
    }
    Some(Duration::try_from_secs_f64(sum).unwrap_or(LATEST).min(LATEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_write_is_read() {
        for (words, millis) in [
            ("toomanyrequests: retry-after: 344.609ms, allowed: 44000/minute", Some(344)),
            ("toomanyrequests: retry-after: 344.609µs, allowed: 44000/minute", Some(0)),
            ("429 Too Many Requests, Retry-After: 7", Some(7_000)),
            ("slow down, try again in 1m30s.", Some(90_000)),
            ("Retry after 2 seconds", Some(2_000)),
            ("retry-after: 99999999999999999999h", Some(24 * 3_600_000)),
            ("retry-after: Wed, 21 Oct 2026 07:28:00 GMT", None),
            ("retry-after: ", None),
            ("retry-after: 1.2.3s", None),
            ("toomanyrequests: You have reached your pull rate limit.", None),
        ] {
            assert_eq!(of_words(words).map(|after| after.as_millis()), millis, "{words}");
        }
    }
}
