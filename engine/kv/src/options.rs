//! What a store is opened with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use polder_backend::HostMemory;

use crate::digest::ModelDigest;

/// What to keep, where, and how much of it.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Where the disk tier lies: a folder of the store's own, made where it is missing. None keeps nothing on disk.
    pub folder: Option<PathBuf>,
    /// Most bytes of blocks in host memory. Blocks on their way to the disk wait there: with room for less than one
    /// block nothing is kept at all.
    pub host_bytes: u64,
    /// Most bytes on disk.
    pub disk_bytes: u64,
    /// Bytes that stay free for others on the file system of the folder. Where less is left nothing new is taken from it.
    pub disk_reserve_bytes: u64,
    /// What was not used for so long is dropped.
    pub retention: Duration,
    /// What besides tokens decides a block's bytes. A folder that was kept for another is emptied.
    pub model: ModelDigest,
    /// Bytes of one block.
    pub block_bytes: usize,
    /// Tokens of one block.
    pub block_tokens: usize,
    /// Bytes of one file with blocks, about. A folder kept with another value is emptied.
    pub segment_bytes: u64,
    /// Where blocks that are read from disk lie in host memory; None: anywhere. Blocks that are put stay where they are.
    pub memory: Option<Arc<dyn HostMemory>>,
}

impl StoreOptions {
    /// For this model and these blocks, with a retention of seven days, 5 GiB left free on disk, and files of 1 GiB.
    /// Nothing is kept until there is room to keep it in.
    pub fn new(model: ModelDigest, block_bytes: usize, block_tokens: usize) -> Self {
        Self {
            folder: None,
            host_bytes: 0,
            disk_bytes: 0,
            disk_reserve_bytes: 5 << 30,
            retention: Duration::from_secs(7 * 24 * 60 * 60),
            model,
            block_bytes,
            block_tokens,
            segment_bytes: 1 << 30,
            memory: None,
        }
    }
}

/// Why a store could not be opened. An engine goes on without one.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Blocks of nothing.
    #[error(
        "a KV block of {bytes} bytes and {tokens} tokens cannot be kept; both must be at least one"
    )]
    EmptyBlock {
        /// Bytes asked for.
        bytes: usize,
        /// Tokens asked for.
        tokens: usize,
    },
    /// Two engines would overwrite each other's blocks.
    #[error("{0} is in use by another engine; give each engine a KV folder of its own")]
    Locked(PathBuf),
    /// The folder cannot be used.
    #[error("cannot use {path} to keep KV; check its owner, its permissions and the disk")]
    Folder {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The system gave no thread.
    #[error("cannot start the threads that keep KV; is the machine at its limit?")]
    Threads(#[source] std::io::Error),
}
