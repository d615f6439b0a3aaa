//! The time of day, as numbers and as the text that the dialect wants.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub(crate) fn seconds() -> i64 {
    i64::try_from(since_1970(SystemTime::now()).as_secs()).unwrap_or(i64::MAX)
}

/// Milliseconds since 1970.
pub(crate) fn milliseconds() -> i64 {
    i64::try_from(since_1970(SystemTime::now()).as_millis()).unwrap_or(i64::MAX)
}

/// ISO 8601 without a zone (it is UTC), with microseconds.
pub(crate) fn timestamp(now: SystemTime) -> String {
    let since = since_1970(now);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

fn since_1970(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// The calendar date of a day counted from 1970-01-01, by eras of 400 years that begin on March 1.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_a_date() {
        let check = |seconds, expected: &str| {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::new(seconds, 5_000)), expected);
        };
        check(0, "1970-01-01T00:00:00.000005");
        check(951_827_696, "2000-02-29T12:34:56.000005");
        check(1_795_465_227, "2026-11-23T20:20:27.000005");
    }
}
