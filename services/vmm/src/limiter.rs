//! Bounds what a guest can make the VMM's log say.

/// Lines that a guest may cause before the log goes quiet.
const LINES_MAX: u32 = 64;

/// Counts the lines that a guest caused.
#[derive(Debug, Default)]
pub struct Limiter {
    lines: u32,
}

impl Limiter {
    /// Whether one more line may be logged.
    pub fn allows(&mut self) -> bool {
        self.lines = self.lines.saturating_add(1);
        if self.lines == LINES_MAX {
            log::debug!("the guest does many unusual things; no more of them are reported");
        }
        self.lines < LINES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_fill_the_log() {
        let mut limiter = Limiter::default();
        assert_eq!((0..10_000).filter(|_| limiter.allows()).count(), 63);
    }
}
