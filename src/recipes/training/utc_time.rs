//! Moments as people and programs write them, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECONDS_A_DAY: u64 = 24 * 60 * 60;

/// Year, month and day of the Gregorian calendar, and the second of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UtcTime {
    year: u64,
    month: u64,
    day: u64,
    second: u64,
}

impl UtcTime {
    /// That of the system's clock.
    pub fn now() -> Self {
        Self::at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn at(since_1970: Duration) -> Self {
        let (mut days, second) = (since_1970.as_secs() / SECONDS_A_DAY, since_1970.as_secs() % SECONDS_A_DAY);
        let mut year = 1970;
        while days >= days_of(year) {
            days -= days_of(year);
            year += 1;
        }
        let february = if is_leap(year) { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Self { year, month, day: days + 1, second }
    }

    /// `2026-11-26`.
    pub fn date(self) -> String {
        format!("{}-{:02}-{:02}", self.year, self.month, self.day)
    }

    /// `2026-11-26T01:02:03Z`, ISO 8601.
    pub fn date_and_time(self) -> String {
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        format!("{}T{hour:02}:{minute:02}:{second:02}Z", self.date())
    }
}

/// The seconds from 1970 to the moment that [`UtcTime::date_and_time`] has written so.
pub fn seconds_since_1970(written: &str) -> Option<u64> {
    let (date, time) = written.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, between: char| text.split(between).map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>();
    let (date, time) = (numbers(date, '-')?, numbers(time, ':')?);
    let (&[year @ 1970..=9999, month @ 1..=12, day @ 1..=31], &[hour, minute, second]) =
        (date.as_slice(), time.as_slice())
    else {
        return None;
    };
    let months = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days = (1970..year).map(days_of).sum::<u64>() + months[..month as usize - 1].iter().sum::<u64>() + day - 1;
    Some(days * SECONDS_A_DAY + hour * 3600 + minute * 60 + second)
}

/// Years of the Gregorian calendar that 4 divides are leap years, those of a full century only where 400 does.
fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u64) -> u64 {
    if is_leap(year) {
        366
    } else {
        365
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds are those of `date -u -d TIME +%s`.
    #[test]
    fn moments_are_those_of_the_systems_date() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_655_700, "2026-11-26T01:15:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(UtcTime::at(Duration::from_secs(seconds)).date_and_time(), expected);
            assert_eq!(seconds_since_1970(expected), Some(seconds));
        }
    }
}
