//! Checkpoints whose matrices were quantized: several tensors that make up one, by their names.
//!
//! Four bits in groups along the inputs, value `scale * (q - zero)`, in three packings of 32-bit words (all
//! little-endian); `K` inputs, `N` outputs, `g` inputs in a group:
//! - AWQ (`version: gemm`): `qweight` `[K][N/8]`, `qzeros` `[K/g][N/8]`, `scales` `[K/g][N]`. The eight nibbles of a word, lowest
//!   first, are the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight.
//! - GPTQ: `qweight` `[K/8][N]`, nibbles in the order of the inputs; `qzeros` `[K/g][N/8]` in the order of the outputs, one less
//!   than the zero in files before version 2; `scales` `[K/g][N]`; `g_idx` `[K]` says each input's group.
//! - compressed-tensors (`pack-quantized`): `weight_packed` `[N][K/8]`, `weight_scale` `[N][K/g]`, `weight_zero_point` `[N/8][K/g]`
//!   where the zero is not 8, `weight_shape` `[2]`.
//!
//! Eight bits (FP8, e4m3): `weight` `[N][K]` with `weight_scale` (one, or one per output) or `weight_scale_inv` (one for each block
//! of 128 x 128), which multiplies in spite of its name.

use std::sync::Arc;

use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::family::Shelf;
use crate::gguf::shown;
use crate::tensor::{Format, Tensor};

/// How a checkpoint says that it was quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// AWQ's GEMM layout.
    Awq,
    /// GPTQ; what is added to stored zeros.
    Gptq {
        /// 1 before version 2 of the format.
        zero: u8,
    },
    /// compressed-tensors, four bits or FP8.
    Compressed,
    /// FP8 with a scale for each block.
    Fp8,
}

#[derive(Deserialize)]
struct Config {
    quant_method: Option<String>,
    bits: Option<u32>,
    version: Option<String>,
    desc_act: Option<bool>,
    checkpoint_format: Option<String>,
    format: Option<String>,
    fmt: Option<String>,
    config_groups: Option<serde_json::Map<String, Value>>,
}

impl Method {
    /// Of a `quantization_config`.
    pub(crate) fn of(config: &Value) -> Result<Self, ModelError> {
        let c: Config = serde_json::from_value(config.clone())
            .map_err(|e| ModelError::Config(format!("quantization_config: {e}")))?;
        let refuse = |what: String| Err(ModelError::Unsupported(what));
        let four = |bits: Option<u32>| match bits {
            Some(4) => Ok(()),
            other => Err(ModelError::Unsupported(format!(
                "weights of {} bits in groups",
                other.map_or("unknown".to_owned(), |bits| bits.to_string())
            ))),
        };
        match c.quant_method.as_deref() {
            Some("awq") => {
                four(c.bits)?;
                match c.version.as_deref().map(str::to_lowercase).as_deref() {
                    None | Some("gemm") => Ok(Self::Awq),
                    Some(other) => refuse(format!("AWQ's layout {}", shown(other))),
                }
            }
            Some("gptq") => {
                four(c.bits)?;
                if c.desc_act == Some(true) {
                    return refuse("GPTQ with act-order (desc_act)".to_owned());
                }
                match c.checkpoint_format.as_deref() {
                    None | Some("gptq") => Ok(Self::Gptq { zero: 1 }),
                    Some("gptq_v2") => Ok(Self::Gptq { zero: 0 }),
                    Some(other) => refuse(format!("GPTQ's format {}", shown(other))),
                }
            }
            Some("compressed-tensors") => {
                let formats = c.config_groups.iter().flatten().filter_map(|(_, group)| {
                    group.get("format").and_then(Value::as_str).map(str::to_owned)
                });
                for format in formats.chain(c.format) {
                    let known = ["pack-quantized", "float-quantized", "naive-quantized", "dense"];
                    if !known.contains(&format.as_str()) {
                        return refuse(format!("the compressed-tensors format {}", shown(&format)));
                    }
                }
                Ok(Self::Compressed)
            }
            Some("fp8") => match c.fmt.as_deref() {
                None | Some("e4m3") => Ok(Self::Fp8),
                Some(other) => refuse(format!("FP8 as {}", shown(other))),
            },
            other => refuse(format!(
                "weights quantized with {}",
                shown(other.unwrap_or("nothing named"))
            )),
        }
    }
}

/// How a tensor's parts come to values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parts {
    Grouped(Grouped),
    Scaled(Scaled),
}

/// Four bits in groups along the columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grouped {
    method: Method,
    /// Which of the file's outputs is row 0.
    pub(crate) first: usize,
    /// All of the file's outputs.
    all: usize,
    pub(crate) group: usize,
    words: Tensor,
    scales: Tensor,
    zeros: Option<Tensor>,
}

/// A byte for each value, and scales for blocks of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scaled {
    pub(crate) first: usize,
    /// Rows and columns of a block.
    block: [usize; 2],
    scales: Tensor,
}

/// Where in a word AWQ keeps each of eight outputs.
const AWQ_NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A matrix of four bits in groups, as its files store it. How it lies there is said at the head of this file.
#[derive(Debug, Clone, Copy)]
pub struct Stored4<'a> {
    /// In whose order.
    pub method: Method,
    /// Which of the stored outputs is row 0.
    pub first: usize,
    /// All stored outputs.
    pub outputs: usize,
    /// Inputs: columns.
    pub inputs: usize,
    /// Inputs of a group.
    pub group: usize,
    /// Words of eight times four bits.
    pub words: &'a [u8],
    scales: &'a [u8],
    scale_format: Format,
    zeros: Option<&'a [u8]>,
}

impl Stored4<'_> {
    /// The four bits of a stored output and an input.
    pub fn q(&self, output: usize, input: usize) -> u8 {
        match self.method {
            Method::Awq => {
                let word = word(self.words, input * (self.outputs / 8) + output / 8);
                nibble(word, AWQ_NIBBLE[output % 8])
            }
            Method::Gptq { .. } => {
                nibble(word(self.words, input / 8 * self.outputs + output), input % 8)
            }
            _ => nibble(word(self.words, output * (self.inputs / 8) + input / 8), input % 8),
        }
    }

    /// The scale of a stored output's group.
    pub fn scale(&self, output: usize, group: usize) -> f32 {
        let at = match self.method {
            Method::Compressed => output * (self.inputs / self.group) + group,
            _ => group * self.outputs + output,
        };
        match self.scale_format {
            Format::F32 => f32::from_bits(word(self.scales, at)),
            format => {
                let bits = u16::from_le_bytes([self.scales[2 * at], self.scales[2 * at + 1]]);
                match format {
                    Format::F16 => f16::from_bits(bits).to_f32(),
                    _ => bf16::from_bits(bits).to_f32(),
                }
            }
        }
    }

    /// The zero of a stored output's group: up to 16.
    pub fn zero(&self, output: usize, group: usize) -> u8 {
        let Some(zeros) = self.zeros else { return 8 };
        let row = group * (self.outputs / 8) + output / 8;
        match self.method {
            Method::Awq => nibble(word(zeros, row), AWQ_NIBBLE[output % 8]),
            Method::Gptq { zero } => nibble(word(zeros, row), output % 8) + zero,
            _ => {
                let at = output / 8 * (self.inputs / self.group) + group;
                nibble(word(zeros, at), output % 8)
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = &bytes[4 * at..4 * at + 4];
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn nibble(word: u32, n: usize) -> u8 {
    (word >> (4 * n)) as u8 & 15
}

impl Grouped {
    /// With the bytes of its tensors.
    pub(crate) fn stored<'a>(
        &self,
        bytes: &dyn Fn(&Tensor) -> &'a [u8],
        cols: usize,
    ) -> Stored4<'a> {
        Stored4 {
            method: self.method,
            first: self.first,
            outputs: self.all,
            inputs: cols,
            group: self.group,
            words: bytes(&self.words),
            scales: bytes(&self.scales),
            scale_format: self.scales.format,
            zeros: self.zeros.as_ref().map(bytes),
        }
    }

    /// One row: `q[cols]`, `scales[cols / group]`, `zeros[cols / group]`; `bytes` gives a tensor's bytes.
    pub(crate) fn row<'a>(
        &self,
        bytes: &dyn Fn(&Tensor) -> &'a [u8],
        row: usize,
        q: &mut [u8],
        scales: &mut [f32],
        zeros: &mut [u8],
    ) {
        let stored = self.stored(bytes, q.len());
        let n = self.first + row;
        q.iter_mut().enumerate().for_each(|(k, q)| *q = stored.q(n, k));
        scales.iter_mut().enumerate().for_each(|(g, scale)| *scale = stored.scale(n, g));
        zeros.iter_mut().enumerate().for_each(|(g, zero)| *zero = stored.zero(n, g));
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [Some(&self.words), Some(&self.scales), self.zeros.as_ref()].into_iter().flatten()
    }
}

impl Parts {
    /// What lies elsewhere than the tensor says.
    pub(crate) fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Grouped(grouped) => grouped.tensors().collect(),
            Self::Scaled(scaled) => vec![&scaled.scales],
        }
    }
}

impl Scaled {
    /// Scales the values of one row.
    pub(crate) fn row<'a>(
        &self,
        bytes: &dyn Fn(&Tensor) -> &'a [u8],
        row: usize,
        values: &mut [f32],
    ) {
        let stored = bytes(&self.scales);
        let size = self.scales.format.block_bytes();
        let row = (self.first + row) / self.block[0];
        for (b, values) in values.chunks_mut(self.block[1]).enumerate() {
            let at = row * self.scales.cols + b;
            let mut one = [0.0];
            crate::quant::dequantize(self.scales.format, &stored[at * size..][..size], &mut one);
            values.iter_mut().for_each(|value| *value *= one[0]);
        }
    }
}

impl Scaled {
    /// What each `unit` columns of a row are multiplied with; None where scales change inside of one.
    pub(crate) fn scales<'a>(
        &self,
        bytes: &dyn Fn(&Tensor) -> &'a [u8],
        row: usize,
        unit: usize,
        scales: &mut [f32],
    ) -> Option<()> {
        let last = scales.len() * unit <= self.block[1];
        if !last && !self.block[1].is_multiple_of(unit) {
            return None;
        }
        let stored = bytes(&self.scales);
        let size = self.scales.format.block_bytes();
        let row = (self.first + row) / self.block[0];
        for (n, scale) in scales.iter_mut().enumerate() {
            let at = row * self.scales.cols + n * unit / self.block[1];
            let mut one = [0.0];
            crate::quant::dequantize(self.scales.format, &stored[at * size..][..size], &mut one);
            *scale = one[0];
        }
        Some(())
    }
}

/// Makes one tensor of those that belong together, under the name that it would have if nobody had quantized it.
pub(crate) fn gather(shelf: &mut Shelf, method: Method) -> Result<(), ModelError> {
    let part = match method {
        Method::Awq | Method::Gptq { .. } => ".qweight",
        Method::Compressed => ".weight_packed",
        Method::Fp8 => ".weight",
    };
    let mut names = shelf.names_with_end(part);
    names.sort();
    for name in names {
        let stem = name.strip_suffix(part).unwrap_or_default().to_owned();
        match method {
            Method::Fp8 => scaled(shelf, &stem)?,
            _ => grouped(shelf, &stem, method)?,
        }
    }
    if method == Method::Compressed {
        for name in shelf.names_with_end(".weight") {
            scaled(shelf, name.strip_suffix(".weight").unwrap_or_default())?;
        }
    }
    Ok(())
}

fn grouped(shelf: &mut Shelf, stem: &str, method: Method) -> Result<(), ModelError> {
    let name = format!("{stem}.weight");
    let missing = |part: &str| ModelError::MissingTensor(format!("{}.{part}", shown(stem)));
    let mut pull = |part: &str| shelf.remove(&format!("{stem}.{part}"));
    let [words, scales, zeros] = match method {
        Method::Compressed => ["weight_packed", "weight_scale", "weight_zero_point"],
        _ => ["qweight", "scales", "qzeros"],
    };
    // What is in these was checked when the file was read.
    drop((pull("g_idx"), pull("weight_g_idx"), pull("weight_shape")));
    let words = pull(words).ok_or_else(|| missing(words))?;
    let scales = pull(scales).ok_or_else(|| missing(scales))?;
    let zeros = pull(zeros);
    if zeros.is_none() && method != Method::Compressed {
        return Err(missing("qzeros"));
    }
    let (rows, cols) = match method {
        Method::Awq => (words.cols.saturating_mul(8), words.rows),
        Method::Gptq { .. } => (words.cols, words.rows.saturating_mul(8)),
        _ => (words.rows, words.cols.saturating_mul(8)),
    };
    let shape = |tensor: &Tensor, rows: usize, cols: usize| {
        if (tensor.rows, tensor.cols) == (rows, cols) {
            return Ok(());
        }
        Err(ModelError::Shape {
            tensor: shown(&tensor.name),
            found: format!("{} x {}", tensor.rows, tensor.cols),
            expected: format!("{rows} x {cols}"),
        })
    };
    let of = |tensor: &Tensor, formats: &[Format]| match formats.contains(&tensor.format) {
        true => Ok(()),
        false => Err(ModelError::UnknownFormat {
            tensor: shown(&tensor.name),
            format: format!("{:?}", tensor.format),
        }),
    };
    of(&words, &[Format::I32])?;
    of(&scales, &[Format::F16, Format::BF16, Format::F32])?;
    let groups = match method {
        Method::Compressed => scales.cols,
        _ => scales.rows,
    };
    let group = cols.checked_div(groups).unwrap_or(0);
    if group == 0 || !group.is_multiple_of(32) || group.checked_mul(groups) != Some(cols) {
        return Err(ModelError::Unsupported(format!(
            "{} groups over {cols} inputs of {}",
            groups,
            shown(&name)
        )));
    }
    if !rows.is_multiple_of(8) {
        return Err(ModelError::Unsupported(format!("{rows} outputs of {}", shown(&name))));
    }
    match method {
        Method::Compressed => shape(&scales, rows, groups)?,
        _ => shape(&scales, groups, rows)?,
    }
    if let Some(zeros) = &zeros {
        of(zeros, &[Format::I32])?;
        match method {
            Method::Compressed => shape(zeros, rows / 8, groups)?,
            _ => shape(zeros, groups, rows / 8)?,
        }
    }
    let parts = Parts::Grouped(Grouped {
        method,
        first: 0,
        all: rows,
        group,
        words: words.clone(),
        scales,
        zeros,
    });
    shelf.put(Tensor {
        name,
        format: Format::Grouped4,
        rows,
        cols,
        parts: Some(Arc::new(parts)),
        ..words
    });
    Ok(())
}

/// One matrix of bytes with its scales, if it is one.
fn scaled(shelf: &mut Shelf, stem: &str) -> Result<(), ModelError> {
    let name = format!("{stem}.weight");
    let Some(weight) = shelf.get(&name).filter(|t| t.format == Format::F8E4M3).cloned() else {
        return Ok(());
    };
    // For activations; ours are not quantized with it.
    shelf.drop_if_there(&format!("{stem}.input_scale"));
    let found = ["weight_scale_inv", "weight_scale"]
        .iter()
        .find_map(|part| shelf.remove(&format!("{stem}.{part}")));
    let scales =
        found.ok_or_else(|| ModelError::MissingTensor(format!("{}.weight_scale", shown(stem))))?;
    if !matches!(scales.format, Format::F16 | Format::BF16 | Format::F32) {
        return Err(ModelError::UnknownFormat {
            tensor: shown(&scales.name),
            format: format!("{:?}", scales.format),
        });
    }
    let (rows, cols) = (weight.rows, weight.cols);
    let block = match (scales.rows, scales.cols) {
        (1, 1) => [rows, cols],
        (r, 1) if r == rows => [1, cols],
        (r, c) if r == rows.div_ceil(128) && c == cols.div_ceil(128) => [128, 128],
        (r, c) => {
            return Err(ModelError::Shape {
                tensor: shown(&scales.name),
                found: format!("{r} x {c}"),
                expected: format!("one scale, {rows}, or one for each block of 128 x 128"),
            });
        }
    };
    let parts = Some(Arc::new(Parts::Scaled(Scaled { first: 0, block, scales })));
    shelf.put(Tensor { parts, ..weight });
    Ok(())
}
