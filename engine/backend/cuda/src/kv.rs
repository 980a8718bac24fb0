//! The pool of KV blocks: `[layers][blocks][bytes of a block]`. What is inside of a block is `attention`'s business.

use crate::attention::HeadShape;
use crate::device::{Buffer, Device, Failure, Pinned, Ptr, Stream};

/// All keys and values on the card.
#[derive(Debug)]
pub(crate) struct Pool {
    bytes: Buffer<u8>,
    blocks: usize,
    block_bytes: usize,
}

impl Pool {
    /// Whatever stood there before stands in it: nobody reads what nobody wrote.
    pub(crate) fn new(
        device: &Device,
        layers: usize,
        blocks: usize,
        shape: &HeadShape,
    ) -> Result<Self, Failure> {
        let block_bytes = shape.block_bytes();
        let bytes = device.buffer(layers * blocks * block_bytes)?;
        Ok(Self { bytes, blocks, block_bytes })
    }

    /// A layer's first block.
    pub(crate) fn layer(&self, layer: usize) -> Ptr {
        self.bytes.offset(layer * self.blocks * self.block_bytes)
    }

    /// Of one block of one layer.
    pub(crate) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Of all blocks of one layer.
    pub(crate) fn layer_bytes(&self) -> usize {
        self.blocks * self.block_bytes
    }

    /// A block of every layer, layer after layer, after everything in the stream. Waits.
    pub(crate) fn export(
        &self,
        stream: &Stream,
        block: u32,
        to: &mut Pinned<u8>,
    ) -> Result<(), Failure> {
        for (layer, to) in to.chunks_exact_mut(self.block_bytes).enumerate() {
            // SAFETY: it is waited for.
            unsafe { stream.download(to, &self.bytes, self.place(layer, block))? };
        }
        stream.synchronize()
    }

    /// The other way round, in order with everything in the stream.
    ///
    /// # Safety
    /// `from` does not change until it is done.
    pub(crate) unsafe fn import(
        &self,
        stream: &Stream,
        block: u32,
        from: &Pinned<u8>,
    ) -> Result<(), Failure> {
        for (layer, from) in from.chunks_exact(self.block_bytes).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { stream.upload(&self.bytes, self.place(layer, block), from)? };
        }
        Ok(())
    }

    /// Not one copy of rows for all layers: the driver takes no rows that lie 2 GiB apart, and layers do.
    fn place(&self, layer: usize, block: u32) -> usize {
        layer * self.layer_bytes() + block as usize * self.block_bytes
    }
}
