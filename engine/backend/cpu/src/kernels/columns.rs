//! A matrix of results whose columns are written side by side by several threads.

use std::marker::PhantomData;

use super::LANES;

/// Rows of results, handed out sixteen columns at a time.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    first: *mut f32,
    rows: usize,
    /// From one row to the next.
    stride: usize,
    /// Columns that are still to be handed out.
    left: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is an exclusive borrow of its columns, and floats may be written by any thread.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// All of `out[row][width]`.
    pub(crate) fn new(out: &'a mut [f32], width: usize) -> Self {
        assert!(width > 0 && out.len().is_multiple_of(width), "whole rows");
        assert!(width.is_multiple_of(LANES), "whole tiles");
        Self {
            first: out.as_mut_ptr(),
            rows: out.len() / width,
            stride: width,
            left: width,
            of: PhantomData,
        }
    }

    /// The first `tiles` times sixteen columns, and what is left of them in `self`.
    pub(crate) fn split(&mut self, tiles: usize) -> Self {
        assert!(tiles * LANES <= self.left, "columns that are there");
        let part = Self { left: tiles * LANES, ..*self };
        // SAFETY: within the row, or its end where nothing is left; then it is never followed.
        self.first = unsafe { self.first.add(if self.rows == 0 { 0 } else { tiles * LANES }) };
        self.left -= tiles * LANES;
        part
    }

    /// Rows `from .. from + rows` of the `n`th sixteen columns.
    pub(crate) fn column(&mut self, n: usize, from: usize, rows: usize) -> Column<'_> {
        assert!((n + 1) * LANES <= self.left && from + rows <= self.rows, "within");
        // SAFETY: just checked, unless there is no row: then the offset is 0 or is not followed.
        let first = self.first.wrapping_add(from * self.stride + n * LANES);
        Column { first, rows, stride: self.stride, of: PhantomData }
    }
}

/// Sixteen columns of a matrix.
#[derive(Debug)]
pub(crate) struct Column<'a> {
    first: *mut f32,
    rows: usize,
    stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

impl Column<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Where sixteen results go.
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32; LANES] {
        assert!(row < self.rows, "within");
        // SAFETY: just checked; nobody else has these sixteen while `self` is borrowed.
        unsafe { &mut *self.row_unchecked(row).cast() }
    }

    /// As [`Self::row`].
    ///
    /// # Safety
    /// There is such a row.
    pub(super) unsafe fn row_unchecked(&mut self, row: usize) -> *mut f32 {
        // SAFETY: handed on.
        unsafe { self.first.add(row * self.stride) }
    }
}
