//! Opening a model from a path.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::ModelError;
use crate::mapped::MappedFile;
use crate::quantized::{Parts, Stored4};
use crate::spec::ModelSpec;
use crate::tensor::{Format, Tensor, Weights};
use crate::tokenizer::{GgufTokenizer, TokenizerSource};
use crate::{gguf, huggingface, quant};

/// A model: what it is, and where its weights lie.
#[derive(Debug)]
pub struct Model {
    /// What each layer is.
    pub spec: ModelSpec,
    /// Every tensor by its role; shapes agree with `spec`.
    pub weights: Weights,
    /// Where its tokenizer is.
    pub tokenizer: TokenizerSource,
    /// Its Jinja chat template, if it has one.
    pub chat_template: Option<String>,
    files: Vec<MappedFile>,
}

impl Model {
    /// Opens a GGUF file, a folder with exactly one GGUF file, or a folder with `config.json` and
    /// safetensors files. Tensors are mapped, not read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let read = |source| ModelError::Read { path: path.to_owned(), source };
        if !path.metadata().map_err(read)?.is_dir() {
            return Self::open_gguf(path);
        }
        let mut ggufs = Vec::new();
        for entry in path.read_dir().map_err(read)? {
            let file = entry.map_err(read)?.path();
            if file.extension() == Some(OsStr::new("gguf")) {
                ggufs.push(file);
            }
        }
        match ggufs.as_slice() {
            [one] => Self::open_gguf(one),
            [] if path.join("config.json").is_file() => Self::open_safetensors(path),
            [] => Err(ModelError::NoModel { path: path.to_owned() }),
            several => {
                Err(ModelError::SeveralModels { path: path.to_owned(), count: several.len() })
            }
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let file = MappedFile::open(path)?;
        let header = gguf::parse(file.bytes())?;
        let (spec, weights) = gguf::read(&header, file.bytes())?;
        let tokenizer = GgufTokenizer::read(&header)?;
        if tokenizer.as_ref().is_some_and(|t| t.tokens.len() > spec.vocab as usize) {
            return Err(ModelError::Metadata { key: "tokenizer.ggml.tokens".into() });
        }
        Ok(Self {
            spec,
            weights,
            tokenizer: tokenizer
                .map_or(TokenizerSource::Missing, |t| TokenizerSource::Gguf(Box::new(t))),
            chat_template: header.string("tokenizer.chat_template").map(str::to_owned),
            files: vec![file],
        })
    }

    fn open_safetensors(folder: &Path) -> Result<Self, ModelError> {
        let config = read_small(&folder.join("config.json"))?;
        let spec = huggingface::parse_config(&config)?;
        let index = folder.join("model.safetensors.index.json");
        let names = match index.is_file() {
            true => huggingface::parse_index(&read_small(&index)?)?,
            false => vec!["model.safetensors".to_owned()],
        };
        let mut files = Vec::with_capacity(names.len());
        let mut tensors = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let file = MappedFile::open(&folder.join(name))?;
            for mut tensor in huggingface::parse_tensors(file.bytes())? {
                tensor.file = number;
                tensors.push(tensor);
            }
            files.push(file);
        }
        let method = huggingface::parse_method(&config)?;
        for tensor in tensors.iter().filter(|t| t.name.ends_with("g_idx")) {
            in_order(tensor, &files[tensor.file].bytes()[tensor.offset..][..tensor.len], &tensors)?;
        }
        let weights = huggingface::assemble(&spec, method, tensors)?;
        let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let tokenizer_config = there("tokenizer_config.json");
        let template = match there("chat_template.jinja") {
            Some(path) => Some(read_text(&path)?),
            None => match &tokenizer_config {
                Some(path) => huggingface::parse_chat_template(&read_small(path)?)?,
                None => None,
            },
        };
        Ok(Self {
            spec,
            weights,
            tokenizer: match there("tokenizer.json") {
                None => TokenizerSource::Missing,
                Some(tokenizer_json) => TokenizerSource::HuggingFace {
                    tokenizer_json,
                    tokenizer_config,
                    generation_config: there("generation_config.json"),
                },
            },
            chat_template: template,
            files,
        })
    }

    /// Bytes of the files that hold its tensors.
    pub fn bytes_of_files(&self) -> u64 {
        self.files.iter().map(|file| file.bytes().len() as u64).sum()
    }

    /// A tensor's bytes as they stand in the file: `tensor.rows` rows of whole blocks.
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.files[tensor.file].bytes()[tensor.offset..tensor.offset + tensor.len]
    }

    /// One row of a tensor as values; `out` holds `tensor.cols`.
    ///
    /// # Panics
    /// If the row is not there or `out` has another length.
    pub fn row(&self, tensor: &Tensor, row: usize, out: &mut [f32]) {
        assert!(row < tensor.rows && out.len() == tensor.cols, "row of the tensor");
        if let Some(group) = self.group_of(tensor) {
            let groups = tensor.cols / group;
            let (mut q, mut zeros) = (vec![0; tensor.cols], vec![0; groups]);
            let mut scales = vec![0.0; groups];
            self.group(tensor, row, &mut q, &mut scales, &mut zeros);
            for (i, (value, q)) in out.iter_mut().zip(q).enumerate() {
                let g = i / group;
                *value = scales[g] * (f32::from(q) - f32::from(zeros[g]));
            }
            return;
        }
        let bytes = tensor.len / tensor.rows;
        quant::dequantize(tensor.format, &self.bytes(tensor)[row * bytes..][..bytes], out);
        if let Some(Parts::Scaled(scaled)) = tensor.parts.as_deref() {
            scaled.row(&|part| self.bytes(part), row, out);
        }
    }

    /// Columns in a group of a [`Format::Grouped4`](crate::Format::Grouped4) tensor, a multiple of 32; none for others.
    pub fn group_of(&self, tensor: &Tensor) -> Option<usize> {
        match tensor.parts.as_deref() {
            Some(Parts::Grouped(grouped)) => Some(grouped.group),
            _ => None,
        }
    }

    /// One row of such a tensor: value `i` is `scales[i / group] * (q[i] - zeros[i / group])`.
    ///
    /// # Panics
    /// If the tensor is another one, the row is not there or a length is wrong.
    pub fn group(
        &self,
        tensor: &Tensor,
        row: usize,
        q: &mut [u8],
        scales: &mut [f32],
        zeros: &mut [u8],
    ) {
        let Some(Parts::Grouped(grouped)) = tensor.parts.as_deref() else {
            panic!("a tensor in groups");
        };
        let groups = tensor.cols / grouped.group;
        assert!(row < tensor.rows && q.len() == tensor.cols, "row of the tensor");
        assert!(scales.len() == groups && zeros.len() == groups, "groups of the tensor");
        grouped.row(&|part| self.bytes(part), row, q, scales, zeros);
    }

    /// Such a tensor as its files store it, for those who put it into an order of their own; none for others.
    pub fn stored4(&self, tensor: &Tensor) -> Option<Stored4<'_>> {
        match tensor.parts.as_deref() {
            Some(Parts::Grouped(grouped)) => {
                Some(grouped.stored(&|part| self.bytes(part), tensor.cols))
            }
            _ => None,
        }
    }

    /// Has the system read a tensor's bytes from the disk, and does not wait for them. A hint.
    pub fn read_ahead(&self, tensor: &Tensor) {
        let parts = tensor.parts.iter().flat_map(|parts| parts.tensors());
        for part in parts.chain((tensor.format != Format::Grouped4).then_some(tensor)) {
            self.files[part.file].read_ahead(part.offset..part.offset + part.len);
        }
    }

    /// Gives back what the system keeps for this process of bytes that were read. They can be read again.
    pub fn let_go(&self) {
        self.files.iter().for_each(MappedFile::let_go);
    }

    /// One row of a tensor of bytes (e4m3), and what each `unit` columns are multiplied with; None for other tensors, and where scales
    /// change inside of a unit.
    ///
    /// # Panics
    /// If the row is not there, or the scales are not `cols / unit`.
    pub fn bytes_and_scales(
        &self,
        tensor: &Tensor,
        row: usize,
        unit: usize,
        scales: &mut [f32],
    ) -> Option<&[u8]> {
        assert!(row < tensor.rows && scales.len() * unit == tensor.cols, "row of the tensor");
        let Some(Parts::Scaled(scaled)) = tensor.parts.as_deref() else { return None };
        scaled.scales(&|part| self.bytes(part), row, unit, scales)?;
        let bytes = tensor.len / tensor.rows;
        Some(&self.bytes(tensor)[row * bytes..][..bytes])
    }

    /// A whole tensor as values, row after row.
    pub fn values(&self, tensor: &Tensor) -> Vec<f32> {
        let mut out = vec![0.0; tensor.rows * tensor.cols];
        match &tensor.parts {
            None => quant::dequantize(tensor.format, self.bytes(tensor), &mut out),
            Some(_) => out
                .chunks_exact_mut(tensor.cols)
                .enumerate()
                .for_each(|(row, out)| self.row(tensor, row, out)),
        }
        out
    }
}

/// Refuses groups that are not one after the other: act-order, whatever the configuration says.
fn in_order(index: &Tensor, bytes: &[u8], tensors: &[Tensor]) -> Result<(), ModelError> {
    let stem = index.name.trim_end_matches("g_idx").trim_end_matches("weight_");
    let scales = tensors.iter().find(|t| t.name.strip_prefix(stem) == Some("scales"));
    let groups = scales.map_or(1, |t| t.rows).max(1);
    let group = bytes.len() / 4 / groups;
    let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word) as usize);
    match words.enumerate().all(|(k, g)| k.checked_div(group) == Some(g)) {
        true => Ok(()),
        false => {
            Err(ModelError::Unsupported("act-order (groups out of order in g_idx)".to_owned()))
        }
    }
}

/// Largest text file beside a checkpoint that is read.
const SMALL: u64 = 64 << 20;

fn read_small(path: &Path) -> Result<Vec<u8>, ModelError> {
    let read = |source| ModelError::Read { path: PathBuf::from(path), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(read)?;
    file.take(SMALL + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > SMALL {
        return Err(read(std::io::Error::other("it is larger than 64 MiB")));
    }
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String, ModelError> {
    String::from_utf8(read_small(path)?).map_err(|_| ModelError::Read {
        path: path.to_owned(),
        source: std::io::Error::other("it is not UTF-8"),
    })
}
