//! Weight files to a model specification and mapped tensors.
//!
//! [`Model::open`] takes a GGUF file, or a folder that holds one or a safetensors checkpoint, and
//! answers with what every back end and the tokenizer need: a [`ModelSpec`] (what each layer is),
//! [`Weights`] (where each tensor lies in the mapped file), a [`TokenizerSource`] and the chat
//! template. Nothing is copied: tensors stay in the file and are read through
//! [`Model::bytes`].
//!
//! What a file says is checked before it is used: every count, length and offset against the
//! bytes that are there, every tensor's shape against the specification. A file with a tensor
//! that the family does not know is refused, because leaving it out would give wrong answers.

pub mod drawn;
mod error;
mod family;
pub mod gguf;
pub mod huggingface;
mod mapped;
mod model;
pub mod quant;
mod quantized;
mod spec;
mod tensor;
mod tokenizer;

/// The text of all that decides what values a stored tensor has, for the key of what is made from them and kept.
pub const DECODING: &[&str] = &[
    include_str!("family.rs"),
    include_str!("gguf.rs"),
    include_str!("gguf/architecture.rs"),
    include_str!("huggingface.rs"),
    include_str!("model.rs"),
    include_str!("quant.rs"),
    include_str!("quantized.rs"),
    include_str!("tensor.rs"),
];

pub use error::ModelError;
pub use model::Model;
pub use quantized::{Method, Stored4};
pub use spec::{
    Activation, Attention, Ffn, Gqa, LayerSpec, ModelSpec, Moe, Rope, RopeLayout, RopeScaling, Yarn,
};
pub use tensor::{FfnWeights, Format, Gated, LayerWeights, Tensor, Weights};
pub use tokenizer::{GgufTokenizer, TokenizerSource};
