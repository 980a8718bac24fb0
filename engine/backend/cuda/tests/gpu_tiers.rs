//! A mixed load with tiers beside the card: conversations that go to host memory and come back say what they would have said.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../../cpu/tests/common/steps.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod steps;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use polder_backend::{Backend, HostMemory, SampledToken, Sampling, TokenId};
use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use polder_kv::{ModelDigest, Store, StoreOptions};
use polder_scheduler::{
    Claim, Config, EngineThread, Event, MemberId, Request, RequestId, spawn_with_store,
};
use steps::{goldens, open};

/// Of the mixed load.
fn time() -> Duration {
    let told = std::env::var("POLDER_LOAD_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(told.unwrap_or(15))
}

/// A card adds up in another order where a step has another size: logarithms of probabilities are within this, and of two tokens
/// that are so near either may be said. With experts few are not: which of two is chosen may hang on a last bit, and then much else
/// does.
const NEAR: f32 = 0.1;

struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn text(&mut self, length: u64) -> Vec<TokenId> {
        (0..length).map(|_| TokenId(self.below(384) as u32)).collect()
    }
}

/// An engine over a model of the golden files, with a pool of so many positions, and pinned memory beside it if it keeps anything.
fn engine(
    family: &str,
    kv_tokens: u32,
    host_bytes: u64,
) -> (EngineThread, Option<Arc<dyn HostMemory>>) {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    let options = CudaOptions {
        pack: Pack { shipped: std::env::var_os("POLDER_KERNELS").map(Into::into), made },
        kv_tokens,
        slots: 16,
        step_tokens: 512,
        ..CudaOptions::default()
    };
    let model = open(&goldens().join("families").join(family));
    let mut backend = CudaBackend::load(&model, &options, |_| ()).unwrap_or_else(|e| panic!("{e}"));
    let memory = (host_bytes > 0).then(|| backend.host_memory(host_bytes).unwrap());
    let options = StoreOptions {
        host_bytes,
        memory: memory.clone(),
        ..StoreOptions::new(ModelDigest([7; 32]), backend.limits().block_bytes() as usize, 16)
    };
    let store = (host_bytes > 0).then(|| Arc::new(Store::open(options).unwrap()));
    let config = Config { steps_ahead: 1, step_tokens: 192, ..Config::default() };
    (spawn_with_store(Box::new(backend), config, store).unwrap(), memory)
}

fn request(member: &str, prompt: &[TokenId], max_tokens: u32, sampling: Sampling) -> Request {
    Request {
        member: MemberId::new(member),
        claim: Claim::default(),
        prompt: prompt.to_vec(),
        max_tokens,
        stop_tokens: [].into(),
        sampling,
        prompt_logprobs: None,
        grammar: None,
        pooling: None,
    }
}

/// What a conversation's turn asks for.
fn judged() -> Sampling {
    Sampling { logprobs: Some(5), ..Sampling::greedy() }
}

type Told = (usize, RequestId, Event);

fn submit(thread: &EngineThread, who: usize, asked: Request, tell: &Sender<Told>) -> RequestId {
    let (tell, ids) = (tell.clone(), channel::<RequestId>());
    let mut id = None;
    let id_comes: Receiver<RequestId> = ids.1;
    let sink = Box::new(move |event: Event| {
        let id = *id.get_or_insert_with(|| id_comes.recv().unwrap());
        tell.send((who, id, event)).is_ok()
    });
    let id = thread.handle().submit(vec![(asked, sink)])[0];
    ids.0.send(id).unwrap();
    id
}

/// A conversation: what was said, and what the turn that runs has said.
struct Talk {
    member: &'static str,
    text: Vec<TokenId>,
    said: Vec<SampledToken>,
    runs: Option<RequestId>,
}

/// How far two answers to one prompt are apart, up to where they part, in logarithms of probabilities; and whether they part.
fn apart(one: &[SampledToken], other: &[SampledToken]) -> (f32, bool) {
    let of = |row: &SampledToken, token: TokenId| {
        let found = row.top.iter().find(|(other, _)| *other == token);
        found.map_or(-100.0, |(_, logprob)| *logprob)
    };
    let mut most = 0.0_f32;
    for (a, b) in one.iter().zip(other) {
        for token in [a.token, b.token] {
            most = most.max((of(a, token) - of(b, token)).abs());
        }
        if a.token != b.token {
            // The one that was said was the likelier one here and not there: they are no further apart than that.
            return (most, true);
        }
    }
    (most, one.len() != other.len())
}

/// Has an engine that keeps nothing answer, so many at a time, each prompt read whole.
fn answers(
    thread: &EngineThread,
    prompts: &[&[TokenId]],
    at_once: usize,
) -> Vec<Vec<SampledToken>> {
    let mut all = Vec::new();
    for (n, some) in prompts.chunks(at_once).enumerate() {
        let (tell, heard) = channel();
        for (i, prompt) in some.iter().enumerate() {
            let member = format!("{at_once} {n} {i}");
            submit(thread, i, request(&member, prompt, 24, judged()), &tell);
        }
        drop(tell);
        let mut said = vec![Vec::new(); some.len()];
        let mut left = some.len();
        while left > 0 {
            match heard.recv().unwrap() {
                (i, _, Event::Token(token)) => said[i].push(token),
                (_, _, Event::Finished { .. }) => left -= 1,
                (_, _, event @ (Event::Failed | Event::Refused(_))) => panic!("{event:?}"),
                _ => {}
            }
        }
        all.extend(said);
    }
    all
}

/// How two sets of answers compare.
struct Compared {
    /// How many part, and how many are not near each other.
    parted: usize,
    far: usize,
    /// By how much any are apart, in logarithms of probabilities.
    most: f32,
}

/// Prints it as well.
fn compare(what: &str, some: &[Vec<SampledToken>], others: &[Vec<SampledToken>]) -> Compared {
    let all: Vec<(f32, bool)> = some.iter().zip(others).map(|(a, b)| apart(a, b)).collect();
    let parted = all.iter().filter(|(_, parted)| *parted).count();
    let mut by: Vec<f32> = all.iter().map(|(by, _)| *by).collect();
    by.sort_by(f32::total_cmp);
    let (middle, most) = (by[by.len() / 2], by[by.len() - 1]);
    let far = by.iter().filter(|by| **by > NEAR).count();
    println!(
        "{what}: {parted} of {} part, {far} are not near; apart by {middle:.1e}, {most:.1e} at most",
        by.len()
    );
    Compared { parted, far, most }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_conversations_that_went_to_host_memory_and_came_back_say_what_they_would_have_said() {
    let (there, usual, _) = gone_and_come_back("llama", time());
    // No further apart than answers are that never left the card, give or take.
    assert!(there.most < NEAR.max(2.0 * usual.most), "{} apart", there.most);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_conversations_with_experts_that_went_to_host_memory_and_came_back_are_as_near_as_any() {
    let (there, usual, turns) = gone_and_come_back("qwen3_moe", time() / 4);
    assert!(there.far <= 2 * usual.far + turns / 20, "{} of {turns} are not near", there.far);
}

/// A mixed load in which conversations go and come back: how far their answers are from the same read whole, one at a time; how far
/// answers that never left the card are, sixteen at a time; and how many there are.
fn gone_and_come_back(family: &str, time: Duration) -> (Compared, Compared, usize) {
    let device = Device::open(0).unwrap();
    let (thread, memory) = engine(family, 2048, 64 << 20);
    let mut chance = Chance(4711);
    let (tell, heard) = channel();
    let members = ["ada", "bo", "cy"];
    let mut talks: Vec<Talk> = (0..18)
        .map(|n| Talk {
            member: members[n % 3],
            text: chance.text(60 + n as u64 * 9),
            said: Vec::new(),
            runs: None,
        })
        .collect();
    let mut turns: Vec<(Vec<TokenId>, Vec<SampledToken>)> = Vec::new();
    let mut noise: HashMap<RequestId, ()> = HashMap::new();
    let (mut cancelled, mut finished) = (0, 0);
    let mut before = 0;
    let began = Instant::now();
    loop {
        let open = began.elapsed() < time;
        if before == 0 && began.elapsed() > time / 4 {
            // Graphs are recorded by then, and pinned memory has grown.
            before = device.free_memory().unwrap();
        }
        for (who, talk) in talks.iter_mut().enumerate().filter(|_| open) {
            if talk.runs.is_none() && chance.below(4) == 0 {
                let asked = request(talk.member, &talk.text, 24, judged());
                talk.runs = Some(submit(&thread, who, asked, &tell));
            }
        }
        while open && noise.len() < 12 {
            let prompt = chance.text(1 + chance.0 % 300);
            let sampling = match chance.below(3) {
                0 => Sampling::greedy(),
                1 => Sampling { temperature: 0.8, top_p: 0.9, seed: 7, ..Sampling::greedy() },
                _ => Sampling { repetition_penalty: 1.1, ..Sampling::greedy() },
            };
            let member = members[chance.below(3) as usize];
            let asked = request(member, &prompt, 1 + chance.below(100) as u32, sampling);
            noise.insert(submit(&thread, usize::MAX, asked, &tell), ());
        }
        if open && chance.below(6) == 0 {
            // Somebody gives up: an answer nobody cares for, or a turn, also while its blocks come back.
            let all: Vec<RequestId> =
                noise.keys().copied().chain(talks.iter().filter_map(|talk| talk.runs)).collect();
            let id = all[chance.below(all.len() as u64) as usize];
            thread.handle().cancel(id);
            cancelled += 1;
            noise.remove(&id);
            for talk in talks.iter_mut().filter(|talk| talk.runs == Some(id)) {
                talk.runs = None;
                talk.said.clear();
            }
        }
        let wait = Duration::from_millis(if open { 5 } else { 2000 });
        let mut next = heard.recv_timeout(wait).ok();
        let none = next.is_none();
        while let Some((who, id, event)) = next.take() {
            let talk = talks.get_mut(who).filter(|talk| talk.runs == Some(id));
            match (event, talk) {
                (Event::Token(token), Some(talk)) => talk.said.push(token),
                (Event::Finished { .. }, Some(talk)) => {
                    finished += 1;
                    talk.runs = None;
                    let said = std::mem::take(&mut talk.said);
                    let prompt = talk.text.clone();
                    talk.text.extend(said.iter().map(|token| token.token));
                    talk.text.extend(chance.text(1 + chance.0 % 40));
                    turns.push((prompt, said));
                    if talk.text.len() > 420 {
                        talk.text = chance.text(40 + chance.0 % 200);
                    }
                }
                (Event::Finished { .. }, None) => {
                    finished += 1;
                    noise.remove(&id);
                }
                (Event::Refused(_), _) => {
                    noise.remove(&id);
                    talks.iter_mut().filter(|t| t.runs == Some(id)).for_each(|t| t.runs = None);
                }
                (Event::Unusable | Event::Failed | Event::Stuck(_), _) => panic!("it failed"),
                _ => {}
            }
            next = heard.try_recv().ok();
        }
        if none && !open {
            break;
        }
    }
    let handle = thread.handle();
    let stats = handle.stats();
    let kept = handle.kept().unwrap();
    println!(
        "{finished} answers and {cancelled} cancelled, {} turns of conversations; {} blocks given up, {} tokens restored, {} known, {} preemptions; {} MiB in host memory; {memory:?}",
        turns.len(),
        stats.evictions,
        stats.restored_tokens,
        stats.cached_tokens,
        stats.preemptions,
        kept.host_bytes >> 20
    );
    assert_eq!((stats.running, stats.waiting, stats.restoring, stats.blocks_used), (0, 0, 0, 0));
    assert!(noise.is_empty() && talks.iter().all(|talk| talk.runs.is_none()));
    assert!(turns.len() > 30 && cancelled > 5, "{} turns, {cancelled} cancelled", turns.len());
    assert!(stats.evictions > 100 && stats.restored_tokens > 1000, "{stats:?}");
    assert!(handle.settle(Duration::from_secs(20)));
    // Graphs that were recorded since take some; what grows with each answer would take more.
    let after = device.free_memory().unwrap();
    println!(
        "{} MiB of the card's memory more than after a quarter",
        before.saturating_sub(after) >> 20
    );
    assert!(before.saturating_sub(after) < 300 << 20);
    drop(handle);
    thread.join().unwrap();
    // Every block of host memory has come back.
    let memory = format!("{:?}", memory.unwrap());
    let numbers: Vec<&str> = memory.split(' ').collect();
    assert_eq!(numbers[0], numbers[2], "{memory}");

    // The same turns where nothing ever leaves the card.
    let (thread, _) = engine(family, 16 * 1024, 0);
    let last = &turns[turns.len().saturating_sub(400)..];
    let prompts: Vec<&[TokenId]> = last.iter().map(|(prompt, _)| prompt.as_slice()).collect();
    let said: Vec<Vec<SampledToken>> = last.iter().map(|(_, said)| said.clone()).collect();
    let alone = answers(&thread, &prompts, 1);
    let together = answers(&thread, &prompts, 16);
    let usual = compare("sixteen at once and one at a time", &together, &alone);
    let there = compare("gone and come back, and one at a time", &said, &alone);
    assert!(there.parted <= 2 * usual.parted + last.len() / 20, "{} part", there.parted);
    thread.join().unwrap();
    (there, usual, last.len())
}
