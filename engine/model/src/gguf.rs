//! GGUF: one file with metadata and tensors (versions 2 and 3, little-endian).
//!
//! [`parse`] is a pure function of the bytes. It never reads past them, and what it allocates is
//! bounded by a small multiple of their length, whatever the counts in the file claim.

mod architecture;

use std::collections::{BTreeMap, HashSet};

use crate::error::ModelError;
use crate::tensor::Format;

pub(crate) use architecture::read;

/// A parsed header: metadata, and where each tensor lies.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<GgufTensor>,
}

/// One tensor of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// How it is stored.
    pub format: Format,
    /// Its dimensions, fastest first (a matrix is `[cols, rows]`), one to four of them.
    pub dims: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: usize,
    /// Bytes; `offset + len` lies within the file.
    pub len: usize,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The names are the types.
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    UnsignedArray(Vec<u64>),
    SignedArray(Vec<i32>),
    Signed64Array(Vec<i64>),
    FloatArray(Vec<f32>),
    Float64Array(Vec<f64>),
    BoolArray(Vec<bool>),
    StringArray(Vec<String>),
}

impl Value {
    /// The value as an unsigned integer, if it is a whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(v) => Some(*v),
            Value::Signed(v) => u64::try_from(*v).ok(),
            _ => None,
        }
    }

    /// The value as a signed integer.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Unsigned(v) => i64::try_from(*v).ok(),
            Value::Signed(v) => Some(*v),
            _ => None,
        }
    }
}

impl Gguf {
    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Every key, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A whole number below 2^32.
    pub fn u32(&self, key: &str) -> Option<u32> {
        self.value(key)?.as_u64().and_then(|v| u32::try_from(v).ok())
    }

    /// A number.
    pub fn f32(&self, key: &str) -> Option<f32> {
        match self.value(key)? {
            Value::Float(v) => Some(*v as f32),
            v => v.as_i64().map(|v| v as f32),
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(v) => Some(*v),
            _ => None,
        }
    }

    /// A text.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::String(v) => Some(v),
            _ => None,
        }
    }

    /// A list of texts.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        match self.value(key)? {
            Value::StringArray(v) => Some(v),
            _ => None,
        }
    }

    /// A list of 32-bit floats.
    pub fn floats(&self, key: &str) -> Option<&[f32]> {
        match self.value(key)? {
            Value::FloatArray(v) => Some(v),
            _ => None,
        }
    }

    /// A list of whole numbers that fit 32 bits.
    pub fn ints(&self, key: &str) -> Option<Vec<i32>> {
        match self.value(key)? {
            Value::SignedArray(v) => Some(v.clone()),
            Value::UnsignedArray(v) => v.iter().map(|v| i32::try_from(*v).ok()).collect(),
            Value::Signed64Array(v) => v.iter().map(|v| i32::try_from(*v).ok()).collect(),
            _ => None,
        }
    }

    /// Every tensor, in the file's order. Names differ.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }
}

/// Reads a whole GGUF file.
pub fn parse(bytes: &[u8]) -> Result<Gguf, ModelError> {
    let mut r = Reader { bytes, at: 0 };
    if r.take(4, "the magic")? != b"GGUF" {
        return Err(bad("it does not begin with GGUF"));
    }
    let version = r.u32("the version")?;
    match version {
        2 | 3 => {}
        0x0200_0000 | 0x0300_0000 => return Err(bad("it is written for big-endian machines")),
        other => return Err(bad(format!("version {other} is not 2 or 3"))),
    }
    let tensor_count = r.count("the tensor count", MIN_TENSOR_BYTES)?;
    let key_count = r.count("the key count", MIN_KEY_BYTES)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = r.string("a key")?;
        let kind = r.u32("a value's type")?;
        let value = r.value(kind, &key)?;
        if let Some(_first) = metadata.insert(key.clone(), value) {
            return Err(bad(format!("key {} appears twice", shown(&key))));
        }
    }
    let alignment = match metadata.get("general.alignment").map(Value::as_u64) {
        None => 32,
        Some(Some(a)) if a.is_power_of_two() && a <= 1 << 20 => a as usize,
        Some(_) => return Err(bad("general.alignment is not a power of two up to 2^20")),
    };
    let mut headers = Vec::with_capacity(tensor_count);
    for _ in 0..tensor_count {
        headers.push(r.tensor_header()?);
    }
    let data =
        r.at.checked_next_multiple_of(alignment)
            .filter(|start| *start <= bytes.len() || headers.is_empty())
            .ok_or_else(|| bad("it ends before its tensors"))?;
    let mut tensors = Vec::with_capacity(headers.len());
    let mut names = HashSet::with_capacity(headers.len());
    for h in headers {
        let offset = usize::try_from(h.offset)
            .ok()
            .filter(|o| o % alignment == 0)
            .and_then(|o| o.checked_add(data))
            .ok_or_else(|| bad(format!("tensor {} lies at a wrong offset", shown(&h.name))))?;
        if offset.checked_add(h.len).is_none_or(|end| end > bytes.len()) {
            return Err(bad(format!("it ends within tensor {}", shown(&h.name))));
        }
        if !names.insert(h.name.clone()) {
            return Err(bad(format!("tensor {} appears twice", shown(&h.name))));
        }
        let TensorHeader { name, format, dims, len, .. } = h;
        tensors.push(GgufTensor { name, format, dims, offset, len });
    }
    refuse_overlap(&tensors)?;
    Ok(Gguf { version, metadata, tensors })
}

/// Tensors that share bytes would let a small file become a large model.
fn refuse_overlap(tensors: &[GgufTensor]) -> Result<(), ModelError> {
    let mut places: Vec<&GgufTensor> = tensors.iter().collect();
    places.sort_unstable_by_key(|tensor| (tensor.offset, tensor.len));
    for pair in places.windows(2) {
        if pair[0].offset + pair[0].len > pair[1].offset {
            let (first, second) = (shown(&pair[0].name), shown(&pair[1].name));
            return Err(bad(format!("tensors {first} and {second} share bytes")));
        }
    }
    Ok(())
}

/// A key with an empty name, its type and a one-byte value.
const MIN_KEY_BYTES: usize = 8 + 4 + 1;
/// A tensor with an empty name and one dimension.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;
/// No name or key is longer; texts (chat templates) may be.
const MAX_NAME: usize = 1024;

struct TensorHeader {
    name: String,
    format: Format,
    dims: Vec<usize>,
    offset: u64,
    len: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], ModelError> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| bad(format!("it ends within {what}")))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        Ok(self.take(N, what)?.try_into().expect("take gave N bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A number of things that take at least `each` bytes: no more than the rest can hold, so
    /// that memory may be reserved for them.
    fn count(&mut self, what: &str, each: usize) -> Result<usize, ModelError> {
        let count = self.u64(what)?;
        let room = (self.bytes.len() - self.at) / each;
        usize::try_from(count)
            .ok()
            .filter(|c| *c <= room)
            .ok_or_else(|| bad(format!("{what} says {count}, the file has room for {room}")))
    }

    fn text(&mut self, what: &str) -> Result<String, ModelError> {
        let len = self.count(what, 1)?;
        let text = std::str::from_utf8(self.take(len, what)?);
        Ok(text.map_err(|_| bad(format!("{what} is not UTF-8")))?.to_owned())
    }

    fn string(&mut self, what: &str) -> Result<String, ModelError> {
        let name = self.text(what)?;
        if name.len() > MAX_NAME {
            return Err(bad(format!("{what} is {} bytes long", name.len())));
        }
        Ok(name)
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, ModelError> {
        let what = &format!("the value of {}", shown(key));
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>(what)?[0])),
            1 => Value::Signed(i64::from(self.array::<1>(what)?[0] as i8)),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array(what)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array(what)?))),
            4 => Value::Unsigned(u64::from(self.u32(what)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array(what)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array(what)?))),
            7 => Value::Bool(self.array::<1>(what)?[0] != 0),
            8 => Value::String(self.text(what)?),
            9 => {
                let element = self.u32(what)?;
                self.values(element, what)?
            }
            10 => Value::Unsigned(self.u64(what)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(what)?)),
            other => return Err(bad(format!("{what} has the unknown type {other}"))),
        })
    }

    /// Small integers widen: at most eight bytes for each byte of the file.
    fn values(&mut self, element: u32, what: &str) -> Result<Value, ModelError> {
        Ok(match element {
            0 => Value::UnsignedArray(self.list(what, |[b]| u64::from(b))?),
            1 => Value::SignedArray(self.list(what, |[b]| i32::from(b as i8))?),
            2 => Value::UnsignedArray(self.list(what, |b| u64::from(u16::from_le_bytes(b)))?),
            3 => Value::SignedArray(self.list(what, |b| i32::from(i16::from_le_bytes(b)))?),
            4 => Value::UnsignedArray(self.list(what, |b| u64::from(u32::from_le_bytes(b)))?),
            5 => Value::SignedArray(self.list(what, i32::from_le_bytes)?),
            6 => Value::FloatArray(self.list(what, f32::from_le_bytes)?),
            7 => Value::BoolArray(self.list(what, |[b]| b != 0)?),
            8 => {
                let count = self.count(what, 8)?;
                let mut texts = Vec::with_capacity(count);
                for _ in 0..count {
                    texts.push(self.text(what)?);
                }
                Value::StringArray(texts)
            }
            9 => return Err(bad(format!("{what} is a list of lists"))),
            10 => Value::UnsignedArray(self.list(what, u64::from_le_bytes)?),
            11 => Value::Signed64Array(self.list(what, i64::from_le_bytes)?),
            12 => Value::Float64Array(self.list(what, f64::from_le_bytes)?),
            other => return Err(bad(format!("{what} has the unknown type {other}"))),
        })
    }

    fn list<const N: usize, T>(
        &mut self,
        what: &str,
        read: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, ModelError> {
        let count = self.count(what, N)?;
        let (chunks, _rest) = self.take(count * N, what)?.as_chunks::<N>();
        Ok(chunks.iter().map(|b| read(*b)).collect())
    }

    fn tensor_header(&mut self) -> Result<TensorHeader, ModelError> {
        let name = self.string("a tensor's name")?;
        let what = &format!("the header of tensor {}", shown(&name));
        let rank = self.u32(what)?;
        if !(1..=4).contains(&rank) {
            return Err(bad(format!("tensor {} has {rank} dimensions", shown(&name))));
        }
        let mut dims = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            let dim = usize::try_from(self.u64(what)?).ok().filter(|d| (1..=1 << 40).contains(d));
            dims.push(dim.ok_or_else(|| bad(format!("{what} has an impossible dimension")))?);
        }
        let kind = self.u32(what)?;
        let format = format_of(kind)
            .map_err(|format| ModelError::UnknownFormat { tensor: shown(&name), format })?;
        let offset = self.u64(what)?;
        let too_large = || bad(format!("tensor {} is impossibly large", shown(&name)));
        let values = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let values = values.ok_or_else(too_large)?;
        if !dims[0].is_multiple_of(format.block_values()) {
            return Err(bad(format!(
                "tensor {} has rows of {} values, stored in blocks of {}",
                shown(&name),
                dims[0],
                format.block_values()
            )));
        }
        let len = format.bytes(values).ok_or_else(too_large)?;
        Ok(TensorHeader { name, format, dims, offset, len })
    }
}

/// ggml's type numbers.
fn format_of(kind: u32) -> Result<Format, String> {
    let unsupported = |name: &str| Err(name.to_owned());
    match kind {
        0 => Ok(Format::F32),
        1 => Ok(Format::F16),
        2 => Ok(Format::Q4_0),
        3 => Ok(Format::Q4_1),
        6 => Ok(Format::Q5_0),
        7 => Ok(Format::Q5_1),
        8 => Ok(Format::Q8_0),
        11 => Ok(Format::Q3_K),
        12 => Ok(Format::Q4_K),
        13 => Ok(Format::Q5_K),
        14 => Ok(Format::Q6_K),
        30 => Ok(Format::BF16),
        9 => unsupported("Q8_1"),
        10 => unsupported("Q2_K"),
        15 => unsupported("Q8_K"),
        16 => unsupported("IQ2_XXS"),
        17 => unsupported("IQ2_XS"),
        18 => unsupported("IQ3_XXS"),
        19 => unsupported("IQ1_S"),
        20 => unsupported("IQ4_NL"),
        21 => unsupported("IQ3_S"),
        22 => unsupported("IQ2_S"),
        23 => unsupported("IQ4_XS"),
        29 => unsupported("IQ1_M"),
        34 => unsupported("TQ1_0"),
        35 => unsupported("TQ2_0"),
        39 => unsupported("MXFP4"),
        other => Err(format!("number {other}")),
    }
}

/// A name from a file, fit for a message.
pub(crate) fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(80).collect::<String>().escape_debug().collect();
    if name.chars().nth(80).is_some() {
        text.push_str("...");
    }
    text
}

fn bad(what: impl Into<String>) -> ModelError {
    ModelError::Gguf(what.into())
}
