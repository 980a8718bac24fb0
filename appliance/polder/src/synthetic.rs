//! `polder engine --synthetic`: a model's true shape with drawn weights, to measure speed without a download.

use std::path::PathBuf;

use anyhow::{Context, bail};
use polder_backend_cuda::pack::Pack;
use polder_engine_server::EngineOptions;
use polder_recipes::Shape;
use polder_supervisor::Ending;

use crate::part;

#[derive(Debug, clap::Args)]
pub(crate) struct Synthetic {
    /// Measure with random weights in this model's shape, outside of any box. Every answer is noise.
    #[arg(long, value_name = "RECIPE", conflicts_with = "name", requires = "socket")]
    synthetic: Option<String>,
    /// The Unix socket that it listens on, with the engine's own HTTP.
    #[arg(long, value_name = "FILE", requires = "synthetic")]
    socket: Option<PathBuf>,
    /// Other weights for another number.
    #[arg(long, value_name = "NUMBER", requires = "synthetic", default_value_t = 1)]
    seed: u64,
    /// Longest text in tokens, where it is to be less than what the model was made for.
    #[arg(long, value_name = "TOKENS", requires = "synthetic")]
    context: Option<u32>,
    /// Answers at once.
    #[arg(long, value_name = "COUNT", requires = "synthetic", default_value_t = 16)]
    parallel: u16,
}

impl Synthetic {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let (Some(name), Some(socket)) = (self.synthetic, self.socket) else {
            unreachable!("both are required where no slot is named");
        };
        let socket = std::path::absolute(&socket)?;
        outside_of_boxes(&socket)?;
        let shape = Shape::find(&name)?;
        let served_as = format!("synthetic:{}", shape.name);
        let mut options = EngineOptions::new("synthetic", socket, "", served_as);
        options.synthetic = Some(polder_engine_server::Synthetic {
            config: shape.config.to_owned(),
            seed: self.seed,
        });
        (options.context, options.parallel) = (self.context, self.parallel);
        options.kernels = Pack {
            shipped: std::env::current_exe().ok().as_deref().and_then(crate::kernels::shipped),
            // No box, no place of its own: a folder that others can write to is none for code that runs.
            made: None,
        };
        part::log("info");
        let runtime = part::runtime()?;
        let done = runtime.block_on(async {
            let (_end, mut ending) = part::endings()?;
            let told = async move {
                let _ = ending.wait_for(|ending| *ending != Ending::No).await;
            };
            polder_engine_server::run(options, told).await.context("the engine ended")
        });
        runtime.shutdown_timeout(part::LEFT_BEHIND);
        done
    }
}

/// Noise is nothing that a box's members should be answered with.
fn outside_of_boxes(socket: &std::path::Path) -> anyhow::Result<()> {
    if let Some(state) = socket.ancestors().skip(1).find(|folder| folder.join("site.toml").exists())
    {
        bail!(
            "{} belongs to a box, whose members would be answered with noise; name a socket elsewhere",
            state.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_weights_are_kept_out_of_boxes() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/engine.sock");
        outside_of_boxes(&socket).unwrap();
        std::fs::write(folder.path().join("site.toml"), "").unwrap();
        assert!(outside_of_boxes(&socket).unwrap_err().to_string().contains("belongs to a box"));
        // Nor can site.toml name one as a recipe.
        assert!("synthetic:qwen3-30b-a3b".parse::<polder_site::RecipeName>().is_err());
    }
}
