//! What the store asks the machine, so that tests can answer for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Clocks, room, and what is written and read.
pub trait System: Send + Sync {
    /// The machine's clock: seconds since 1970, right or wrong.
    fn wall_seconds(&self) -> u64;

    /// Seconds since some moment. Never goes back, never jumps.
    fn uptime_seconds(&self) -> u64;

    /// Bytes that the file system with this folder has left for us.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;

    /// Writes all bytes at a place in a file.
    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Fills all bytes from a place in a file.
    fn read_at(&self, file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
        file.read_exact_at(bytes, at)
    }
}

/// The machine as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl System for Machine {
    fn wall_seconds(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    fn uptime_seconds(&self) -> u64 {
        START.elapsed().as_secs()
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }
}
