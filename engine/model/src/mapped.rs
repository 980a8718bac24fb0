//! The one place where a file becomes memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::{Advice, UncheckedAdvice};

use crate::error::ModelError;

/// What the system surely reads at one request: of a longer one it may leave the rest out.
const AHEAD: usize = 128 << 10;

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

    /// Has the system read some of it, without waiting. A hint: what it answers changes nothing.
    pub(crate) fn read_ahead(&self, bytes: Range<usize>) {
        for at in bytes.clone().step_by(AHEAD) {
            let _ = self.0.advise_range(Advice::WillNeed, at, AHEAD.min(bytes.end - at));
        }
    }

    /// Takes its pages out of this process's memory.
    pub(crate) fn let_go(&self) {
        // SAFETY: the pages are the file's and were never written to: whoever looks again finds the same bytes.
        let _ = unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}
