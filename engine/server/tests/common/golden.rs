//! A small checkpoint that an engine can be started with.
#![allow(unreachable_pub, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::CHATML;

/// A checkpoint of the golden files, with a tokenizer whose tokens are bytes.
pub fn make_model(folder: &Path) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend/cpu/goldens");
    // Where a test runs on another machine than it was built on.
    let goldens = std::env::var_os("POLDER_GOLDENS").map_or(here, PathBuf::from);
    let golden = goldens.join("families/llama");
    std::fs::create_dir(folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(name), folder.join(name)).unwrap();
    }
    let letters = (0x21..=0x7e_u32).chain(0xa1..=0xac).chain(0xae..=0xff).chain(0x100..=0x143);
    let letters = letters.filter_map(char::from_u32).map(String::from);
    let vocabulary = letters.chain((256..384).map(|number| format!("<{number}>")));
    let vocabulary: serde_json::Map<String, Value> =
        vocabulary.enumerate().map(|(id, token)| (token, json!(id))).collect();
    assert_eq!(vocabulary.len(), 384);
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "truncation": null, "padding": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"chat_template": CHATML});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}
