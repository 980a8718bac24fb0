//! Whether a model fits into what the engine may take of a card, before minutes are spent on bringing it there.

use polder_model::{FfnWeights, Gated, Model, Tensor};

use crate::device::Device;
use crate::ledger::DRIVERS_OWN;
use crate::tiles::{TileFormat, packed_bytes};

/// A model does not fit. Nothing was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TooSmall {
    /// What the engine may take is too little.
    #[error(
        "the weights take {} and the driver {}, and this engine may take {} of the card's memory: {} are lacking, and more for work and conversations; raise its memory in the site, or choose a smaller model",
        size(.weights), size(&DRIVERS_OWN), size(.budget), size(&(.weights + DRIVERS_OWN).saturating_sub(*.budget))
    )]
    Budget {
        /// Bytes of the weights on the card.
        weights: u64,
        /// Bytes that the engine may take.
        budget: u64,
    },
    /// Others have taken it, or the card has no more.
    #[error(
        "the weights take {}, and {} of the card's {} are free: {} are lacking, and more for work and conversations; end what else uses the card, or choose a smaller model",
        size(.weights), size(.free), size(.all), size(&.weights.saturating_sub(*.free))
    )]
    Free {
        /// Bytes of the weights on the card.
        weights: u64,
        /// Bytes that nobody has taken.
        free: u64,
        /// Bytes of the card.
        all: u64,
    },
}

/// Bytes as people say them.
pub(crate) fn size(bytes: &u64) -> String {
    match *bytes {
        large if large >= 1 << 30 => format!("{:.1} GiB", large as f64 / (1_u64 << 30) as f64),
        small => format!("{} MiB", small.div_ceil(1 << 20)),
    }
}

/// Refuses a model whose weights alone are too much.
pub(crate) fn check(
    weights: u64,
    budget: Option<u64>,
    free: u64,
    all: u64,
) -> Result<(), TooSmall> {
    if let Some(budget) = budget
        && weights.saturating_add(DRIVERS_OWN) > budget
    {
        return Err(TooSmall::Budget { weights, budget });
    }
    if weights > free {
        return Err(TooSmall::Free { weights, free, all });
    }
    Ok(())
}

/// Holds a card to a budget, if a model's weights of so many bytes fit into it and into what is free.
pub(crate) fn keep(
    device: &Device,
    weights: u64,
    budget: Option<u64>,
) -> Result<(), crate::backend::LoadError> {
    check(weights, budget, device.free_memory()?, device.memory())?;
    if let Some(budget) = budget {
        device.keep_to(budget.saturating_sub(DRIVERS_OWN));
    }
    Ok(())
}

/// Bytes of a model's matrices on the card. Norms and biases are left out: under a thousandth.
pub fn weight_bytes(model: &Model) -> u64 {
    let matrix = |tensor: &Tensor| {
        packed_bytes(tensor.rows, tensor.cols, TileFormat::of(model, tensor)) as u64
    };
    let gated = |g: &Gated| matrix(&g.gate) + matrix(&g.up) + matrix(&g.down);
    let layers = model.weights.layers.iter().map(|layer| {
        let ffn = match &layer.ffn {
            FfnWeights::Dense(one) => gated(one),
            FfnWeights::Moe { router, experts } => {
                experts.iter().map(gated).sum::<u64>() + (router.rows * router.cols * 2) as u64
            }
        };
        [&layer.q, &layer.k, &layer.v, &layer.o].map(matrix).iter().sum::<u64>() + ffn
    });
    let weights = &model.weights;
    let embedding = (weights.embedding.rows * weights.embedding.cols * 2) as u64;
    layers.sum::<u64>() + embedding + matrix(weights.output.as_ref().unwrap_or(&weights.embedding))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_does_not_fit_is_refused_with_what_is_lacking() {
        const GIB: u64 = 1 << 30;
        let said = |weights, budget, free| {
            let checked = check(weights * GIB, budget, free * GIB, 80 * GIB);
            checked.map_or_else(|error| error.to_string(), |()| String::new())
        };
        assert_eq!(said(60, None, 79), "");
        assert_eq!(said(60, Some(61 * GIB), 79), "");
        let small = said(60, Some(40 * GIB), 79);
        assert!(small.contains("60.0 GiB and the driver 768 MiB"), "{small}");
        assert!(
            small.contains("may take 40.0 GiB") && small.contains("20.8 GiB are lacking"),
            "{small}"
        );
        let taken = said(60, None, 45);
        assert!(
            taken.contains("45.0 GiB of the card's 80.0 GiB are free: 15.0 GiB are lacking"),
            "{taken}"
        );
    }
}
