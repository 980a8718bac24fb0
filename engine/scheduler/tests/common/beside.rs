//! Tiers that are a map: reads come late, never, in any order, or fail, as a seed says.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // Each test file uses its part.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use polder_backend::{Backend, Begun, Carry, HostBlock, TokenId};
use polder_kv::{ChainDigest, ModelDigest, Tier};
use polder_scheduler::fake::FakeBackend;
use polder_scheduler::{KeptBlock, MemberId, Owner, PutWork, RestoreId, Scheduler, Tiers};

type Map = Arc<Mutex<BTreeMap<(Owner, ChainDigest), Vec<u8>>>>;

/// What the scheduler sees.
#[derive(Debug)]
struct MapTiers {
    map: Map,
    /// Restoring is not worth it every so many times; 0 is never.
    unless: u32,
    asked: u32,
    block_tokens: usize,
}

fn root() -> ChainDigest {
    ChainDigest::root(&ModelDigest([3; 32]))
}

impl Tiers for MapTiers {
    fn root(&self) -> ChainDigest {
        root()
    }

    fn find(&mut self, owner: &Owner, tokens: &[TokenId]) -> Vec<KeptBlock> {
        let mut digest = root();
        let mut found = Vec::new();
        for part in tokens.chunks_exact(self.block_tokens) {
            digest = digest.then(part);
            if !self.contains(owner, &digest) {
                break;
            }
            found.push(KeptBlock { digest, tier: Tier::Disk });
        }
        found
    }

    fn contains(&mut self, owner: &Owner, digest: &ChainDigest) -> bool {
        self.map.lock().unwrap().contains_key(&(owner.clone(), *digest))
    }

    fn worth_restoring(&mut self, blocks: usize, _: Tier) -> bool {
        assert!(blocks > 0);
        self.asked += 1;
        self.unless == 0 || !self.asked.is_multiple_of(self.unless)
    }
}

/// What carries out what the scheduler wants.
pub struct Beside {
    map: Map,
    reads: Vec<(RestoreId, usize, Owner, ChainDigest)>,
    /// Those of which something never comes, and the turn in which that is noticed.
    hang: Vec<(RestoreId, usize)>,
    seed: u64,
    /// No trouble: every read comes in the turn after it was asked for.
    pub smooth: bool,
    /// Nothing comes for now.
    pub hold: bool,
    pub restored: usize,
    /// Most blocks that were put at once.
    pub most_put: usize,
    turn: usize,
    /// On their way out and in, where the back end takes its time.
    leaving: VecDeque<(Carry, Vec<PutWork>)>,
    arriving: VecDeque<(Carry, RestoreId, usize)>,
}

impl Beside {
    /// With no seed nothing goes wrong and everything is at once.
    pub fn new(scheduler: Scheduler, block_tokens: u32, seed: u64) -> (Self, Scheduler) {
        let map = Map::default();
        let (smooth, unless) = (seed == 0, (seed % 5) as u32);
        let tiers = MapTiers {
            map: Arc::clone(&map),
            unless: if smooth { 0 } else { unless },
            asked: 0,
            block_tokens: block_tokens as usize,
        };
        let (reads, hang) = (Vec::new(), Vec::new());
        let (leaving, arriving) = (VecDeque::new(), VecDeque::new());
        let (hold, restored, most_put, turn) = (false, 0, 0, 0);
        let beside = Self {
            map,
            reads,
            hang,
            seed,
            smooth,
            hold,
            restored,
            most_put,
            turn,
            leaving,
            arriving,
        };
        (beside, scheduler.with_tiers(Box::new(tiers)))
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % below
    }

    /// Before a step is planned: what became full is kept, if there is room.
    pub fn put(&mut self, scheduler: &mut Scheduler, backend: &mut FakeBackend) {
        self.carried(scheduler, backend);
        let mut work = Vec::new();
        scheduler.put_work(backend.export_room(), &mut work);
        self.most_put = self.most_put.max(work.len());
        let blocks: Vec<_> = work.iter().map(|put| put.block).collect();
        match backend.begin_export(&blocks).unwrap() {
            Begun::Done(blocks) => self.left(work, blocks, scheduler),
            Begun::Later(carry) => self.leaving.push_back((carry, work)),
        }
    }

    /// Takes what has left, and what has come.
    fn carried(&mut self, scheduler: &mut Scheduler, backend: &mut FakeBackend) {
        while let Some(carried) = backend.carried(false).unwrap() {
            let is = |carry: &Carry| *carry == carried.carry;
            if self.leaving.front().is_some_and(|(carry, _)| is(carry)) {
                let (_, work) = self.leaving.pop_front().unwrap();
                self.left(work, carried.blocks, scheduler);
            } else {
                let (carry, id, at) = self.arriving.pop_front().unwrap();
                assert!(is(&carry), "copies are done in another order than they were begun");
                self.landed(id, at, scheduler);
            }
        }
    }

    fn left(&mut self, work: Vec<PutWork>, blocks: Vec<HostBlock>, scheduler: &mut Scheduler) {
        let mut refused = Vec::new();
        assert_eq!(work.len(), blocks.len());
        for (put, bytes) in work.into_iter().zip(blocks) {
            if refused.contains(&put.id) {
                continue;
            }
            let says: Vec<u8> = put.tokens.iter().map(|token| token.0 as u8 + 1).collect();
            assert_eq!(bytes[..], says, "a block was offered that holds something else");
            let mut map = self.map.lock().unwrap();
            let found = put.parent == root() || map.contains_key(&(put.owner.clone(), put.parent));
            let room = self.smooth || !(self.seed >> 20).is_multiple_of(16);
            if found && room {
                map.insert((put.owner, put.parent.then(&put.tokens)), bytes.to_vec());
                drop(map);
            } else {
                drop(map);
                scheduler.not_kept(put.id);
                refused.push(put.id);
            }
            self.random(2);
        }
    }

    fn landed(&mut self, id: RestoreId, at: usize, scheduler: &mut Scheduler) {
        if scheduler.place_of(id, at).is_some() {
            scheduler.restored(id, at);
            self.restored += 1;
        }
        // Told twice, and of a block that is not there: nobody minds.
        scheduler.restored(id, at);
        assert_eq!(scheduler.place_of(id, at), None);
        assert_eq!(scheduler.place_of(id, 1_000_000), None);
    }

    /// After a step was planned: reads are asked for, and some come.
    pub fn restore(&mut self, scheduler: &mut Scheduler, backend: &mut FakeBackend) {
        self.turn += 1;
        let mut work = Vec::new();
        scheduler.restore_work(&mut work);
        for work in work {
            let reads = work.blocks.iter().enumerate();
            self.reads.extend(reads.map(|(at, b)| (work.id, at, work.owner.clone(), b.digest)));
        }
        let come = match self.smooth {
            _ if self.hold => 0,
            true => self.reads.len(),
            false if self.reads.is_empty() => 0,
            false => self.random(self.reads.len() + 1),
        };
        for _ in 0..come {
            let which = if self.smooth { 0 } else { self.random(self.reads.len()) };
            let (id, at, owner, digest) = self.reads.remove(which);
            let fate = if self.smooth { 9 } else { self.random(10) };
            let bytes = self.map.lock().unwrap().get(&(owner, digest)).cloned();
            match (fate, bytes) {
                (0, _) => self.hang.push((id, self.turn + 3)),
                (1, _) | (_, None) => scheduler.not_restored(id, at),
                (_, Some(bytes)) => {
                    let Some(block) = scheduler.place_of(id, at) else { continue };
                    match backend.begin_import(vec![(block, Arc::new(bytes.into()))]).unwrap() {
                        Begun::Done(_) => self.landed(id, at, scheduler),
                        Begun::Later(carry) => self.arriving.push_back((carry, id, at)),
                    }
                }
            }
        }
        for (id, when) in std::mem::take(&mut self.hang) {
            match when <= self.turn {
                true => scheduler.stop_restoring(id),
                false => self.hang.push((id, when)),
            }
        }
    }

    /// Something may still come.
    pub fn busy(&self) -> bool {
        let reads = !self.reads.is_empty() || !self.hang.is_empty();
        reads || self.is_putting() || !self.arriving.is_empty()
    }

    /// Something is on its way out.
    pub fn is_putting(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// What another one kept is there.
    pub fn take_over(&mut self, other: &Self) {
        *self.map.lock().unwrap() = other.map.lock().unwrap().clone();
    }

    /// A block is lost.
    pub fn lose(&mut self, which: proptest::sample::Index) {
        let mut map = self.map.lock().unwrap();
        if !map.is_empty() {
            let at = map.keys().nth(which.index(map.len())).unwrap().clone();
            map.remove(&at);
        }
    }

    /// As the store does it.
    pub fn forget(&mut self, member: &MemberId) {
        let gone = [Owner::Trusting, Owner::Member(member.clone())];
        self.map.lock().unwrap().retain(|(owner, _), _| !gone.contains(owner));
        // The engine's keeper drops what is on its way for them.
        for (_, work) in &mut self.leaving {
            for put in work.iter_mut().filter(|put| gone.contains(&put.owner)) {
                put.parent = root().then(&[]);
            }
        }
    }

    pub fn kept(&self) -> usize {
        self.map.lock().unwrap().len()
    }
}
