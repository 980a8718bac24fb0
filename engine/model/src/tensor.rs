//! Where tensors lie and how they are stored.

use std::sync::Arc;

use crate::quantized::Parts;

/// How a tensor's values are stored. Block formats are those of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs)] // The formats' own names, known under no other.
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    /// A byte with four bits of exponent and three of mantissa; its scales are elsewhere.
    F8E4M3,
    /// Four bits in groups of columns, with scales and zeros elsewhere. See `Model::group`.
    Grouped4,
    /// Words that are part of something else.
    I32,
    /// The same.
    I64,
}

impl Format {
    /// Every format whose bytes alone are its values, for tests and tables.
    pub const ALL: [Format; 12] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
    ];

    /// Values in one block.
    pub fn block_values(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 | Format::F8E4M3 => 1,
            Format::Grouped4 | Format::I32 | Format::I64 => 1,
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => 32,
            Format::Q3_K | Format::Q4_K | Format::Q5_K | Format::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Format::F32 | Format::I32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::F8E4M3 => 1,
            Format::I64 => 8,
            // Not its own.
            Format::Grouped4 => 4,
            Format::Q4_0 => 2 + 16,
            Format::Q4_1 => 2 + 2 + 16,
            Format::Q5_0 => 2 + 4 + 16,
            Format::Q5_1 => 2 + 2 + 4 + 16,
            Format::Q8_0 => 2 + 32,
            Format::Q3_K => 32 + 64 + 12 + 2,
            Format::Q4_K => 2 + 2 + 12 + 128,
            Format::Q5_K => 2 + 2 + 12 + 32 + 128,
            Format::Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of `values` values, a multiple of the block; None if it is not or does not fit.
    pub fn bytes(self, values: usize) -> Option<usize> {
        if !values.is_multiple_of(self.block_values()) {
            return None;
        }
        (values / self.block_values()).checked_mul(self.block_bytes())
    }
}

/// One tensor: a matrix of `rows` x `cols` in row order (a vector has one row), somewhere in a
/// mapped file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// How it is stored.
    pub format: Format,
    /// Rows: outputs of a projection.
    pub rows: usize,
    /// Columns: inputs of a projection.
    pub cols: usize,
    /// Which of the model's files.
    pub(crate) file: usize,
    /// First byte in that file.
    pub(crate) offset: usize,
    /// Bytes.
    pub(crate) len: usize,
    /// What else belongs to it.
    pub(crate) parts: Option<Arc<Parts>>,
}

impl Tensor {
    /// Some of its rows, as a tensor of their own in the same place of the file.
    ///
    /// # Panics
    /// If the rows are not there.
    pub(crate) fn slice(&self, name: String, from: usize, rows: usize) -> Self {
        assert!(from + rows <= self.rows && rows > 0, "rows of the tensor");
        let parts = self.parts.as_ref().map(|parts| {
            let mut parts = Parts::clone(parts);
            match &mut parts {
                Parts::Grouped(grouped) => grouped.first += from,
                Parts::Scaled(scaled) => scaled.first += from,
            }
            Arc::new(parts)
        });
        if self.format == Format::Grouped4 {
            // Its rows do not lie one behind the other.
            return Self { name, rows, parts, ..self.clone() };
        }
        let row = self.len / self.rows;
        let (offset, len) = (self.offset + from * row, rows * row);
        Self { name, rows, offset, len, parts, ..self.clone() }
    }

    /// Bytes that it takes in its file.
    pub fn byte_len(&self) -> usize {
        self.len
    }
}

/// Every tensor of a model, by its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights {
    /// `vocab` x `hidden`.
    pub embedding: Tensor,
    /// One entry per layer of the specification.
    pub layers: Vec<LayerWeights>,
    /// `hidden`: the last norm.
    pub output_norm: Tensor,
    /// `vocab` x `hidden`; None when tied.
    pub output: Option<Tensor>,
}

/// One layer's tensors. `q` is `heads * head_dim` x `hidden`, `k` and `v` are
/// `kv_heads * head_dim` x `hidden`, `o` is `hidden` x `heads * head_dim`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerWeights {
    /// Norm before attention, `hidden`.
    pub attention_norm: Tensor,
    /// Query projection.
    pub q: Tensor,
    /// Key projection.
    pub k: Tensor,
    /// Value projection.
    pub v: Tensor,
    /// Biases of the three, when the specification says so.
    pub qkv_bias: Option<[Tensor; 3]>,
    /// Norms over one query and one key head (`head_dim`), when the specification says so.
    pub qk_norm: Option<[Tensor; 2]>,
    /// Output projection.
    pub o: Tensor,
    /// Norm after attention, when the specification says so.
    pub attention_post_norm: Option<Tensor>,
    /// Norm before the feed-forward part, `hidden`.
    pub ffn_norm: Tensor,
    /// The feed-forward part.
    pub ffn: FfnWeights,
    /// Norm after the feed-forward part, when the specification says so.
    pub ffn_post_norm: Option<Tensor>,
}

/// The feed-forward part of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FfnWeights {
    /// One for every token.
    Dense(Gated),
    /// Several, of which each token takes some.
    Moe {
        /// What each expert is worth to a token, `experts` x `hidden`.
        router: Tensor,
        /// One for each.
        experts: Vec<Gated>,
    },
}

/// `down(activation(gate(x)) * up(x))`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gated {
    /// Gate, `inner` x `hidden`.
    pub gate: Tensor,
    /// Up, `inner` x `hidden`.
    pub up: Tensor,
    /// Down, `hidden` x `inner`.
    pub down: Tensor,
}
