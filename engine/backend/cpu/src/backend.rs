//! The public back end: checks steps, and hands them to the thread that runs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use polder_backend::check::{Slots, carried};
use polder_backend::{
    Backend, BackendError, BlockId, Limits, StepBatch, StepOutput, Ticket, Writer,
};
use polder_model::{Attention, Model};

use crate::forward::Forward;
use crate::kernels::Isa;
use crate::kv::{KvFormat, PAGE};
use crate::packed::{PackedWeights, Shelf};
use crate::team::Team;

/// How weights are kept and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As the file stores them: quantized weights meet activations quantized in groups of 32 to
    /// two signed bytes each, with exact integer sums; KV is kept as [`CpuOptions::kv`] says.
    Stored,
    /// Everything as 32-bit floats, KV too: the reference.
    F32,
}

/// How to run a model.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// How weights are kept.
    pub precision: Precision,
    /// How keys and values are kept. The reference keeps floats whatever this says.
    pub kv: KvFormat,
    /// Positions in the KV pool, rounded up to whole blocks.
    pub kv_tokens: u32,
    /// Positions in a block; a multiple of 16.
    pub block_tokens: u32,
    /// Sequences that can run at once.
    pub slots: u16,
    /// Most tokens in one step.
    pub step_tokens: u32,
    /// Threads that multiply; 0 takes as many as the machine has cores.
    pub threads: usize,
    /// Where packed weights are kept for the next start; None packs them each time.
    pub packed: Option<PackedWeights>,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            precision: Precision::Stored,
            kv: KvFormat::default(),
            kv_tokens: 16 * 1024,
            block_tokens: 16,
            slots: 64,
            step_tokens: 512,
            threads: 0,
            packed: None,
        }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An option that cannot be.
    #[error("cannot run a model with {0}")]
    Options(String),
    /// The system gave no thread.
    #[error("cannot start the threads that run the model; is the machine at its limit?")]
    Threads(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A loaded model on the CPU.
#[derive(Debug)]
pub struct CpuBackend {
    limits: Limits,
    slots: Slots,
    given: u64,
    taken: u64,
    /// Steps that came back, to be filled again.
    spare: Vec<StepBatch>,
    /// None only while dropping.
    work: Option<Sender<Work>>,
    answers: Receiver<(StepOutput, StepBatch)>,
    exported: Receiver<Vec<u8>>,
    read: Arc<AtomicU64>,
    worker: Option<JoinHandle<()>>,
    writer: Option<Writer>,
    mapped: bool,
}

/// What the worker does, in order.
#[derive(Debug)]
enum Work {
    Step(StepBatch),
    /// With memory to be filled.
    Export(BlockId, Vec<u8>),
    Import(BlockId, Vec<u8>),
}

impl CpuBackend {
    /// Packs the weights (some tenths of a second per GB) and starts the worker. The model's
    /// files stay mapped: embedding rows are read from them.
    pub fn load(model: &Arc<Model>, options: &CpuOptions) -> Result<Self, LoadError> {
        let limits = limits(model, options)?;
        let mut team = Team::new(options.threads).map_err(|e| LoadError::Threads(Box::new(e)))?;
        let isa = Isa::detect();
        let threads = team.threads();
        let precision = format!("{:?}", options.precision);
        let kept = options.packed.as_ref();
        let shelf = kept.map(|kept| Shelf::open(kept, &precision, &mut team)).unwrap_or_default();
        let (mut forward, shelf) = Forward::new(
            Arc::clone(model),
            (options.precision, kv_format(options)),
            &limits,
            isa,
            team,
            shelf,
        );
        let mapped = shelf.had_all();
        let writer = kept.and_then(|kept| shelf.keep(kept, &precision));
        log::info!(
            kernels = isa.name(),
            threads = threads,
            blocks = limits.blocks;
            "model packed for the CPU"
        );
        let read = forward.read();
        let (work, todo) = channel();
        let (done, answers) = channel();
        let (carry, exported) = channel();
        let worker = std::thread::Builder::new()
            .name("polder-cpu".into())
            .spawn(move || {
                for work in todo {
                    let heard = match work {
                        Work::Step(step) => {
                            let output = forward.run(&step);
                            done.send((output, step)).is_ok()
                        }
                        Work::Export(block, mut bytes) => {
                            forward.export(block, &mut bytes);
                            carry.send(bytes).is_ok()
                        }
                        Work::Import(block, bytes) => {
                            forward.import(block, &bytes);
                            true
                        }
                    };
                    if !heard {
                        break;
                    }
                }
            })
            .map_err(|e| LoadError::Threads(Box::new(e)))?;
        Ok(Self {
            limits,
            slots: Slots::new(options.slots),
            given: 0,
            taken: 0,
            spare: Vec::new(),
            work: Some(work),
            answers,
            exported,
            read,
            worker: Some(worker),
            writer,
            mapped,
        })
    }

    /// Whether all of its weights are mapped from where they were kept packed.
    pub fn is_mapped(&self) -> bool {
        self.mapped
    }

    /// Waits until packed weights are on disk, where they are being written.
    pub fn settle(&mut self) {
        self.writer.iter_mut().for_each(Writer::settle);
    }

    fn send(&self, work: Work) -> Result<(), BackendError> {
        self.work.as_ref().ok_or_else(stopped)?.send(work).map_err(|_| stopped())
    }

    /// Bytes of packed weight matrices that all steps so far have read. A step reads each matrix
    /// once, however many tokens it holds; embedding rows and norms are not counted.
    pub fn weight_bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// None is floats.
fn kv_format(options: &CpuOptions) -> Option<KvFormat> {
    (options.precision == Precision::Stored).then_some(options.kv)
}

fn limits(model: &Model, o: &CpuOptions) -> Result<Limits, LoadError> {
    let spec = &model.spec;
    if o.block_tokens == 0 || !(o.block_tokens as usize).is_multiple_of(PAGE) {
        return Err(LoadError::Options(format!(
            "blocks of {} positions; use a multiple of {PAGE}",
            o.block_tokens
        )));
    }
    if o.slots == 0 || o.step_tokens == 0 || o.kv_tokens == 0 {
        return Err(LoadError::Options(
            "no slots, no tokens in a step, or no positions in the KV pool".into(),
        ));
    }
    let layer = |attention: &Attention| match (attention, kv_format(o)) {
        (Attention::Gqa(gqa), Some(format)) => format.bytes(gqa),
        (Attention::Gqa(gqa), None) => 8 * u64::from(gqa.kv_heads) * u64::from(gqa.head_dim),
    };
    let limits = Limits {
        step_tokens: o.step_tokens,
        slots: o.slots,
        blocks: o.kv_tokens.div_ceil(o.block_tokens),
        block_tokens: o.block_tokens,
        context: spec.context,
        vocab: spec.vocab,
        kv_bytes_per_token: spec.layers.iter().map(|at| layer(&at.attention)).sum(),
    };
    let positions = u64::from(limits.blocks) * u64::from(limits.block_tokens);
    match limits.kv_bytes_per_token.checked_mul(positions) {
        Some(bytes) if bytes <= isize::MAX as u64 => Ok(limits),
        _ => Err(LoadError::Options(format!("{positions} positions of KV"))),
    }
}

impl Backend for CpuBackend {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn submit(&mut self, step: &StepBatch) -> Result<Ticket, BackendError> {
        self.slots.admit(step, &self.limits)?;
        let mut copy = self.spare.pop().unwrap_or_default();
        refill(&mut copy, step);
        self.send(Work::Step(copy))?;
        let ticket = Ticket(self.given);
        self.given += 1;
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, BackendError> {
        if ticket.0 != self.taken || self.taken == self.given {
            return Err(BackendError::UnknownTicket(ticket.0));
        }
        let (output, step) = self.answers.recv().map_err(|_| stopped())?;
        self.taken += 1;
        self.spare.push(step);
        Ok(output)
    }

    fn export_block(&mut self, block: BlockId, into: &mut Vec<u8>) -> Result<(), BackendError> {
        carried(block, None, &self.limits)?;
        self.send(Work::Export(block, std::mem::take(into)))?;
        *into = self.exported.recv().map_err(|_| stopped())?;
        Ok(())
    }

    fn import_block(&mut self, block: BlockId, bytes: &[u8]) -> Result<(), BackendError> {
        carried(block, Some(bytes.len()), &self.limits)?;
        self.send(Work::Import(block, bytes.to_vec()))
    }
}

impl Drop for CpuBackend {
    fn drop(&mut self) {
        // The worker ends when nothing more can come.
        self.work = None;
        if let Some(worker) = self.worker.take() {
            // A panic there has been reported by the panic hook and by `collect`.
            let _ = worker.join();
        }
    }
}

fn stopped() -> BackendError {
    BackendError::Device("the thread that runs the model has stopped".into())
}

/// Copies a step into a used one and keeps its memory.
fn refill(to: &mut StepBatch, from: &StepBatch) {
    to.inputs.clone_from(&from.inputs);
    to.positions.clone_from(&from.positions);
    to.sequences.clone_from(&from.sequences);
    to.block_table.clone_from(&from.block_table);
    to.copies.clone_from(&from.copies);
    to.resets.clone_from(&from.resets);
    to.histories.clone_from(&from.histories);
    to.outputs.clone_from(&from.outputs);
}
