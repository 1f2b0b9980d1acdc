//! Human-readable sizes, times and percentages.

use std::fmt;

use crate::nas::clock::Millis;

/// Bytes, displayed in the largest unit that gives at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1 << 10 {
            return write!(f, "{} B", self.0);
        }
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        // Tenths of a unit, rounded; 1023.95 MiB and more are written as GiB.
        let tenths = |power: usize| (u128::from(self.0) * 10) >> (10 * power);
        let power = (1..units.len()).find(|&power| tenths(power) < 10_240);
        let power = power.unwrap_or(units.len());
        write!(
            f,
            "{}.{} {}",
            tenths(power) / 10,
            tenths(power) % 10,
            units[power - 1]
        )
    }
}

/// A time, displayed as the time of day in UTC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(pub(super) Millis);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000;
        write!(
            f,
            "{:02}:{:02}:{:02}.{:03}",
            seconds / 3_600 % 24,
            seconds / 60 % 60,
            seconds % 60,
            self.0 % 1_000
        )
    }
}

impl Moment {
    /// With the date.
    pub(super) fn in_full(self) -> String {
        let since = std::time::Duration::from_millis(self.0);
        // httpdate cannot format dates after the year 9999, to which a clock may have been advanced.
        let latest = std::time::Duration::from_secs(253_402_300_799);
        httpdate::fmt_http_date(std::time::UNIX_EPOCH + since.min(latest))
    }
}

/// A duration in µs, displayed in ms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Micros(pub(super) u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} ms", self.0 / 1_000, self.0 % 1_000 / 100)
    }
}

/// `part` in percent of `whole`, at most 100; 0 if `whole` is 0.
pub(super) fn percent(part: u64, whole: u64) -> u64 {
    let percent = (u128::from(part) * 100).checked_div(u128::from(whole));
    u64::try_from(percent.unwrap_or(0).min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_displayed_in_units() {
        for (bytes, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 10, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (10 << 30, "10.0 GiB"),
            (2 << 40, "2.0 TiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), want, "{bytes}");
        }
    }

    #[test]
    fn moments_are_times_of_day() {
        let moment = Moment(1_700_000_000_123);
        assert_eq!(moment.to_string(), "22:13:20.123");
        assert_eq!(moment.in_full(), "Tue, 14 Nov 2023 22:13:20 GMT");
        assert_eq!(Moment(u64::MAX).in_full(), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn a_part_of_nothing_is_nothing() {
        assert_eq!(percent(5, 0), 0);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(9, 3), 100);
        assert_eq!(Micros(1_234_567).to_string(), "1234.5 ms");
    }
}
