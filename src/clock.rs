//! The time of day as text, made once a second and thread: it is in every
//! answer and every line of the access log.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// An IMF-fixdate is this long (RFC 9110 §5.6.7).
pub const DATE_BYTES: usize = 29;

/// Now, as an IMF-fixdate: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn http_date() -> [u8; DATE_BYTES] {
    thread_local! {
        static LAST: Cell<(u64, [u8; DATE_BYTES])> = const { Cell::new((0, [0; DATE_BYTES])) };
    }
    // The clock that file times are taken from: no file is younger than its
    // answer (RFC 9110 §8.8.2.1).
    let second = time_of(ClockId::RealtimeCoarse).as_secs();
    let (last, text) = LAST.get();
    if last == second && last != 0 {
        return text;
    }
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
    let text = text.as_bytes().try_into().unwrap_or([b' '; DATE_BYTES]);
    LAST.set((second, text));
    text
}

/// Now, as the Common Log Format has it: `10/Oct/2000:13:55:36 +0000`.
pub fn clf_date() -> [u8; 26] {
    let date = http_date();
    let mut text = *b"dd/Mon/yyyy:hh:mm:ss +0000";
    text[..2].copy_from_slice(&date[5..7]);
    text[3..6].copy_from_slice(&date[8..11]);
    text[7..11].copy_from_slice(&date[12..16]);
    text[12..20].copy_from_slice(&date[17..25]);
    text
}

/// `time` as RFC 3339 has it: `2000-10-10T13:55:36Z`.
pub fn rfc3339(time: SystemTime) -> String {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let date = httpdate::fmt_http_date(time);
    let month = MONTHS.find(&date[8..11]).unwrap_or(0) / 3 + 1;
    format!(
        "{}-{month:02}-{}T{}Z",
        &date[12..16],
        &date[5..7],
        &date[17..25]
    )
}

/// Time that only goes forward, from some point on, to a few milliseconds.
pub fn monotonic() -> Duration {
    time_of(ClockId::MonotonicCoarse)
}

fn time_of(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_the_form_of_their_place() {
        let time = UNIX_EPOCH + Duration::from_secs(971_186_136);
        assert_eq!(rfc3339(time), "2000-10-10T13:55:36Z");
        let (clf, http) = (clf_date(), http_date());
        assert_eq!(clf[12..20], http[17..25]);
        assert!(httpdate::parse_http_date(std::str::from_utf8(&http).unwrap()).is_ok());
    }
}
