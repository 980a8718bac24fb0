//! The one place where a file becomes memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use crate::error::ModelError;

/// A file mapped read-only.
#[derive(Debug)]
pub(crate) struct MappedFile(memmap2::Mmap);

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        // SAFETY: the map is private to this process and read-only. Weight files in the store are
        // written once, under another name, and renamed when complete; nothing in Polder changes
        // or cuts one afterwards. Should another program cut it, a read faults (SIGBUS): the
        // engine process ends and is restarted, it never sees other memory.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read)?;
        Ok(Self(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
