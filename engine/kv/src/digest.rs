//! Addresses: what a block's bytes depend on, as one digest.

use polder_backend::TokenId;
use ring::digest::{Context, SHA256};

/// Everything besides tokens that decides what a block's bytes are: the weights, how KV is laid out and rounded,
/// which back end computes it. Whoever opens a store makes it; two engines that could not exchange blocks must not
/// have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModelDigest(pub [u8; 32]);

impl ModelDigest {
    /// Of these parts in this order; where one ends and the next begins counts.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"polder-kv model\0");
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        Self(ChainDigest::finish(context).0)
    }
}

/// A block's place: the model, all tokens before the block, and its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainDigest(pub(crate) [u8; 32]);

impl ChainDigest {
    /// What comes before the first block of any text.
    pub fn root(model: &ModelDigest) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"polder-kv root\0");
        context.update(&model.0);
        Self::finish(context)
    }

    /// The block with these tokens, after this one.
    pub fn then(&self, tokens: &[TokenId]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"polder-kv next\0");
        context.update(&self.0);
        for token in tokens {
            context.update(&token.0.to_le_bytes());
        }
        Self::finish(context)
    }

    fn finish(context: Context) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }
}

/// Whoever knows a digest can try out which text it belongs to: it is not for logs.
impl std::fmt::Debug for ChainDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChainDigest(..)")
    }
}

impl std::fmt::Debug for ModelDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ModelDigest({})", hex(&self.0[..4]))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_what_came_before_changes_the_address() {
        let tokens = |list: &[u32]| list.iter().copied().map(TokenId).collect::<Vec<_>>();
        let (one, two) = (ModelDigest([1; 32]), ModelDigest([2; 32]));
        let root = ChainDigest::root(&one);
        let a = root.then(&tokens(&[1, 2]));
        assert_eq!(a, ChainDigest::root(&one).then(&tokens(&[1, 2])));
        let others = [
            ChainDigest::root(&two).then(&tokens(&[1, 2])),
            root.then(&tokens(&[2, 1])),
            root.then(&tokens(&[1])).then(&tokens(&[2])),
            a.then(&tokens(&[1, 2])),
            root,
        ];
        assert!(!others.contains(&a));
        let model = |parts: &[&[u8]]| ModelDigest::of(parts.iter().copied());
        assert_eq!(model(&[b"ab", b"c"]), model(&[b"ab", b"c"]));
        assert_ne!(model(&[b"ab", b"c"]), model(&[b"a", b"bc"]));
        assert_ne!(model(&[b"ab", b"c"]), model(&[b"ab", b"c", b""]));
        // The prompt must not be found out from a log.
        assert_eq!(format!("{a:?}"), "ChainDigest(..)");
    }
}
