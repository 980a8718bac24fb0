//! Which of a repository's or folder's files make up the model: weights that cannot run code, and
//! what a tokenizer and a chat template need. Used where a recipe does not name its files.

use std::collections::BTreeSet;

use polder_recipes::Digest;

use crate::{WeightsError, names};

/// The index of weights in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// A file that a source has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Option<Digest>,
}

/// Files beside the weights that the engine reads or that people must see.
const BESIDE: [&str; 21] = [
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "quantize_config.json",
    "special_tokens_map.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// The files to bring. `index` is the text of [`INDEX`] where the source has one.
pub(crate) fn select(
    recipe: &str,
    listed: &[Listed],
    index: Option<&[u8]>,
) -> Result<Vec<Listed>, WeightsError> {
    let fail = |why: String| WeightsError::Recipe { recipe: recipe.to_owned(), why };
    let find = |name: &str| listed.iter().find(|file| file.name == name).cloned();
    let ending = |end: &str| -> Vec<&Listed> {
        let here = |file: &&Listed| !file.name.contains('/') && file.name.ends_with(end);
        listed.iter().filter(here).collect()
    };
    let mut chosen = Vec::new();
    if let Some(index) = index {
        chosen.extend(find(INDEX));
        for shard in shards(index).map_err(fail)? {
            names::file_name(&shard)?;
            chosen.push(find(&shard).ok_or_else(|| {
                fail(format!("{INDEX} names {shard} and the source does not have it"))
            })?);
        }
    } else {
        let (tensors, ggufs) = (ending(".safetensors"), ending(".gguf"));
        match (find("model.safetensors"), &tensors[..], &ggufs[..]) {
            (Some(model), _, _) => chosen.push(model),
            (None, [one], _) | (None, [], [one]) => chosen.push((*one).clone()),
            (None, [], []) => {
                if let Some(pickle) = listed.iter().find(|file| names::is_pickle(&file.name)) {
                    return Err(WeightsError::Pickle { name: names::shorten(&pickle.name) });
                }
                return Err(fail("the source has neither .safetensors nor .gguf files".into()));
            }
            (None, several, more) => {
                let some: Vec<_> =
                    several.iter().chain(more).take(5).map(|f| &f.name[..]).collect();
                return Err(fail(format!(
                    "the source has several models ({}…); name the wanted file in the recipe",
                    names::shorten(&some.join(", "))
                )));
            }
        }
    }
    chosen.extend(BESIDE.iter().filter_map(|name| find(name)));
    names::files_together(chosen.iter().map(|file| file.name.as_str()))?;
    Ok(chosen)
}

/// The files that an index spreads its tensors over.
fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|e| format!("{INDEX} cannot be read: {e}"))?;
    let shards: BTreeSet<_> = index.weight_map.into_values().collect();
    match shards.len() {
        0 => Err(format!("{INDEX} names no files")),
        names::MOST_FILES.. => Err(format!("{INDEX} names more files than any model has")),
        _ => Ok(shards),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(names: &[&str]) -> Vec<Listed> {
        let listed = |name: &&str| Listed { name: (*name).into(), size: Some(1), sha256: None };
        names.iter().map(listed).collect()
    }
    fn chosen(names: &[&str], index: Option<&str>) -> Result<Vec<String>, String> {
        match select("m", &listed(names), index.map(str::as_bytes)) {
            Ok(files) => Ok(files.into_iter().map(|file| file.name).collect()),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn shards_of_the_index_and_the_tokenizer_are_taken_and_nothing_else() {
        let index = r#"{"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}"#;
        let source = [
            INDEX,
            "model-1.safetensors",
            "model-2.safetensors",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "config.json",
            "tokenizer.json",
            "README.md",
            "onnx/model.onnx",
        ];
        let wanted =
            [INDEX, "model-1.safetensors", "model-2.safetensors", "config.json", "tokenizer.json"];
        assert_eq!(chosen(&source, Some(index)).unwrap(), wanted);
    }
    #[test]
    fn an_index_cannot_lead_out_of_the_folder() {
        let index = r#"{"weight_map": {"a": "../../etc/shadow"}}"#;
        assert!(chosen(&[INDEX, "../../etc/shadow"], Some(index)).unwrap_err().contains("refused"));
    }
    #[test]
    fn an_index_that_names_a_missing_file_is_refused() {
        let index = r#"{"weight_map": {"a": "gone.safetensors"}}"#;
        assert!(chosen(&[INDEX], Some(index)).unwrap_err().contains("gone.safetensors"));
    }
    #[test]
    fn a_source_with_pickles_only_is_refused_by_name() {
        let said = chosen(&["config.json", "pytorch_model.bin"], None).unwrap_err();
        assert!(said.starts_with("pytorch_model.bin is refused"), "{said}");
    }
    #[test]
    fn one_gguf_is_taken_and_several_have_to_be_named() {
        assert_eq!(
            chosen(&["m.Q4.gguf", "config.json"], None).unwrap(),
            ["m.Q4.gguf", "config.json"]
        );
        let said = chosen(&["m.Q4.gguf", "m.Q8.gguf"], None).unwrap_err();
        assert!(said.contains("m.Q4.gguf, m.Q8.gguf"), "{said}");
    }

    proptest! {
        #[test]
        fn no_index_panics(text in ".{0,200}", names in proptest::collection::vec(".{0,20}", 0..5)) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let _ = (chosen(&names, Some(&text)), chosen(&names, None));
        }
    }
}
