//! Wall-clock time from the CMOS real-time clock, read once at start-up.
//!
//! Source: MC146818A data sheet; register 0x32 (century) is where QEMU and most firmware have it.

/// The registers of interest, as read while no update was in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtcRegisters {
    /// Register 0.
    pub seconds: u8,
    /// Register 2.
    pub minutes: u8,
    /// Register 4.
    pub hours: u8,
    /// Register 7.
    pub day: u8,
    /// Register 8.
    pub month: u8,
    /// Register 9.
    pub year: u8,
    /// Register 0x32, or 0.
    pub century: u8,
    /// Status register B: bit 1 24-hour mode, bit 2 binary mode.
    pub status_b: u8,
}

/// Reads an 8-bit register of the clock.
pub trait Cmos {
    /// Register `index`.
    fn read(&mut self, index: u8) -> u8;
}

/// Polls of the "update in progress" bit before its state is taken as stuck.
const POLLS_MAX: u32 = 100_000;

/// Reads the registers until two readings agree, a bounded number of times.
pub fn read(cmos: &mut impl Cmos) -> RtcRegisters {
    let mut last = read_once(cmos);
    for _ in 0..4 {
        let next = read_once(cmos);
        if next == last {
            break;
        }
        last = next;
    }
    last
}

fn read_once(cmos: &mut impl Cmos) -> RtcRegisters {
    for _ in 0..POLLS_MAX {
        if cmos.read(0x0a) & 0x80 == 0 {
            break;
        }
    }
    RtcRegisters {
        seconds: cmos.read(0),
        minutes: cmos.read(2),
        hours: cmos.read(4),
        day: cmos.read(7),
        month: cmos.read(8),
        year: cmos.read(9),
        century: cmos.read(0x32),
        status_b: cmos.read(0x0b),
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March make the leap day the last one.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    (year * 365 + year / 4 - year / 100 + year / 400 + day_of_year).saturating_sub(719_468)
}

impl RtcRegisters {
    /// Seconds since 1970; `None` when the registers hold no date (no clock, or a dead battery).
    pub fn unix_seconds(&self) -> Option<u64> {
        let is_binary = self.status_b & 4 != 0;
        let number = |raw: u8| match (is_binary, raw >> 4, raw & 15) {
            (true, ..) => Some(u64::from(raw)),
            (false, tens @ 0..=9, ones @ 0..=9) => Some(u64::from(tens * 10 + ones)),
            _ => None,
        };
        let is_afternoon = self.status_b & 2 == 0 && self.hours & 0x80 != 0;
        let mut hours = number(if self.status_b & 2 == 0 { self.hours & 0x7f } else { self.hours })?;
        if self.status_b & 2 == 0 {
            hours = hours % 12 + if is_afternoon { 12 } else { 0 };
        }
        let (minutes, seconds) = (number(self.minutes)?, number(self.seconds)?);
        let (month, day) = (number(self.month)?, number(self.day)?);
        let century = number(self.century).filter(|century| (19..=22).contains(century)).unwrap_or(20);
        let year = century * 100 + number(self.year)?;
        let is_date = (1970..2300).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
        let is_time = hours < 24 && minutes < 60 && seconds < 60;
        (is_date && is_time).then(|| days(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCD: RtcRegisters = RtcRegisters {
        seconds: 0x56,
        minutes: 0x34,
        hours: 0x23,
        day: 0x29,
        month: 0x02,
        year: 0x24,
        century: 0x20,
        status_b: 2,
    };

    #[test]
    fn a_leap_day_in_bcd() {
        // date -u -d '2024-02-29 23:34:56' +%s
        assert_eq!(BCD.unix_seconds(), Some(1_709_249_696));
    }

    #[test]
    fn the_same_time_in_binary_and_in_12_hour_mode() {
        let binary = RtcRegisters {
            seconds: 56,
            minutes: 34,
            hours: 23,
            day: 29,
            month: 2,
            year: 24,
            century: 20,
            status_b: 6,
        };
        assert_eq!(binary.unix_seconds(), BCD.unix_seconds());
        let twelve = RtcRegisters { hours: 0x91, status_b: 0, ..BCD };
        assert_eq!(twelve.unix_seconds(), BCD.unix_seconds());
        let midnight = RtcRegisters { hours: 0x12, minutes: 0, seconds: 0, status_b: 0, ..BCD };
        assert_eq!(midnight.unix_seconds().unwrap() % 86_400, 0);
    }

    #[test]
    fn days_count_from_1970() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 3, 1), 11_017);
    }

    #[test]
    fn garbage_is_no_date() {
        assert_eq!(RtcRegisters { month: 0x13, ..BCD }.unix_seconds(), None);
        assert_eq!(RtcRegisters { seconds: 0xff, ..BCD }.unix_seconds(), None);
        assert_eq!(RtcRegisters { day: 0, ..BCD }.unix_seconds(), None);
    }
}
