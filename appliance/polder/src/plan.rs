use polder_planner::PlanRequest;

use crate::console::say;

/// Say whether a model fits a machine, how many people it serves, how fast, and at what cost.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  polder plan --box h200-141 --model qwen3-235b-a22b --members 32"
)]
pub(crate) struct Plan {
    /// The machine; `polder boxes` lists them.
    #[arg(long = "box", value_name = "BOX")]
    box_name: String,
    /// The model; `polder recipes` lists them.
    #[arg(long)]
    model: String,
    /// How many people share it.
    #[arg(long, value_name = "N")]
    members: u32,
    /// For programs: every number with its unit, formula and how it is known.
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Self { box_name, model, members, json } = self;
        let estimate = PlanRequest { box_name, model_name: model, members }.estimate()?;
        if json {
            say(serde_json::to_string_pretty(&estimate)?);
        } else {
            say(estimate.render_table().trim_end());
        }
        Ok(())
    }
}
