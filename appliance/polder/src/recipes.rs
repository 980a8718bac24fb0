use polder_recipes::Recipe;

use crate::console::{bytes, say};

/// List the models that polder knows, or show one.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder recipes\n  polder recipes show smollm2-135m-instruct",
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Recipes {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show one recipe whole: where its files come from and what each must hash to.
    #[command(after_help = "Example:\n  polder recipes show smollm2-135m-instruct")]
    Show {
        /// Its name.
        name: String,
    },
}

impl Recipes {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(Command::Show { name }) => say(Recipe::find(&name)?.to_toml()?.trim_end()),
            None => Recipe::builtin().iter().for_each(|recipe| say(line(recipe))),
        }
        Ok(())
    }
}

fn line(recipe: &Recipe) -> String {
    let size = recipe.total_size().map_or("size unknown".to_owned(), bytes);
    let pinned = if recipe.is_pinned() { "" } else { ", unpinned" };
    let trial = if recipe.trial { ", trial" } else { "" };
    format!("{:30} {} ({size}{pinned}{trial})", recipe.name, recipe.title)
}
