//! Nothing that a weight file can say may panic or take memory without bound.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::path::Path;

use polder_model::{FfnWeights, Method, Model, ModelError, gguf, huggingface};
use proptest::prelude::*;

/// A GGUF file under construction.
#[derive(Default, Clone)]
struct Writer {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Writer {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        text(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
    }

    fn u32(&mut self, name: &str, value: u32) {
        self.key(name, 4, &value.to_le_bytes());
    }

    fn f32(&mut self, name: &str, value: f32) {
        self.key(name, 6, &value.to_le_bytes());
    }

    fn string(&mut self, name: &str, value: &str) {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.key(name, 8, &bytes);
    }

    fn tensor(&mut self, name: &str, dims: &[u64]) {
        text(&mut self.tensors, name);
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| self.tensors.extend(d.to_le_bytes()));
        self.tensors.extend(0u32.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        let values = dims.iter().product::<u64>() as usize;
        self.data.resize((self.data.len() + 4 * values).next_multiple_of(32), 0);
        self.tensor_count += 1;
    }

    fn file(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.key_count.to_le_bytes());
        out.extend(&self.keys);
        out.extend(&self.tensors);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

/// A llama with one layer of eight values.
fn small() -> Writer {
    let mut w = Writer::default();
    w.string("general.architecture", "llama");
    for (name, value) in [
        ("llama.context_length", 64),
        ("llama.embedding_length", 8),
        ("llama.block_count", 1),
        ("llama.feed_forward_length", 16),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
    ] {
        w.u32(name, value);
    }
    w.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    w.string("tokenizer.ggml.model", "gpt2");
    let mut tokens = 8u32.to_le_bytes().to_vec();
    tokens.extend(3u64.to_le_bytes());
    ["a", "b", "ab"].iter().for_each(|t| text(&mut tokens, t));
    w.key("tokenizer.ggml.tokens", 9, &tokens);
    w.u32("tokenizer.ggml.eos_token_id", 2);
    w.string("tokenizer.chat_template", "{{ messages }}");
    w.tensor("token_embd.weight", &[8, 4]);
    w.tensor("output_norm.weight", &[8]);
    for (part, dims) in [
        ("attn_norm", vec![8]),
        ("attn_q", vec![8, 8]),
        ("attn_k", vec![8, 4]),
        ("attn_v", vec![8, 4]),
        ("attn_output", vec![8, 8]),
        ("ffn_norm", vec![8]),
        ("ffn_gate", vec![8, 16]),
        ("ffn_up", vec![8, 16]),
        ("ffn_down", vec![16, 8]),
    ] {
        w.tensor(&format!("blk.0.{part}.weight"), &dims);
    }
    w
}

fn open(bytes: &[u8]) -> Result<Model, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Model::open(&path)
}

fn refusal(bytes: &[u8]) -> String {
    open(bytes).unwrap_err().to_string()
}

#[test]
fn a_small_file_is_opened_with_its_tokenizer_and_template() {
    let model = open(&small().file()).unwrap();
    assert_eq!((model.spec.vocab, model.spec.layers.len(), model.spec.tied_head), (4, 1, true));
    assert_eq!(model.chat_template.as_deref(), Some("{{ messages }}"));
    let polder_model::TokenizerSource::Gguf(tokenizer) = model.tokenizer else {
        panic!("the vocabulary is in the file");
    };
    assert_eq!((tokenizer.tokens.len(), tokenizer.eos, tokenizer.bos), (3, Some(2), None));
}

#[test]
fn a_folder_is_opened_when_it_holds_exactly_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let message = |r: Result<Model, ModelError>| r.unwrap_err().to_string();
    assert!(message(Model::open(folder.path())).contains("holds no model"));
    std::fs::write(folder.path().join("a.gguf"), small().file()).unwrap();
    assert!(Model::open(folder.path()).is_ok());
    std::fs::write(folder.path().join("b.gguf"), small().file()).unwrap();
    assert!(message(Model::open(folder.path())).contains("holds 2 .gguf files"));
    assert!(message(Model::open(Path::new("nowhere.gguf"))).contains("cannot read nowhere.gguf"));
}

#[test]
fn a_tensor_without_a_place_is_refused_by_name() {
    let mut w = small();
    w.tensor("blk.0.attn_sinks.weight", &[8]);
    assert!(refusal(&w.file()).contains("blk.0.attn_sinks.weight"));
}

#[test]
fn tensors_that_share_bytes_are_refused_by_name() {
    let mut w = Writer::default();
    w.tensor("first", &[16]);
    w.tensor("second", &[16]);
    assert!(gguf::parse(&w.file()).is_ok());
    let mut w = Writer::default();
    w.tensor("first", &[16]);
    w.data.truncate(32);
    w.tensor("second", &[16]);
    let message = gguf::parse(&w.file()).unwrap_err().to_string();
    assert!(message.contains("first and second share bytes"), "{message}");
}

#[test]
fn a_missing_tensor_and_a_wrong_shape_are_refused_by_name() {
    let mut w = small();
    w.u32("llama.rope.dimension_count", 4);
    assert!(open(&w.file()).is_ok());
    let bytes = w.file();
    let at = bytes.windows(10).position(|b| b == b"blk.0.attn").unwrap();
    let mut renamed = bytes.clone();
    renamed[at + 4] = b'7';
    assert!(refusal(&renamed).contains("blk.0.attn_norm.weight is missing"));
    let mut w = Writer { tensors: Vec::new(), tensor_count: 0, data: Vec::new(), ..w };
    w.tensor("token_embd.weight", &[6, 4]);
    assert!(refusal(&w.file()).contains("has shape 4 x 6"));
}

#[test]
fn an_unknown_family_is_refused_in_one_sentence() {
    let mut w = Writer::default();
    w.string("general.architecture", "mamba");
    let message = refusal(&w.file());
    assert!(message.contains("`mamba` is not supported") && message.contains("qwen3"), "{message}");
}

#[test]
fn counts_beyond_the_file_are_refused_before_memory_is_taken() {
    let header = |tensors: u64, keys: u64| {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(tensors.to_le_bytes());
        out.extend(keys.to_le_bytes());
        out.resize(200, 0);
        out
    };
    for bytes in [header(u64::MAX, 0), header(0, u64::MAX), header(1 << 40, 0), header(0, 1 << 30)]
    {
        assert!(refusal(&bytes).contains("has room for"));
    }
    for (kind, element) in [(9u32, 8u32), (9, 0), (9, 12), (8, 0)] {
        let mut w = Writer::default();
        let mut value = Vec::new();
        if kind == 9 {
            value.extend(element.to_le_bytes());
        }
        value.extend((u64::MAX / 2).to_le_bytes());
        w.key("big", kind, &value);
        assert!(refusal(&w.file()).contains("has room for"));
    }
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let bytes = small().file();
    for len in 0..bytes.len() {
        assert!(gguf::parse(&bytes[..len]).is_err(), "cut at {len} of {}", bytes.len());
    }
}

#[test]
fn unsupported_formats_and_configurations_are_named() {
    let mut w = small();
    // Format 16 in place of F32 in the last tensor's header.
    let at = w.tensors.len() - 12;
    w.tensors[at..at + 4].copy_from_slice(&16u32.to_le_bytes());
    assert!(refusal(&w.file()).contains("IQ2_XXS"));
    let config = |extra: &str| {
        let text = format!(
            r#"{{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 4,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5 {extra}}}"#
        );
        huggingface::parse_config(text.as_bytes()).map_err(|e| e.to_string())
    };
    assert!(config("").is_ok());
    for (extra, named) in [
        (r#", "rope_scaling": {"rope_type": "longrope", "factor": 2}"#, "longrope"),
        (r#", "rope_scaling": {"rope_type": "yarn"}"#, "factor"),
        (r#", "rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": 1}"#, "fast bound"),
        (r#", "hidden_act": "relu""#, "relu"),
        (r#", "mlp_bias": true"#, "bias"),
        (r#", "layer_types": ["linear_attention"]"#, "linear_attention"),
        (r#", "layer_types": []"#, "a layer of the kind none"),
        (r#", "layer_types": ["sliding_attention"]"#, "no sliding_window"),
        (r#", "use_sliding_window": true, "max_window_layers": 0"#, "no sliding_window"),
        (r#", "sliding_window": 0, "layer_types": ["sliding_attention"]"#, "window is 0"),
        (r#", "num_key_value_heads": 0"#, "key/value head count"),
        (r#", "head_dim": 3"#, "heads of 3"),
        (r#", "rope_theta": -1"#, "base of RoPE"),
    ] {
        let message = config(extra).unwrap_err();
        assert!(message.contains(named), "{extra}: {message}");
    }
    let other = huggingface::parse_config(br#"{"model_type": "mamba"}"#).unwrap_err();
    assert!(other.to_string().contains("mamba"));
}

#[test]
fn experts_that_cannot_be_are_refused() {
    let config = |extra: &str| {
        let text = format!(
            r#"{{"model_type": "qwen3_moe", "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 4, "head_dim": 4,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5 {extra}}}"#
        );
        huggingface::parse_config(text.as_bytes()).map_err(|e| e.to_string())
    };
    let some = r#", "num_experts": 4, "moe_intermediate_size": 8"#;
    assert!(config(&format!(r#"{some}, "num_experts_per_tok": 2"#)).is_ok());
    for (extra, named) in [
        (some.to_owned(), "num_experts_per_tok"),
        (format!(r#"{some}, "num_experts_per_tok": 5"#), "5 of 4 experts"),
        (format!(r#"{some}, "num_experts_per_tok": 0"#), "0 of 4 experts"),
        (
            r#", "num_experts": 999999, "num_experts_per_tok": 1, "moe_intermediate_size": 1"#
                .into(),
            "999999",
        ),
        (
            r#", "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 0"#.into(),
            "width",
        ),
    ] {
        let message = config(&extra).unwrap_err();
        assert!(message.contains(named), "{extra}: {message}");
    }
}

#[test]
fn quantizations_that_are_not_read_are_refused_by_name() {
    let method = |config: &str| {
        huggingface::parse_method(format!(r#"{{"quantization_config": {config}}}"#).as_bytes())
            .map_err(|e| e.to_string())
    };
    assert_eq!(huggingface::parse_method(b"{}").unwrap(), None);
    assert_eq!(
        method(r#"{"quant_method": "awq", "bits": 4, "version": "GEMM"}"#),
        Ok(Some(Method::Awq))
    );
    for (config, named) in [
        (r#"{"quant_method": "bitsandbytes"}"#, "bitsandbytes"),
        (r#"{"bits": 4}"#, "nothing named"),
        (r#"{"quant_method": "awq", "bits": 3}"#, "3 bits"),
        (r#"{"quant_method": "awq", "bits": 4, "version": "gemv"}"#, "gemv"),
        (r#"{"quant_method": "gptq", "bits": 4, "desc_act": true}"#, "act-order"),
        (r#"{"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}"#, "marlin"),
        (r#"{"quant_method": "compressed-tensors", "format": "marlin-24"}"#, "marlin-24"),
        (r#"{"quant_method": "fp8", "fmt": "e5m2"}"#, "e5m2"),
        (r#"{"quant_method": 7}"#, "quantization_config"),
    ] {
        let message = method(config).unwrap_err();
        assert!(message.contains(named), "{config}: {message}");
    }
}

/// One attention matrix of AWQ's in a file, with parts of these shapes.
fn awq(words: [usize; 2], zeros: [usize; 2], scales: [usize; 2]) -> Result<(), String> {
    let config = br#"{"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "vocab_size": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}"#;
    let spec = huggingface::parse_config(config).unwrap();
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    let stem = "model.layers.0.self_attn.q_proj";
    for (part, dtype, size, shape) in
        [("qweight", "I32", 4, words), ("qzeros", "I32", 4, zeros), ("scales", "F16", 2, scales)]
    {
        let end = at + shape[0] * shape[1] * size;
        let told = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] });
        header.insert(format!("{stem}.{part}"), told);
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + at, 0);
    let tensors = huggingface::parse_tensors(&file).unwrap();
    match huggingface::assemble(&spec, Some(Method::Awq), tensors) {
        // Everything else is missing: this matrix was taken.
        Err(ModelError::MissingTensor(name)) if !name.contains("q_proj") => Ok(()),
        other => Err(other.map(drop).unwrap_err().to_string()),
    }
}

#[test]
fn a_quantized_matrix_whose_parts_do_not_fit_is_refused() {
    awq([32, 4], [1, 4], [1, 32]).unwrap();
    for (words, zeros, scales, named) in [
        ([32, 4], [1, 3], [1, 32], "qzeros"),
        ([32, 4], [1, 4], [1, 31], "scales"),
        ([32, 4], [2, 4], [2, 32], "2 groups over 32 inputs"),
        ([32, 4], [33, 4], [33, 32], "33 groups"),
    ] {
        let message = awq(words, zeros, scales).unwrap_err();
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn an_index_may_name_only_files_beside_it() {
    let index = |file: &str| {
        huggingface::parse_index(format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#).as_bytes())
    };
    assert_eq!(index("model-1.safetensors").unwrap(), ["model-1.safetensors"]);
    for file in ["../x.safetensors", "/x.safetensors", "a/b.safetensors", ".safetensors", "x.bin"] {
        assert!(index(file).is_err(), "{file}");
    }
}

#[test]
fn a_chat_template_is_found_in_either_form() {
    let find = |text: &str| huggingface::parse_chat_template(text.as_bytes()).unwrap();
    assert_eq!(find(r#"{"chat_template": "x"}"#).as_deref(), Some("x"));
    let several = r#"{"chat_template": [{"name": "tool", "template": "t"},
                                        {"name": "default", "template": "d"}]}"#;
    assert_eq!(find(several).as_deref(), Some("d"));
    assert_eq!(find("{}"), None);
}

fn safetensors() -> Vec<u8> {
    let header = br#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}      "#;
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend([0; 12]);
    out
}

#[test]
fn a_safetensors_file_is_read_and_its_cuts_refused() {
    let bytes = safetensors();
    let tensors = huggingface::parse_tensors(&bytes).unwrap();
    assert_eq!((tensors[0].rows, tensors[0].cols, tensors[0].byte_len()), (2, 3, 12));
    for len in 0..bytes.len() {
        assert!(huggingface::parse_tensors(&bytes[..len]).is_err(), "cut at {len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = gguf::parse(&bytes);
        let _ = huggingface::parse_tensors(&bytes);
        let _ = huggingface::parse_config(&bytes);
        let _ = huggingface::parse_method(&bytes);
        let _ = huggingface::parse_index(&bytes);
        let _ = huggingface::parse_chat_template(&bytes);
        let mut with_magic = b"GGUF\x03\0\0\0".to_vec();
        with_magic.extend(&bytes);
        let _ = gguf::parse(&with_magic);
    }

    #[test]
    fn a_valid_file_with_changed_bytes_never_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = small().file();
        // The header is what can lie; the data is only numbers.
        let header = bytes.len() - small().data.len();
        for (at, value) in &changes {
            bytes[at.index(header)] = *value;
        }
        if let Ok(model) = open(&bytes) {
            let weights = &model.weights;
            model.values(&weights.embedding);
            if let FfnWeights::Dense(ffn) = &weights.layers[0].ffn {
                model.values(&ffn.down);
            }
        }
        let mut bytes = safetensors();
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        let _ = huggingface::parse_tensors(&bytes);
    }
}
