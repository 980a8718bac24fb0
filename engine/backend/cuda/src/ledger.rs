//! What this process has taken of a card's memory, by its own account, and how much it may take. The driver's figures are for all
//! processes together, and change under whoever reads them.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the driver takes for itself: the context, kernels, their stacks, and recorded steps, of which no more are made than fit. Measured on
/// an H100 and said in NOTES.md; a budget is for this too.
pub const DRIVERS_OWN: u64 = 768 << 20;
/// Of that, most bytes of recorded steps.
pub const RECORDED_STEPS: u64 = 192 << 20;

/// The driver's pages.
const PAGE: u64 = 2 << 20;

/// Bytes that buffers take.
#[derive(Debug)]
pub(crate) struct Ledger {
    taken: AtomicU64,
    most: AtomicU64,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { taken: AtomicU64::new(0), most: AtomicU64::new(u64::MAX) }
    }

    /// From now on no more than so many.
    pub(crate) fn keep_to(&self, bytes: u64) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    /// Writes down a buffer that is to be made. Refuses what would be too much, with the bytes that are lacking.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), u64> {
        let (bytes, most) = (handed_out(bytes), self.most.load(Ordering::Relaxed));
        let fits = |taken: u64| taken.checked_add(bytes).filter(|all| *all <= most);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.map(drop).map_err(|taken| taken.saturating_add(bytes) - most)
    }

    /// Strikes a buffer out.
    pub(crate) fn give(&self, bytes: usize) {
        self.taken.fetch_sub(handed_out(bytes), Ordering::Relaxed);
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The largest buffer that may still be made, where that is bounded.
    pub(crate) fn left(&self) -> Option<u64> {
        let most = Some(self.most.load(Ordering::Relaxed)).filter(|most| *most < u64::MAX);
        most.map(|most| most.saturating_sub(self.taken()) / PAGE * PAGE)
    }
}

/// Bytes that the driver hands out for so many: small ones out of a common page, others in whole pages.
pub(crate) fn handed_out(bytes: usize) -> u64 {
    match bytes as u64 {
        small if small < PAGE / 2 => small.next_multiple_of(512),
        large => large.next_multiple_of(PAGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_beyond_what_may_be_and_what_is_lacking_is_said() {
        let ledger = Ledger::new();
        ledger.take(usize::MAX >> 2).unwrap();
        ledger.give(usize::MAX >> 2);
        assert_eq!((ledger.taken(), ledger.left()), (0, None));
        ledger.keep_to(10 << 20);
        ledger.take(6 << 20).unwrap();
        assert_eq!(ledger.left(), Some(4 << 20));
        assert_eq!(ledger.take(7 << 20), Err(4 << 20));
        assert_eq!(ledger.taken(), 6 << 20);
        ledger.take(4 << 20).unwrap();
        assert_eq!(ledger.take(1), Err(512));
        ledger.give(6 << 20);
        assert_eq!((ledger.taken(), ledger.left()), (4 << 20, Some(6 << 20)));
    }

    #[test]
    fn many_threads_together_take_no_more_than_one() {
        let ledger = Ledger::new();
        ledger.keep_to(100 * 512);
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        taken.fetch_add(ledger.take(512).is_ok().into(), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 100);
        assert_eq!(ledger.left(), Some(0));
    }
}
