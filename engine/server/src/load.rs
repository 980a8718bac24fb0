//! From a model's path to the parts that serve it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use polder_backend::{Backend, Place};
use polder_backend_cpu::{CpuBackend, CpuOptions, KvFormat, PackedWeights, Precision};
use polder_backend_cuda::attention::KvFormat as CardFormat;
use polder_backend_cuda::backend::{CudaBackend, CudaOptions, LoadError as CardError};
use polder_backend_cuda::cost;
use polder_backend_cuda::device::NoDevice;
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::packed::PackedTiles;
use polder_chat::{ChatTemplate, Tokenizer};
use polder_kv::Store;
use polder_model::{Model, ModelSpec};
use polder_scheduler::{Config, Cost};

use crate::EngineError;
use crate::keeping::{Keeping, open_store};
use crate::synthetic::Synthetic;

/// How keys and values of conversations are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conversations {
    /// In 16 bits each.
    #[default]
    Full,
    /// In 8 bits each, on a card: about twice as many fit, and answers may differ a little. A processor holds them in full.
    Compact,
}

/// What an engine is told to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// The engine's name, for the log.
    pub name: String,
    /// The Unix socket to listen on. Its folder exists.
    pub socket: PathBuf,
    /// A GGUF file, or a folder that holds one or a safetensors checkpoint.
    pub model: PathBuf,
    /// A model that is drawn instead, to measure with.
    pub synthetic: Option<Synthetic>,
    /// The model's name in the API.
    pub served_as: String,
    /// Longest sequence, tokens; None is what the model was made for.
    pub context: Option<u32>,
    /// Bytes for conversations; None is half of the memory that is free once the weights are
    /// mapped, or what all sequences together can use, whichever is less.
    pub kv_memory: Option<u64>,
    /// How they are held there.
    pub conversations: Conversations,
    /// Most bytes for everything, weights, conversations and work, of the card's memory or else the machine's. None is what is free.
    pub memory: Option<u64>,
    /// Which part of the model this engine is. It has all of it: anything else is refused.
    pub place: Place,
    /// Threads that compute; None is one per core.
    pub threads: Option<usize>,
    /// Sequences that run at once.
    pub parallel: u16,
    /// A forward pass that runs so much longer than its tokens explain is taken for hung, and
    /// `/health` says so.
    pub patience: Duration,
    /// What is kept of conversations beside the device; None keeps nothing.
    pub keeping: Option<Keeping>,
    /// Where packed weights are kept for the next start; None packs them each time. For cards in `tiles.bin` beside it.
    pub packed: Option<PackedWeights>,
    /// Which graphics card, from 0; None runs on the processor. Without a card there the processor is taken too.
    pub card: Option<u32>,
    /// Where kernels for cards are kept.
    pub kernels: Pack,
    /// Something that was kept of conversations before may still be on disk, though this engine keeps nothing there: nobody is
    /// told that they are forgotten.
    pub left_behind: bool,
}

impl EngineOptions {
    /// With the defaults for everything else.
    pub fn new(
        name: impl Into<String>,
        socket: impl Into<PathBuf>,
        model: impl Into<PathBuf>,
        served_as: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            socket: socket.into(),
            model: model.into(),
            synthetic: None,
            served_as: served_as.into(),
            context: None,
            kv_memory: None,
            conversations: Conversations::default(),
            memory: None,
            place: Place::ALONE,
            threads: None,
            parallel: 16,
            patience: Config::default().patience,
            keeping: None,
            packed: None,
            card: Some(0),
            kernels: Pack::default(),
            left_behind: false,
        }
    }
}

/// A loaded model.
pub struct Parts {
    /// Runs it.
    pub backend: Box<dyn Backend>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, or the sentence that says why it has none.
    pub template: Result<ChatTemplate, String>,
    /// How it is scheduled.
    pub config: Config,
    /// Where its blocks are kept beside the device.
    pub store: Option<Arc<Store>>,
    /// See [`EngineOptions::left_behind`].
    pub left_behind: bool,
    /// One sentence, where it runs less well than this machine could.
    pub note: Option<String>,
}

/// Positions in a KV block.
const BLOCK: u32 = 16;
/// Fewest tokens for conversations that make sense.
const LEAST_TOKENS: u64 = 256;
/// Bytes of a KV value as the CPU back end keeps it.
const KV_VALUE: u64 = 2;

/// Loads a model, on a card if there is one; `progress` hears thousandths.
pub(crate) fn load(options: &EngineOptions, progress: impl Fn(u32)) -> Result<Parts, EngineError> {
    if let Some(synthetic) = &options.synthetic {
        return crate::synthetic::load(options, synthetic, progress);
    }
    if options.place != Place::ALONE {
        return Err(EngineError::Place(options.place));
    }
    let path = || options.model.clone();
    let mut model = Model::open(&options.model)
        .map_err(|source| EngineError::Model { path: path(), source })?;
    progress(OPENED / 2);
    let tokenizer = Tokenizer::from_source(&model.tokenizer)
        .map_err(|source| EngineError::Tokenizer { path: path(), source })?;
    let template = match &model.chat_template {
        None => Err("it came without a chat template".to_owned()),
        Some(source) => ChatTemplate::new(source).map_err(|error| error.to_string()),
    };
    if let Err(why) = &template {
        log::warn!(why:% = why; "this model cannot chat, only continue text");
    }
    progress(OPENED);
    cap(&mut model.spec, options);
    let model = Arc::new(model);
    let loaded = on_card(options, &model.spec, &progress, |cuda, progress| {
        CudaBackend::load(&model, cuda, progress)
    })?;
    let (loaded, note) = match loaded {
        Ok(loaded) => (loaded, None),
        Err(why) => (on_processor(options, &model)?, why),
    };
    progress(1000);
    Ok(ready(options, loaded, (tokenizer, template), note))
}

/// Thousandths when a model's files are open. What comes then is told by its bytes.
const OPENED: u32 = 10;

pub(crate) fn cap(spec: &mut ModelSpec, options: &EngineOptions) {
    if let Some(cap) = options.context {
        spec.context = spec.context.min(cap.max(1));
    }
}

/// With a store for what is to be kept.
pub(crate) fn ready(
    options: &EngineOptions,
    loaded: Loaded,
    (tokenizer, template): (Tokenizer, Result<ChatTemplate, String>),
    note: Option<String>,
) -> Parts {
    let Loaded { mut backend, config, precision, left } = loaded;
    let keeping = options.keeping.as_ref();
    let store = keeping.and_then(|keeping| open_store(keeping, &mut *backend, &precision, left));
    let unopened = store.is_none() && keeping.is_some_and(|keeping| keeping.folder.is_some());
    let left_behind = options.left_behind || unopened;
    Parts { backend, tokenizer, template, config, store, left_behind, note }
}

/// A back end that is ready.
pub(crate) struct Loaded {
    backend: Box<dyn Backend>,
    config: Config,
    /// What must be the same for kept blocks to be of use.
    precision: String,
    /// Bytes of the machine's memory that nobody uses.
    left: u64,
}

/// What one token of a card's first step may take before the step is taken for hung.
const CARD_PACE: Duration = Duration::from_millis(20);

/// `Err` where the processor has to do: there is no card; or there is, and why it does not serve.
pub(crate) fn on_card(
    options: &EngineOptions,
    spec: &ModelSpec,
    progress: &impl Fn(u32),
    load: impl FnOnce(&CudaOptions, &dyn Fn(u32)) -> Result<CudaBackend, CardError>,
) -> Result<Result<Loaded, Option<String>>, EngineError> {
    let Some(device) = options.card else { return Ok(Err(None)) };
    let useful = useful(spec.context, options.parallel);
    let slopes = cost::slopes(spec);
    let config = Config {
        patience: options.patience,
        cost: Cost { read_slope: slopes.read, decode_slope: slopes.decode },
        step_tokens: cost::STEP_WORK,
        gap: Some(cost::gap(spec)),
        steps_ahead: 1,
        first_pace: CARD_PACE,
        ..Config::default()
    };
    let cuda = CudaOptions {
        device,
        pack: options.kernels.clone(),
        kv: match options.conversations {
            Conversations::Full => CardFormat::Bf16,
            Conversations::Compact => CardFormat::Fp8,
        },
        packed: options.packed.as_ref().map(tiles),
        kv_tokens: u32::try_from(useful).unwrap_or(u32::MAX / BLOCK * BLOCK),
        kv_bytes: options.kv_memory,
        memory: options.memory,
        block_tokens: BLOCK,
        slots: options.parallel.max(1),
        // Guesses are within it.
        step_tokens: cost::STEP_WORK,
        ..CudaOptions::default()
    };
    let told = |thousandths: u32| progress(OPENED + thousandths * (1000 - OPENED) / 1000);
    let backend = match load(&cuda, &told) {
        Ok(backend) => backend,
        Err(CardError::NoDevice(why @ (NoDevice::NoDriver | NoDevice::NoCard))) => {
            log::info!("{why}: the processor computes");
            return Ok(Err(None));
        }
        Err(why) if why.is_memory() => return Err(EngineError::Card(why)),
        Err(why @ CardError::Options(_)) => return Err(EngineError::Card(why)),
        Err(why) => {
            let note = format!("the processor computes, not the card: {why}");
            log::warn!("{note}");
            return Ok(Err(Some(note)));
        }
    };
    let limits = backend.limits();
    let tokens = u64::from(limits.blocks) * u64::from(limits.block_tokens);
    let least = LEAST_TOKENS.min(useful);
    if tokens < least {
        let per_token = limits.kv_bytes_per_token;
        let (available, least) = (tokens * per_token, least * per_token);
        return Err(EngineError::Memory { available, tokens, least });
    }
    log::info!(
        card = backend.device().name(), positions = tokens, kv = format!("{:?}", cuda.kv);
        "model on the card"
    );
    let precision = format!("cuda, {:?}", cuda.kv);
    Ok(Ok(Loaded { backend: Box::new(backend), config, precision, left: free_memory() }))
}

/// Packed for a card beside what is packed for the processor.
fn tiles(packed: &PackedWeights) -> PackedTiles {
    PackedTiles {
        path: packed.path.with_file_name("tiles.bin"),
        weights: packed.weights.clone(),
        least_bytes: packed.least_bytes,
        reserve_bytes: packed.reserve_bytes,
        least_packing: 50,
    }
}

pub(crate) fn on_processor(
    options: &EngineOptions,
    model: &Arc<Model>,
) -> Result<Loaded, EngineError> {
    if options.conversations == Conversations::Compact {
        log::warn!(
            "this engine is told to hold conversations compactly, which only a graphics card can: the processor holds them in full"
        );
    }
    let per_token = model.spec.kv_values_per_token().saturating_mul(KV_VALUE).max(1);
    let free = free_beside_weights(&options.model, options.memory)?;
    let bytes = options.kv_memory.unwrap_or(free / 2);
    let kv_tokens = kv_tokens(bytes, per_token, model.spec.context, options.parallel)?;
    // Cores multiply for a living, whether they read a text or go on with it.
    let slope = model.spec.attention_slope();
    let cost = Cost { read_slope: slope, decode_slope: slope };
    let config = Config { patience: options.patience, cost, ..Config::default() };
    let cpu = CpuOptions {
        precision: Precision::Stored,
        kv: KvFormat::Half,
        kv_tokens,
        block_tokens: BLOCK,
        slots: options.parallel.max(1),
        step_tokens: config.step_tokens,
        threads: options.threads.unwrap_or(0),
        packed: options.packed.clone(),
    };
    let backend = CpuBackend::load(model, &cpu).map_err(EngineError::Load)?;
    let precision = format!("cpu, {:?}, {:?}", cpu.precision, cpu.kv);
    let left = free.saturating_sub(u64::from(kv_tokens) * per_token);
    Ok(Loaded { backend: Box::new(backend), config, precision, left })
}

/// Tokens of KV that all sequences together can use, in whole blocks.
fn useful(context: u32, parallel: u16) -> u64 {
    let whole = u64::from(context).div_ceil(BLOCK.into()) * u64::from(BLOCK);
    whole.saturating_mul(u64::from(parallel.max(1)))
}

/// Tokens of KV that fit, but no more than are useful.
fn kv_tokens(bytes: u64, per_token: u64, context: u32, parallel: u16) -> Result<u32, EngineError> {
    let useful = useful(context, parallel);
    let fits = bytes / per_token / u64::from(BLOCK) * u64::from(BLOCK);
    let least = LEAST_TOKENS.min(useful);
    if fits < least {
        return Err(EngineError::Memory {
            available: bytes,
            tokens: fits,
            least: least.saturating_mul(per_token),
        });
    }
    Ok(u32::try_from(fits.min(useful)).unwrap_or(u32::MAX / BLOCK * BLOCK))
}

/// What the weights leave free; half of it is for conversations. Packing widens some formats to one and a half times
/// their bytes in the file, and all of it is taken before the first conversation grows.
/// A budget is for all of it.
fn free_beside_weights(model: &Path, budget: Option<u64>) -> Result<u64, EngineError> {
    let weights = file_bytes(model).saturating_mul(3) / 2;
    match budget {
        Some(budget) if weights > budget => Err(EngineError::Budget { weights, budget }),
        Some(budget) => Ok(budget.min(free_memory()).saturating_sub(weights)),
        None => Ok(free_memory().saturating_sub(weights)),
    }
}

/// The bytes of a file, or of the files in a folder.
fn file_bytes(path: &Path) -> u64 {
    let Ok(about) = std::fs::metadata(path) else { return 0 };
    if !about.is_dir() {
        return about.len();
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    // A model's folder holds links: what they lead to counts.
    entries.filter_map(|entry| std::fs::metadata(entry.path()).ok()).map(|file| file.len()).sum()
}

/// Bytes that could be used without swapping; 2 GiB where the system does not say.
fn free_memory() -> u64 {
    std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available(&text))
        .unwrap_or(2 << 30)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_a_folder_are_what_its_links_lead_to() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("m")).unwrap();
        std::fs::write(folder.path().join("blob"), [0; 700]).unwrap();
        std::fs::write(folder.path().join("m/config.json"), [0; 30]).unwrap();
        std::os::unix::fs::symlink("../blob", folder.path().join("m/model.gguf")).unwrap();
        assert_eq!(file_bytes(&folder.path().join("m")), 730);
        assert_eq!(file_bytes(&folder.path().join("blob")), 700);
        assert_eq!(file_bytes(&folder.path().join("nothing")), 0);
    }

    #[test]
    fn a_budget_is_for_weights_and_conversations_and_too_small_a_one_says_what_is_lacking() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.gguf");
        std::fs::write(&model, vec![0; 2 << 20]).unwrap();
        // Packed they may take half as much again.
        assert_eq!(free_beside_weights(&model, Some(4 << 20)).unwrap(), 1 << 20);
        assert!(free_beside_weights(&model, Some(u64::MAX)).unwrap() <= free_memory());
        let why = free_beside_weights(&model, Some(2 << 20)).unwrap_err();
        assert_eq!(why.exit_status(), EngineError::DOES_NOT_FIT);
        let why = why.to_string();
        assert!(why.contains("weights take 3 MiB") && why.contains("1 MiB are lacking"), "{why}");
    }

    #[test]
    fn an_engine_that_is_one_of_several_is_refused_by_name() {
        let mut options = EngineOptions::new("fast", "socket", "nothing", "tiny");
        options.place = Place { rank: 1, world: 2 };
        let Err(why) = load(&options, |_| ()) else { panic!("loaded") };
        assert!(why.to_string().contains("place 1 of 2 devices"), "{why}");
    }

    #[test]
    fn memory_for_conversations_is_what_fits_and_what_is_useful() {
        assert_eq!(kv_tokens(1_000_000, 100, 8192, 16).unwrap(), 10_000);
        assert_eq!(kv_tokens(u64::MAX, 100, 1000, 2).unwrap(), 2016);
        assert!(matches!(
            kv_tokens(100, 100, 8192, 16),
            Err(EngineError::Memory { least: 25_600, .. })
        ));
    }

    #[test]
    fn free_memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:  100 kB\nMemFree: 5 kB\nMemAvailable:   20 kB\n";
        assert_eq!(available(text), Some(20 * 1024));
        assert_eq!(available("MemAvailable: lots"), None);
    }
}
