use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use polder_control::Sockets;
use polder_engine_server::{Conversations, EngineOptions, Keeping, PackedWeights};
use polder_planner::{Room, ShareError};
use polder_recipes::Recipe;
use polder_site::{EngineName, Site};
use polder_supervisor::Part;
use polder_weights::Store;

use crate::foreign::{self, Image};
use crate::kernels::Kernels;
use crate::part;
use crate::state::State;
use crate::synthetic::Synthetic;

/// Run one engine of a box (its supervisor starts this).
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  polder engine fast --state /var/lib/polder\n  polder engine kernels build --out kernels\n  polder engine --synthetic qwen3-30b-a3b --socket /tmp/engine.sock"
)]
pub(crate) struct Engine {
    #[command(subcommand)]
    command: Option<Command>,
    /// The slot, as site.toml names it.
    #[arg(required_unless_present = "synthetic")]
    name: Option<EngineName>,
    #[command(flatten)]
    state: State,
    #[command(flatten)]
    synthetic: Synthetic,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The kernels for graphics cards.
    #[command(after_help = "Example:\n  polder engine kernels build --arch sm_90a --out kernels")]
    Kernels {
        #[command(subcommand)]
        command: Kernels,
    },
    /// Images of containers that serve a model in place of Polder's own engine.
    #[command(after_help = "Example:\n  polder engine image import vllm.tar")]
    Image {
        #[command(subcommand)]
        command: Image,
    },
}

impl Engine {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Self { command, name, state, synthetic } = self;
        if command.is_none() && name.is_none() {
            return synthetic.run();
        }
        match (command, name) {
            (Some(Command::Kernels { command }), _) => command.run(),
            (Some(Command::Image { command }), _) => command.run(),
            (None, Some(name)) => serve(name, state),
            (None, None) => unreachable!("a name is required where there is no subcommand"),
        }
    }
}

fn serve(name: EngineName, state: State) -> anyhow::Result<()> {
    let state = state.folder()?;
    let site = part::site(&state)?;
    let slot = site.engines.get(&name).with_context(|| {
        format!("site.toml names no engine {name}; choose a model for it first")
    })?;
    if let Some(served) = slot.served.clone() {
        return foreign::serve(name, &state, slot.clone(), *served);
    }
    let recipe = Recipe::find(slot.recipe.as_str())?;
    let model = Store::open(state.join("weights"))?.model_folder(recipe).with_context(|| {
        format!(
            "the weights of {} are not here or not whole; bring them in with `polder weights \
             import {}`",
            recipe.title, recipe.name
        )
    })?;
    if let Some(container) = slot.container.clone() {
        return foreign::contain(name, &state, slot.clone(), *container, model);
    }
    let socket = socket(&state, &name)?;
    let mut options = EngineOptions::new(name.as_str(), socket, &model, recipe.name.as_str());
    options.kernels = kernels(&state, &name);
    options.conversations = match slot.conversations {
        polder_site::Conversations::Full => Conversations::Full,
        polder_site::Conversations::Compact => Conversations::Compact,
    };
    options.memory = memory(&site, &name)?;
    match weights(&model) {
        Ok(weights) => {
            options.packed = Some(packed(&state, &name, &weights));
            let (keeping, erased) = keeping(&state, &site, &name, weights);
            (options.keeping, options.left_behind) = (Some(keeping), !erased);
        }
        Err(error) => {
            log::warn!("the weights do not say what they are, so nothing is kept: {error:#}");
            options.left_behind = !erase(&polder_supervisor::kept_by(&state, &name));
        }
    }
    let runtime = part::runtime()?;
    part::run(runtime, Part::Engine(name), &state, |told| polder_engine_server::run(options, told))
}

/// Where it answers; the folder is made if need be.
pub(crate) fn socket(state: &Path, name: &EngineName) -> anyhow::Result<PathBuf> {
    let socket = Sockets::of(state).engine(name);
    if let Some(folder) = socket.parent() {
        crate::state::make(folder)?;
    }
    Ok(socket)
}

/// What this engine may take of the memory that it shares with the others of the site: of the first card where there is one, else of the
/// machine. `None` where it is alone and nobody said anything.
fn memory(site: &Site, name: &EngineName) -> Result<Option<u64>, ShareError> {
    let budgeted = site.engines.get(name).is_some_and(|slot| slot.memory.is_some());
    if site.engines.len() == 1 && !budgeted {
        return Ok(None);
    }
    let cards: Vec<_> = Device::memory_of(0).ok().map(Some).into_iter().collect();
    memory_in(Room::of_machine(&cards, polder_supervisor::memory()), site, name)
}

/// The same in a room. What a change of the site may not do is decided before it is made. An engine that starts goes by its own budget, and
/// ends only where its own model does not fit into that; without one it takes what is free where the others leave too little by their plans.
fn memory_in(room: Room, site: &Site, name: &EngineName) -> Result<Option<u64>, ShareError> {
    let Some(slot) = site.engines.get(name) else { return Ok(None) };
    let Some(budget) = slot.memory else {
        return Ok(polder_supervisor::memory_shares(site, room).map_or_else(
            |error| {
                log::warn!("this engine takes what is free: {error}");
                None
            },
            |shares| shares.get(name).copied().flatten(),
        ));
    };
    let mut own = site.clone();
    own.engines.retain(|other, _| other == name);
    match polder_supervisor::memory_shares(&own, room) {
        Err(error @ ShareError::Small { .. }) => Err(error),
        _ => Ok(Some(budget.of(room.bytes))),
    }
}

/// Bytes of the state disk that what is kept never takes, however full it gets.
const RESERVE: u64 = 5 << 30;

/// What the engine keeps of conversations, in `kv/NAME`: its part of what the site allows. Without days nothing stays on disk, and
/// what was there goes; false where it could not.
fn keeping(state: &Path, site: &Site, name: &EngineName, weights: String) -> (Keeping, bool) {
    let folder = polder_supervisor::kept_by(state, name);
    let engines = site.engines.len().max(1) as u64;
    let size = polder_kv::disk_size(&folder).unwrap_or_else(|error| {
        log::warn!("the size of the disk cannot be told, so nothing is kept there: {error}");
        0
    });
    let bytes = size / 100 * u64::from(site.keeping.disk_percent) / engines;
    let on_disk = site.keeping.days > 0 && bytes > 0;
    let erased = on_disk || erase(&folder);
    let keeping = Keeping {
        weights,
        folder: on_disk.then_some(folder),
        host_bytes: None,
        disk_bytes: bytes,
        disk_reserve_bytes: RESERVE,
        retention: Duration::from_secs(u64::from(site.keeping.days.max(1)) * 24 * 60 * 60),
    };
    (keeping, erased)
}

/// False where something may still be there.
fn erase(folder: &Path) -> bool {
    let done = polder_kv::erase(folder);
    if let Err(error) = &done {
        log::error!("what was kept on disk could not be removed: {error}");
    }
    done.is_ok()
}

/// Fewer bytes are packed as soon as read.
const WORTH_KEEPING: u64 = 256 << 20;

/// Kernels for cards: those that came with the program, and those that this box made itself.
fn kernels(state: &Path, name: &EngineName) -> Pack {
    Pack {
        shipped: std::env::current_exe().ok().as_deref().and_then(crate::kernels::shipped),
        made: Some(polder_supervisor::packed_by(state, name).join("kernels")),
    }
}

fn packed(state: &Path, name: &EngineName, weights: &str) -> PackedWeights {
    PackedWeights {
        path: polder_supervisor::packed_by(state, name).join("weights.bin"),
        weights: weights.to_owned(),
        least_bytes: WORTH_KEEPING,
        reserve_bytes: RESERVE,
    }
}

/// Every file of a model and the digest that its link leads to: what was imported was checked against it.
fn weights(model: &Path) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(model)? {
        let path = entry?.path();
        let leads_to = fs::read_link(&path)
            .with_context(|| format!("{} is no link to checked weights", path.display()))?;
        let digest = leads_to.file_name().unwrap_or_default().to_string_lossy();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        lines.push(format!("{name} {digest}\n"));
    }
    anyhow::ensure!(!lines.is_empty(), "the folder of the model is empty");
    lines.sort();
    Ok(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_told_apart_by_what_their_links_lead_to_and_a_plain_file_is_no_proof() {
        let folder = tempfile::tempdir().unwrap();
        let link = |digest: &str, name: &str| {
            let _ = fs::remove_file(folder.path().join(name));
            std::os::unix::fs::symlink(
                format!("../../blobs/sha256/{digest}"),
                folder.path().join(name),
            )
            .unwrap();
        };
        assert!(weights(folder.path()).is_err());
        link("b2", "model.gguf");
        link("a1", "config.json");
        assert_eq!(weights(folder.path()).unwrap(), "config.json a1\nmodel.gguf b2\n");
        link("b3", "model.gguf");
        assert_eq!(weights(folder.path()).unwrap(), "config.json a1\nmodel.gguf b3\n");
        fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        assert!(weights(folder.path()).unwrap_err().to_string().contains("tokenizer.json"));
    }

    #[test]
    fn an_only_engine_takes_what_is_free_and_one_with_a_budget_takes_that() {
        let (mut site, name): (Site, EngineName) = (Site::unclaimed(1), "fast".parse().unwrap());
        let trial = polder_site::EngineSlot::serving("smollm2-135m-instruct".parse().unwrap());
        site.engines.insert(name.clone(), trial);
        assert_eq!(memory(&site, &name).unwrap(), None);
        site.engines.get_mut(&name).unwrap().memory = Some("1 GiB".parse().unwrap());
        assert_eq!(memory(&site, &name).unwrap(), Some(1 << 30));
        site.engines.get_mut(&name).unwrap().memory = Some("1 MiB".parse().unwrap());
        let why = memory(&site, &name).unwrap_err().to_string();
        assert!(why.contains("raise engines.fast.memory"), "{why}");
    }

    #[test]
    fn an_engine_starts_by_its_own_budget_whatever_the_others_are_told() {
        let mut site = Site::unclaimed(1);
        let (fast, slow): (EngineName, EngineName) =
            ("fast".parse().unwrap(), "slow".parse().unwrap());
        let mut put = |name: &EngineName, recipe: &str, memory: Option<&str>| {
            let memory = memory.map(|text| text.parse().unwrap());
            let serving = polder_site::EngineSlot::serving(recipe.parse().unwrap());
            let slot = polder_site::EngineSlot { memory, ..serving };
            site.engines.insert(name.clone(), slot);
            site.clone()
        };
        let room = Room { bytes: 24_000_000_000, card: true };
        put(&fast, "qwen3-4b", None);
        // Both ran beside each other before there were budgets, or one of them on the processor: nobody may be stopped for a plan.
        let open = put(&slow, "qwen3-30b-a3b", None);
        assert_eq!(memory_in(room, &open, &fast), Ok(None));
        assert_eq!(memory_in(room, &open, &slow), Ok(None));
        put(&fast, "qwen3-4b", Some("20 GiB"));
        let over = put(&slow, "smollm2-135m-instruct", Some("20 GiB"));
        assert_eq!(memory_in(room, &over, &fast), Ok(Some(20 << 30)));
        // Another one's model that does not fit ends the other one.
        let small = put(&slow, "qwen3-30b-a3b", Some("1 GiB"));
        assert_eq!(memory_in(room, &small, &fast), Ok(Some(20 << 30)));
        assert!(matches!(memory_in(room, &small, &slow), Err(ShareError::Small { .. })));
    }

    #[test]
    fn the_site_says_how_long_and_how_much_and_without_days_nothing_stays() {
        let state = tempfile::tempdir().unwrap();
        let (mut site, name): (Site, EngineName) = (Site::unclaimed(1), "fast".parse().unwrap());
        let (usual, _) = keeping(state.path(), &site, &name, "a1".into());
        assert_eq!(usual.folder, Some(state.path().join("kv/fast")));
        assert_eq!(usual.retention, Duration::from_secs(30 * 86400));
        let disk = polder_kv::disk_size(state.path()).unwrap();
        assert_eq!(usual.disk_bytes, disk / 100 * 20);
        site.keeping.days = 0;
        fs::create_dir_all(state.path().join("kv/fast/keys")).unwrap();
        let (none, erased) = keeping(state.path(), &site, &name, "a1".into());
        assert!(none.folder.is_none() && erased);
        assert!(!state.path().join("kv/fast").exists());
    }
}
