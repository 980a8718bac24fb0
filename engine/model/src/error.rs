//! Why a model could not be opened.

use std::path::PathBuf;

/// Why a model could not be opened. Each message says what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read.
    #[error("cannot read {path}; check that it exists and may be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path holds nothing that looks like a model.
    #[error(
        "{path} holds no model; expected one .gguf file, or config.json beside .safetensors files"
    )]
    NoModel {
        /// The path.
        path: PathBuf,
    },
    /// A folder with more than one GGUF file.
    #[error("{path} holds {count} .gguf files; name the one to use")]
    SeveralModels {
        /// The folder.
        path: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// A GGUF file contradicts its format.
    #[error("not a usable GGUF file: {0}; fetch the file again and check its digest")]
    Gguf(String),
    /// A safetensors file or its index contradicts its format.
    #[error("not a usable safetensors file: {0}; fetch the file again and check its digest")]
    Safetensors(String),
    /// A config.json is not what it should be.
    #[error("config.json: {0}")]
    Config(String),
    /// A metadata key is missing or has the wrong type.
    #[error("the model's metadata does not give a usable {key}; the file is broken or too old")]
    Metadata {
        /// The key.
        key: String,
    },
    /// An architecture that is not in the list.
    #[error("the model family `{family}` is not supported; choose one of the family {known}")]
    UnknownFamily {
        /// What the file says.
        family: String,
        /// Those that are.
        known: &'static str,
    },
    /// The family is known, this feature of it is not.
    #[error("the model needs {0}, which is not supported; choose another model")]
    Unsupported(String),
    /// A tensor's storage format is not in the list.
    #[error(
        "tensor {tensor} is stored as {format}, which is not supported; choose a file stored as F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q3_K, Q4_K, Q5_K or Q6_K"
    )]
    UnknownFormat {
        /// The tensor.
        tensor: String,
        /// Its format's name or number.
        format: String,
    },
    /// A tensor that the family needs is not there.
    #[error("tensor {0} is missing; the file is incomplete, fetch it again")]
    MissingTensor(String),
    /// A tensor that the family does not know.
    #[error(
        "tensor {0} has no place in this model family, so answers would be wrong; choose another file"
    )]
    UnexpectedTensor(String),
    /// A tensor's shape contradicts the metadata.
    #[error("tensor {tensor} has shape {found}, the metadata says {expected}; the file is broken")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What the file has.
        found: String,
        /// What the specification needs.
        expected: String,
    },
}
