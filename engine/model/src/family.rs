//! From a family's tensor names to the roles of [`Weights`].

use std::collections::HashMap;

use crate::error::ModelError;
use crate::gguf::shown;
use crate::spec::{Attention, Ffn, ModelSpec};
use crate::tensor::{FfnWeights, Gated, LayerWeights, Tensor, Weights};

/// What a family calls its tensors.
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    pub(crate) output_norm: &'static str,
    pub(crate) output: &'static str,
    /// What comes before a layer's number.
    pub(crate) layer: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) qkv: [&'static str; 3],
    pub(crate) qk_norm: [&'static str; 2],
    pub(crate) o: &'static str,
    pub(crate) attention_post_norm: &'static str,
    pub(crate) ffn_norm: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) ffn_post_norm: &'static str,
    pub(crate) router: &'static str,
    /// What comes before an expert's number; its gate, up and down then have the names above, without what is
    /// before their last dot.
    pub(crate) experts: &'static str,
}

impl Names {
    /// The name of one part of one layer; `end` is `weight` or `bias`.
    pub(crate) fn part(&self, layer: usize, part: &str, end: &str) -> String {
        format!("{}.{layer}.{part}.{end}", self.layer)
    }

    /// The name of one matrix of one expert: `part` is one of the feed-forward part's names.
    pub(crate) fn of_expert(&self, layer: usize, expert: usize, part: &str) -> String {
        let (_, part) = part.rsplit_once('.').unwrap_or(("", part));
        self.part(layer, &format!("{}.{expert}.{part}", self.experts), "weight")
    }
}

/// A file's tensors, taken one by one until none is left over.
pub(crate) struct Shelf(HashMap<String, Tensor>);

impl Shelf {
    pub(crate) fn new(tensors: impl IntoIterator<Item = Tensor>) -> Self {
        Self(tensors.into_iter().map(|t| (t.name.clone(), t)).collect())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.0.remove(name)
    }

    pub(crate) fn put(&mut self, tensor: Tensor) {
        self.0.insert(tensor.name.clone(), tensor);
    }

    /// The names that end so.
    pub(crate) fn names_with_end(&self, end: &str) -> Vec<String> {
        self.0.keys().filter(|name| name.ends_with(end)).cloned().collect()
    }

    pub(crate) fn drop_if_there(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Replaces a tensor that has several ones below each other by those, if it is there.
    pub(crate) fn split(
        &mut self,
        name: &str,
        parts: &[(String, usize)],
    ) -> Result<(), ModelError> {
        let Some(whole) = self.0.remove(name) else { return Ok(()) };
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        if whole.rows != rows || parts.iter().any(|(_, rows)| *rows == 0) {
            return Err(ModelError::Shape {
                tensor: shown(name),
                found: format!("{} x {}", whole.rows, whole.cols),
                expected: format!("{rows} x {}", whole.cols),
            });
        }
        let mut from = 0;
        for (part, rows) in parts {
            self.0.insert(part.clone(), whole.slice(part.clone(), from, *rows));
            from += rows;
        }
        Ok(())
    }

    fn take(&mut self, name: &str, rows: u32, cols: u32) -> Result<Tensor, ModelError> {
        let found = self.0.remove(name).ok_or_else(|| ModelError::MissingTensor(name.into()))?;
        if (found.rows, found.cols) != (rows as usize, cols as usize) {
            return Err(ModelError::Shape {
                tensor: name.into(),
                found: format!("{} x {}", found.rows, found.cols),
                expected: format!("{rows} x {cols}"),
            });
        }
        Ok(found)
    }

    fn gated(
        &mut self,
        [gate, up, down]: [String; 3],
        inner: u32,
        hidden: u32,
    ) -> Result<Gated, ModelError> {
        Ok(Gated {
            gate: self.take(&gate, inner, hidden)?,
            up: self.take(&up, inner, hidden)?,
            down: self.take(&down, hidden, inner)?,
        })
    }

    /// Sorts everything into its role; nothing may be left over.
    pub(crate) fn assemble(
        mut self,
        spec: &ModelSpec,
        names: &Names,
    ) -> Result<Weights, ModelError> {
        let hidden = spec.hidden;
        let embedding = self.take(names.embedding, spec.vocab, hidden)?;
        let output_norm = self.take(names.output_norm, 1, hidden)?;
        let output = match spec.tied_head {
            true => None,
            false => Some(self.take(names.output, spec.vocab, hidden)?),
        };
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (i, layer) in spec.layers.iter().enumerate() {
            let Attention::Gqa(a) = &layer.attention;
            let (q_width, kv_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
            let weight = |part: &str| names.part(i, part, "weight");
            let [q, k, v] = names.qkv;
            layers.push(LayerWeights {
                attention_norm: self.take(&weight(names.attention_norm), 1, hidden)?,
                q: self.take(&weight(q), q_width, hidden)?,
                k: self.take(&weight(k), kv_width, hidden)?,
                v: self.take(&weight(v), kv_width, hidden)?,
                qkv_bias: match a.qkv_bias {
                    false => None,
                    true => Some([
                        self.take(&names.part(i, q, "bias"), 1, q_width)?,
                        self.take(&names.part(i, k, "bias"), 1, kv_width)?,
                        self.take(&names.part(i, v, "bias"), 1, kv_width)?,
                    ]),
                },
                qk_norm: match a.qk_norm {
                    false => None,
                    true => Some([
                        self.take(&weight(names.qk_norm[0]), 1, a.head_dim)?,
                        self.take(&weight(names.qk_norm[1]), 1, a.head_dim)?,
                    ]),
                },
                o: self.take(&weight(names.o), hidden, q_width)?,
                attention_post_norm: match layer.post_norms {
                    false => None,
                    true => Some(self.take(&weight(names.attention_post_norm), 1, hidden)?),
                },
                ffn_norm: self.take(&weight(names.ffn_norm), 1, hidden)?,
                ffn: match &layer.ffn {
                    Ffn::Dense { inner, .. } => {
                        let names = [names.gate, names.up, names.down].map(weight);
                        FfnWeights::Dense(self.gated(names, *inner, hidden)?)
                    }
                    Ffn::Moe(moe) => {
                        let router = self.take(&weight(names.router), moe.experts, hidden)?;
                        let expert = |e: u32| {
                            let parts = [names.gate, names.up, names.down];
                            let names = parts.map(|part| names.of_expert(i, e as usize, part));
                            self.gated(names, moe.inner, hidden)
                        };
                        let experts = (0..moe.experts).map(expert).collect::<Result<_, _>>()?;
                        FfnWeights::Moe { router, experts }
                    }
                },
                ffn_post_norm: match layer.post_norms {
                    false => None,
                    true => Some(self.take(&weight(names.ffn_post_norm), 1, hidden)?),
                },
            });
        }
        match self.0.keys().min() {
            None => Ok(Weights { embedding, layers, output_norm, output }),
            Some(extra) => Err(ModelError::UnexpectedTensor(shown(extra))),
        }
    }
}
