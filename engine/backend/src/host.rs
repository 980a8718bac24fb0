//! KV blocks in host memory: the caller's own, or lent by a back end, whose card reads and writes it by itself.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// A KV block's bytes in host memory. What was lent goes back when it is dropped.
pub struct HostBlock {
    bytes: Bytes,
}

enum Bytes {
    Own(Vec<u8>),
    Lent(Box<dyn Lent>),
}

/// Memory that somebody lent for one block, and takes back when it is dropped.
pub trait Lent: Send + Sync {
    /// What stands there.
    fn bytes(&self) -> &[u8];
    /// The same, to be written.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// Where blocks lie in host memory, if a back end says where.
pub trait HostMemory: Send + Sync + fmt::Debug {
    /// Memory for one block, whatever stood there before; waits for nothing. None where none is free: then any memory does, and its
    /// copies take longer.
    fn lend(&self) -> Option<HostBlock>;
}

impl HostBlock {
    /// Lent memory.
    pub fn lent(memory: Box<dyn Lent>) -> Self {
        Self { bytes: Bytes::Lent(memory) }
    }
}

impl From<Vec<u8>> for HostBlock {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: Bytes::Own(bytes) }
    }
}

impl Deref for HostBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Lent(memory) => memory.bytes(),
        }
    }
}

impl DerefMut for HostBlock {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Lent(memory) => memory.bytes_mut(),
        }
    }
}

impl PartialEq for HostBlock {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl Eq for HostBlock {}

impl fmt::Debug for HostBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lent = matches!(self.bytes, Bytes::Lent(_));
        write!(f, "{} bytes{}", self.len(), if lent { ", lent" } else { "" })
    }
}
