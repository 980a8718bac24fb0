//! Checkpoints that are drawn can be opened as any other.
#![allow(clippy::unwrap_used, reason = "a test may")]

use polder_model::drawn::{DrawError, Drawing, Stored, write};
use polder_model::{FfnWeights, Model};

const EXPERTS: &str = r#"{"model_type":"qwen3_moe","hidden_size":128,"num_hidden_layers":2,"num_attention_heads":4,
    "num_key_value_heads":2,"head_dim":64,"intermediate_size":256,"moe_intermediate_size":128,"num_experts":4,"num_experts_per_tok":2,
    "norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[],"vocab_size":300,"max_position_embeddings":512,
    "rope_theta":1000000.0,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"hidden_act":"silu","attention_bias":false}"#;

fn awq(group: usize) -> String {
    let about = format!(
        r#"{{"quantization_config":{{"quant_method":"awq","bits":4,"group_size":{group}}},"#
    );
    EXPERTS.replacen('{', &about, 1)
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt()
}

#[test]
fn a_drawn_checkpoint_opens_and_its_values_have_the_size_that_keeps_a_stream_apart() {
    for (config, stored) in
        [(EXPERTS.to_owned(), Stored::Bf16), (awq(128), Stored::Awq { group: 128 })]
    {
        assert_eq!(Stored::of(&config).unwrap(), stored);
        let folder = tempfile::tempdir().unwrap();
        let drawing = Drawing { seed: 7, shard_bytes: 100_000 };
        let bytes = write(folder.path(), &config, &drawing).unwrap();
        let model = Model::open(folder.path()).unwrap();
        assert!(bytes > 100_000);
        let layer = &model.weights.layers[1];
        let FfnWeights::Moe { router, experts } = &layer.ffn else { panic!("experts") };
        let one = 1.0 / 128_f32.sqrt();
        for (tensor, size) in [
            (&model.weights.embedding, 1.0),
            (&layer.q, one),
            (router, one),
            (&experts[3].up, one),
            (&layer.o, 0.25 / 256_f32.sqrt()),
            (&experts[0].down, 0.5 / 128_f32.sqrt()),
        ] {
            let found = deviation(&model.values(tensor));
            assert!((found / size - 1.0).abs() < 0.1, "{}: {found} for {size}", tensor.name);
        }
        assert_eq!(model.values(&layer.attention_norm), vec![1.0; 128]);
        assert_ne!(model.values(&experts[0].up), model.values(&experts[1].up));
    }
}

#[test]
fn the_same_seed_draws_the_same_bytes_and_another_one_others() {
    let drawn = |seed| {
        let folder = tempfile::tempdir().unwrap();
        let drawing = Drawing { seed, shard_bytes: 1 << 30 };
        write(folder.path(), &awq(64), &drawing).unwrap();
        std::fs::read(folder.path().join("model-00001-of-00001.safetensors")).unwrap()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn what_cannot_be_drawn_is_refused_by_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let try_it = |config: &str| {
        let drawing = Drawing { seed: 0, shard_bytes: 1 << 30 };
        write(folder.path(), config, &drawing).unwrap_err()
    };
    assert!(matches!(try_it("{}"), DrawError::Config(_)));
    assert!(matches!(try_it(&awq(256)), DrawError::Group { columns: 128, group: 256, .. }));
    let gptq = awq(128).replace("awq", "gptq");
    assert!(try_it(&gptq).to_string().contains("Gptq"));
}
