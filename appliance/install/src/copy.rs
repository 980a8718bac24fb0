//! Copies bytes to a device that is slower than this machine's memory, and says how far it really is.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use polder_control::{Progress, Unit};

/// Read and written at a time.
const PIECE: usize = 4 << 20;
/// What is not on the device after so many bytes is waited for: figures would be of memory otherwise.
const SETTLE: u64 = 32 << 20;
/// The rate is that of the last few seconds.
const WINDOW: Duration = Duration::from_secs(8);

/// What did not work.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// The place that it comes from.
    Read(io::Error),
    /// The place that it goes to.
    Write(io::Error),
}

/// Somewhere that can say that everything has arrived.
pub(crate) trait Settle: Write {
    fn settle(&mut self) -> io::Result<()>;
}

impl Settle for std::fs::File {
    fn settle(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Copies `from` to its end.
pub(crate) fn copy(
    from: &mut dyn Read,
    to: &mut dyn Settle,
    pace: &mut Pace,
    tell: &mut dyn FnMut(Progress),
) -> Result<(), CopyError> {
    let mut piece = vec![0; PIECE];
    let mut unsettled = 0;
    loop {
        let length = read_piece(from, &mut piece).map_err(CopyError::Read)?;
        if length == 0 {
            break;
        }
        to.write_all(&piece[..length]).map_err(CopyError::Write)?;
        unsettled += length as u64;
        if unsettled >= SETTLE {
            to.settle().map_err(CopyError::Write)?;
            pace.forward(unsettled, Instant::now());
            tell(pace.progress());
            unsettled = 0;
        }
    }
    to.settle().map_err(CopyError::Write)?;
    pace.forward(unsettled, Instant::now());
    tell(pace.progress());
    Ok(())
}

/// Reads `from` to its end, for whoever only wants to know whether that works.
pub(crate) fn read_through(
    from: &mut dyn Read,
    pace: &mut Pace,
    tell: &mut dyn FnMut(Progress),
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut untold = 0;
    loop {
        let length = read_piece(from, &mut piece)?;
        untold += length as u64;
        if untold >= SETTLE || length == 0 {
            pace.forward(untold, Instant::now());
            tell(pace.progress());
            untold = 0;
        }
        if length == 0 {
            return Ok(());
        }
    }
}

fn read_piece(from: &mut dyn Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < piece.len() {
        match from.read(&mut piece[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// How much is done, how fast, and for how long still.
#[derive(Debug)]
pub(crate) struct Pace {
    phase: &'static str,
    done: u64,
    total: u64,
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    pub(crate) fn new(phase: &'static str, total: u64, now: Instant) -> Self {
        Self { phase, done: 0, total, seen: VecDeque::from([(now, 0)]) }
    }

    fn forward(&mut self, bytes: u64, now: Instant) {
        self.done += bytes;
        self.seen.push_back((now, self.done));
        while self.seen.len() > 2 && now.duration_since(self.seen[0].0) > WINDOW {
            self.seen.pop_front();
        }
    }

    fn progress(&self) -> Progress {
        let rate = self.rate();
        let left = self.total.saturating_sub(self.done) as f64;
        Progress {
            phase: self.phase.to_owned(),
            done: self.done,
            total: Some(self.total.max(self.done)),
            unit: Unit::Bytes,
            rate,
            eta_seconds: rate.map(|rate| (left / rate).ceil() as u64),
        }
    }

    fn rate(&self) -> Option<f64> {
        let ((first, from), (last, to)) = (self.seen.front()?, self.seen.back()?);
        let seconds = last.duration_since(*first).as_secs_f64();
        (to > from && seconds > 0.0).then(|| (to - from) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is pulled out after so many bytes.
    struct Pulled {
        left: usize,
        settled: u32,
    }

    impl Write for Pulled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                return Err(io::Error::from_raw_os_error(5));
            }
            let taken = bytes.len().min(self.left);
            self.left -= taken;
            Ok(taken)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Settle for Pulled {
        fn settle(&mut self) -> io::Result<()> {
            self.settled += 1;
            Ok(())
        }
    }

    #[test]
    fn what_is_told_as_done_has_arrived() {
        let (bytes, mut told) = (vec![7; 70 << 20], Vec::new());
        let mut disk = Pulled { left: usize::MAX, settled: 0 };
        let mut pace = Pace::new("writing", 70 << 20, Instant::now());
        copy(&mut bytes.as_slice(), &mut disk, &mut pace, &mut |p| told.push(p.done >> 20))
            .unwrap();
        assert_eq!(told, [32, 64, 70]);
        assert_eq!(disk.settled, 3);
    }

    #[test]
    fn a_disk_that_is_pulled_out_ends_the_copy_as_its_own_fault() {
        let bytes = vec![7; 70 << 20];
        let mut disk = Pulled { left: 40 << 20, settled: 0 };
        let mut pace = Pace::new("writing", 70 << 20, Instant::now());
        let ended = copy(&mut bytes.as_slice(), &mut disk, &mut pace, &mut |_| {});
        assert!(matches!(ended, Err(CopyError::Write(_))), "{ended:?}");
    }

    #[test]
    fn the_time_left_follows_from_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new("writing", 1000, start);
        pace.forward(10, at(10));
        assert_eq!(pace.progress().eta_seconds, Some(990));
        // Ten times as fast from now on; the slow beginning is forgotten.
        for second in 11..=20 {
            pace.forward(10, at(second));
        }
        assert_eq!(pace.progress().eta_seconds, Some(89));
        assert_eq!(pace.progress().done, 110);
    }
}
