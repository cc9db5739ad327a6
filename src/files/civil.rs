//! Dates in UTC, as listings and archives write them. HTTP-dates are the
//! business of the crate httpdate.

/// A moment in the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    pub(super) month: u8,
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Civil {
    /// From seconds since 1970.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let second_of_day = seconds.rem_euclid(86_400);
        let (year, month, day) = date(seconds.div_euclid(86_400));
        Self {
            year,
            month: small(month),
            day: small(day),
            hour: small(second_of_day / 3600),
            minute: small(second_of_day / 60 % 60),
            second: small(second_of_day % 60),
        }
    }

    /// `2026-01-31`
    pub(super) fn push_date(self, text: &mut Vec<u8>) {
        match u16::try_from(self.year) {
            Ok(year @ 0..=9999) => {
                push_two(small(i64::from(year / 100)), text);
                push_two(small(i64::from(year % 100)), text);
            }
            // Nothing else has such a year; the file system may say so.
            _ => text.extend_from_slice(format!("{:04}", self.year).as_bytes()),
        }
        text.push(b'-');
        push_two(self.month, text);
        text.push(b'-');
        push_two(self.day, text);
    }

    /// `23:59`
    pub(super) fn push_time(self, text: &mut Vec<u8>) {
        push_two(self.hour, text);
        text.push(b':');
        push_two(self.minute, text);
    }

    /// `:59`
    pub(super) fn push_seconds(self, text: &mut Vec<u8>) {
        text.push(b':');
        push_two(self.second, text);
    }

    /// `2026-01-31T23:59:59Z`, as RFC 3339 has it.
    pub(super) fn push_moment(self, text: &mut Vec<u8>) {
        self.push_date(text);
        text.push(b'T');
        self.push_time(text);
        self.push_seconds(text);
        text.push(b'Z');
    }
}

fn push_two(number: u8, text: &mut Vec<u8>) {
    text.extend_from_slice(&[b'0' + number / 10, b'0' + number % 10]);
}

/// Year, month and day of a day counted from 1970-01-01. Years are counted from
/// March here, so that the leap day is their last.
fn date(day: i64) -> (i64, i64, i64) {
    const DAYS_IN_400_YEARS: i64 = 146_097;
    // 0000-03-01
    let day = day + 719_468;
    let cycle = day.div_euclid(DAYS_IN_400_YEARS);
    let day = day.rem_euclid(DAYS_IN_400_YEARS);
    // Without the leap days before it, every year has 365 days.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // March to July and August to December have 153 days each.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (cycle * 400 + year + next, month, day)
}

fn small(number: i64) -> u8 {
    u8::try_from(number).expect("a part of a date or a time of day is below 100")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn moment(civil: Civil) -> String {
        let mut text = Vec::new();
        civil.push_moment(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn dates_are_written_as_rfc_3339_has_them() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_800, "10000-01-01T00:00:00Z"),
            (-62_198_755_200, "-001-01-01T00:00:00Z"),
        ] {
            assert_eq!(moment(Civil::from_unix(seconds)), expected);
        }
    }

    proptest! {
        #[test]
        fn every_date_agrees_with_that_of_httpdate(seconds in 0u64..253_402_300_800) {
            let civil = Civil::from_unix(i64::try_from(seconds).unwrap());
            let other = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            let day = format!("{:02} ", civil.day);
            let moment = moment(civil);
            let year = format!(" {} {} GMT", &moment[..4], &moment[11..19]);
            prop_assert!(other.contains(&day) && other.ends_with(&year), "{moment} {other}");
        }

        #[test]
        fn no_time_a_file_can_have_panics(seconds in any::<i64>()) {
            moment(Civil::from_unix(seconds));
        }
    }
}
