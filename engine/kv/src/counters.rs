//! How the store fares.

/// Counts since the store was opened, and how things stand. "Blocks" where nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// In host memory now.
    pub host_blocks: u64,
    /// Their bytes.
    pub host_bytes: u64,
    /// On disk now.
    pub disk_blocks: u64,
    /// Bytes on disk that they take.
    pub disk_bytes: u64,
    /// Waiting to be written to disk.
    pub waiting_spills: u64,
    /// Found in host memory.
    pub host_hits: u64,
    /// Found on disk.
    pub disk_hits: u64,
    /// Asked for and not kept.
    pub misses: u64,
    /// Taken into host memory.
    pub puts: u64,
    /// Written to disk.
    pub spills: u64,
    /// Lost for want of room, in either tier: neither tier had them afterwards.
    pub drops: u64,
    /// Not taken, because there was no room or what comes before them is not kept.
    pub refusals: u64,
    /// Not used within the retention.
    pub expired: u64,
    /// Handed back from host memory.
    pub host_restores: u64,
    /// Handed back from disk.
    pub disk_restores: u64,
    /// Could not be read, or were not what was written. Nobody was given them.
    pub failures: u64,
    /// The disk tier takes nothing more, because writing to it failed.
    pub disk_off: bool,
}
