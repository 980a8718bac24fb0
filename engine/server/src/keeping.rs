//! What an engine keeps of conversations beside the device: how much, where, and for how long.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use polder_backend::Backend;
use polder_kv::{ModelDigest, Store, StoreOptions};

/// Raised when blocks mean something else though everything that [`model`] hashes is the same.
const LAYOUT: u32 = 1;
/// One part in so many of the memory that weights and the device's KV leave free is for host memory's tier.
const HOST_PART: u64 = 4;

/// What is kept beside the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeping {
    /// What tells the weights from all others, such as digests of their files. Blocks that were kept for others are
    /// not used.
    pub weights: String,
    /// Where the disk tier lies: a folder of this engine's own. None keeps nothing on disk.
    pub folder: Option<PathBuf>,
    /// Most bytes in host memory; None is a quarter of what is free once the weights and the device's KV have their
    /// memory.
    pub host_bytes: Option<u64>,
    /// Most bytes on disk.
    pub disk_bytes: u64,
    /// Bytes that stay free on that disk for others.
    pub disk_reserve_bytes: u64,
    /// What nobody used for so long is dropped.
    pub retention: Duration,
}

/// Opens the store for a back end's blocks. Where that fails the engine goes on without, and the log says why.
pub(crate) fn open_store(
    keeping: &Keeping,
    backend: &mut dyn Backend,
    precision: &str,
    memory_left: u64,
) -> Option<Arc<Store>> {
    let limits = backend.limits();
    let host_bytes = keeping.host_bytes.unwrap_or(memory_left / HOST_PART);
    let (Ok(bytes), tokens) = (usize::try_from(limits.block_bytes()), limits.block_tokens as usize)
    else {
        return None;
    };
    let options = StoreOptions {
        folder: keeping.folder.clone(),
        host_bytes,
        disk_bytes: keeping.disk_bytes,
        disk_reserve_bytes: keeping.disk_reserve_bytes,
        retention: keeping.retention,
        memory: if host_bytes > 0 { backend.host_memory(host_bytes) } else { None },
        ..StoreOptions::new(model(&keeping.weights, precision, limits.context), bytes, tokens)
    };
    match Store::open(options) {
        Ok(store) => {
            let counters = store.counters();
            log::info!(
                host_mib = host_bytes >> 20,
                disk_mib = if keeping.folder.is_some() { keeping.disk_bytes >> 20 } else { 0 },
                found = counters.disk_blocks;
                "KV is kept beside the device"
            );
            Some(Arc::new(store))
        }
        Err(error) => {
            let why = std::error::Error::source(&error).map(ToString::to_string);
            log::warn!(error:% = error, why:? = why; "no KV is kept beside the device");
            None
        }
    }
}

/// Everything besides tokens that decides a block's bytes. This program's version is part of it: a kernel that was
/// mended would otherwise go on with what the broken one computed. So is the longest sequence, by which some models choose
/// how they turn positions.
fn model(weights: &str, precision: &str, context: u32) -> ModelDigest {
    let version = env!("CARGO_PKG_VERSION");
    ModelDigest::of([
        weights.as_bytes(),
        precision.as_bytes(),
        version.as_bytes(),
        &context.to_le_bytes(),
        &LAYOUT.to_le_bytes()[..],
    ])
}
