//! Which recipes the engine of this version can run: the one place that says so.

use crate::recipe::Recipe;

/// Families whose layers the CPU engine computes, from GGUF files.
const GGUF_FAMILIES: &[&str] = &["llama", "qwen2", "qwen3", "gemma3"];
/// The same from safetensors in 16 or 32 bits.
const SAFETENSORS_FAMILIES: &[&str] = &["llama", "qwen2", "qwen3"];

impl Recipe {
    /// Why the engine of this version, on the processor, cannot run this model; `None`: it can.
    /// Goes on a sentence that begins "This model cannot run yet: ".
    pub fn engine_lacks(&self) -> Option<String> {
        let family = self.family.as_deref().unwrap_or("unknown");
        let all = [GGUF_FAMILIES, SAFETENSORS_FAMILIES].concat();
        if !all.contains(&family) {
            return Some(format!("it needs an engine for {family} models, which is not there yet"));
        }
        let has = |ending: &str| self.files.iter().any(|file| file.name.ends_with(ending));
        let plain = self.quantization.as_ref().is_none_or(|q| q.weights >= 16.0);
        let readable = (has(".gguf") && GGUF_FAMILIES.contains(&family))
            || (has(".safetensors") && plain && SAFETENSORS_FAMILIES.contains(&family));
        (!readable).then(|| "it needs the GPU engine, which is not there yet".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{FileSpec, Source};

    fn of(family: &str, file: &str) -> Recipe {
        let file = FileSpec { name: file.into(), size: None, sha256: None, parts: Vec::new() };
        let source = Source::HuggingFace { repo: "a/b".into(), revision: "main".into() };
        let family = Some(family.to_owned());
        Recipe { family, ..Recipe::of_files("a", "A", source, vec![file]) }
    }

    #[test]
    fn the_default_recipe_runs_and_those_for_a_gpu_say_what_they_need() {
        assert_eq!(Recipe::default_recipe().engine_lacks(), None);
        let lacks = |name| Recipe::find(name).unwrap().engine_lacks().unwrap();
        assert!(lacks("qwen3-30b-a3b").contains("qwen3_moe"));
        assert!(lacks("hermes-4-14b").contains("GPU engine"));
    }

    #[test]
    fn a_family_runs_from_the_formats_that_are_read_for_it() {
        assert_eq!(of("gemma3", "model.gguf").engine_lacks(), None);
        assert_eq!(of("qwen3", "model.safetensors").engine_lacks(), None);
        assert!(of("gemma3", "model.safetensors").engine_lacks().is_some());
        assert!(of("llama", "model.bin").engine_lacks().is_some());
    }
}
