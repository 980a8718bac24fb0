//! How long the masks of a model's vocabulary take: `mask_time MODEL.gguf`. Answers are drawn at
//! random from what is allowed, which is harder on a grammar than what a model says.

#![allow(clippy::unwrap_used, reason = "whoever runs this reads where it stopped")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_backend::TokenId;
use polder_chat::Tokenizer;
use polder_grammar::{GrammarSpec, Grammars};
use polder_scheduler::Next;
use serde_json::json;

fn main() {
    let path = std::env::args().nth(1).expect("the path of a GGUF file comes first");
    let model = polder_model::Model::open(std::path::Path::new(&path)).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_source(&model.tokenizer).unwrap());
    let grammars = Grammars::new(tokenizer.clone(), tokenizer.len() as u32);
    let started = Instant::now();
    grammars.compile(&GrammarSpec::JsonObject).unwrap();
    println!("{} tokens, the first grammar after {:.1?}", tokenizer.len(), started.elapsed());
    let person = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age", "tags"],
        "properties": {
            "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
            "born": {"type": "string", "format": "date"},
            "mother": {"$ref": "#"},
        },
    });
    for (name, spec) in [
        ("any JSON object", GrammarSpec::JsonObject),
        ("a schema", GrammarSpec::JsonSchema(person)),
        ("a regex", GrammarSpec::Regex("([A-Z][a-z]+ ){20,50}[0-9]{4}-[0-9]{2}".into())),
    ] {
        measure(name, &spec, &grammars, &tokenizer);
    }
}

fn measure(name: &str, spec: &GrammarSpec, grammars: &Grammars, tokenizer: &Tokenizer) {
    let started = Instant::now();
    let grammar = grammars.compile(spec).unwrap();
    let compiled = started.elapsed();
    let mut times: Vec<Duration> = Vec::new();
    let mut first: Vec<Duration> = Vec::new();
    let mut random = 1u64;
    for _ in 0..40 {
        let mut mask = grammar.first_mask();
        let mut matcher = grammar.begin();
        for at in 0..200 {
            let count: u32 = mask.iter().map(|word| word.count_ones()).sum();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let token = nth(&mask, (random >> 33) as u32 % count);
            if tokenizer.ends().contains(&token) {
                break;
            }
            let started = Instant::now();
            let next = matcher.after(token);
            if at == 0 { &mut first } else { &mut times }.push(started.elapsed());
            let Next::Mask(next) = next else { break };
            mask = next;
        }
    }
    times.sort_unstable();
    first.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 1000];
    println!(
        "{name}: compiled in {compiled:.1?}; an answer's second mask p50 {:.0?}; {} further masks: \
         p50 {:.0?}, p99 {:.0?}, longest {:.0?}",
        first[first.len() / 2],
        times.len(),
        at(500),
        at(990),
        at(1000),
    );
}

fn nth(mask: &[u32], mut left: u32) -> TokenId {
    for (index, word) in mask.iter().enumerate() {
        if left >= word.count_ones() {
            left -= word.count_ones();
            continue;
        }
        let bits = (0..32).filter(|bit| word >> bit & 1 == 1);
        let bit = bits.clone().nth(left as usize).expect("so many bits are set");
        return TokenId(index as u32 * 32 + bit);
    }
    unreachable!("less than the number of bits that are set")
}
