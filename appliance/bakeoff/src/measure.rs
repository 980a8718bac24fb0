//! Asks a server everything: first for parity, one after the other, then the mix, many at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::endpoint::{AskError, Endpoint};
use crate::figures::Figures;
use crate::mix::{Mix, Shape};
use crate::parity::{Parity, Token, compare};
use crate::words::{Ratio, words};

/// Tokens of an answer that is compared.
const COMPARED: u32 = 48;
/// Words of the two messages by which a server's tokens are counted.
const FEW: usize = 20;
const MANY: usize = 220;

/// What both sides are asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Prompts whose answers are compared.
    pub prompts: usize,
    /// Requests of the mix.
    pub shapes: Vec<Shape>,
    /// Requests at once.
    pub concurrency: usize,
    /// Chooses requests and words: another one each time, so that no prompt is known from before.
    pub seed: u64,
    /// How tokens relate to words; measured on the first side that is asked, so that both get the same texts.
    pub template: f64,
    /// Tokens of a word.
    pub word: f64,
}

/// What one side did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// What it was asked.
    pub plan: Plan,
    /// Its model.
    pub model: String,
    /// What it says that it is.
    pub version: Option<String>,
    /// Where it ran, as far as this machine knows.
    pub card: Option<String>,
    /// Its answers to the prompts that are compared.
    pub answers: Vec<Vec<Token>>,
    /// How fast it was.
    pub figures: Figures,
    /// What the prompts of the mix began with, so that no measurement finds those of another one known.
    #[serde(default)]
    pub salt: u64,
    /// Why the first request failed, of those that did.
    #[serde(default)]
    pub why_failed: Option<String>,
}

impl Plan {
    /// So many requests of a mix, in this server's tokens.
    pub fn new(
        mix: &Mix,
        server: &Endpoint,
        (prompts, requests, concurrency): (usize, usize, usize),
        seed: u64,
    ) -> Result<Self, AskError> {
        let few = server.count(&words(FEW, 1))?;
        let many = server.count(&words(MANY, 1))?;
        let Ratio { template, word } = Ratio::of((FEW, few), (MANY, many));
        let shapes = mix.draw(seed, requests);
        Ok(Self { prompts, shapes, concurrency: concurrency.max(1), seed, template, word })
    }

    /// Everything that one side is asked: prompts to compare, and requests of the mix.
    pub fn requests(&self) -> usize {
        self.prompts + self.shapes.len()
    }

    fn prompt(&self, n: usize) -> String {
        const ASKED: [&str; 8] = [
            "Explain in a few sentences why the sky is blue.",
            "Write a short note to a neighbour about a lost cat.",
            "List the steps to boil an egg.",
            "What is the difference between a lake and a sea?",
            "Summarise how a bicycle stays upright.",
            "Give three reasons to keep a diary.",
            "Describe a market on a rainy morning.",
            "How does a candle burn?",
        ];
        let asked = ASKED[n % ASKED.len()];
        match n / ASKED.len() {
            0 => asked.to_owned(),
            again => format!("{asked} Use these words: {}.", words(4 * again, n as u64)),
        }
    }
}

/// Asks one side everything. `salt` is another number for each measurement: a plan may be asked again of a server that knows its
/// prompts. `progress` hears how many requests are done.
pub fn measure(
    server: &Endpoint,
    plan: &Plan,
    salt: u64,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Side, AskError> {
    let mut answers = Vec::with_capacity(plan.prompts);
    for n in 0..plan.prompts {
        answers.push(server.answer(&plan.prompt(n), COMPARED)?);
        progress(n + 1);
    }
    let ratio = Ratio { template: plan.template, word: plan.word };
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(plan.prompts));
    let (timed, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(shape) = plan.shapes.get(at) else { return };
            let prompt = ratio.prompt(shape, plan.seed.wrapping_add(at as u64 + 1), salt);
            match server.stream(&prompt, shape.answer) {
                Ok(one) => lock(&timed).push(one),
                Err(error) => lock(&failed).push(error),
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..plan.concurrency {
            scope.spawn(work);
        }
    });
    let took = began.elapsed().as_secs_f64();
    let (timed, mut failed) = (lock(&timed), lock(&failed));
    let count = failed.len();
    let first = if count > 0 { Some(failed.swap_remove(0)) } else { None };
    let why_failed = first.as_ref().map(ToString::to_string);
    if timed.is_empty()
        && let Some(error) = first
    {
        return Err(error);
    }
    Ok(Side {
        plan: plan.clone(),
        model: server.model().to_owned(),
        version: server.version(),
        card: crate::card::name(),
        answers,
        figures: Figures::of(&timed, count, took),
        salt,
        why_failed,
    })
}

/// Whether two sides answer alike.
pub fn parity(ours: &Side, theirs: &Side) -> Parity {
    let pairs: Vec<_> =
        ours.answers.iter().zip(&theirs.answers).map(|(a, b)| compare(a, b)).collect();
    Parity::of(&pairs)
}

/// What a thread that panicked left behind is still what was measured.
fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
