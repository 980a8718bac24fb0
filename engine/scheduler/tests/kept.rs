//! The engine's thread with a store beside it: what was read comes back after a restart, from memory and from disk, and
//! whatever is wrong with the store costs time and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{VOCAB, alone, limits, request};
use polder_backend::{Backend, Limits, StepBatch, StepOutput, Ticket, TokenId};
use polder_kv::{Machine, ModelDigest, Store, StoreOptions, System};
use polder_scheduler::fake::FakeBackend;
use polder_scheduler::{
    Config, EngineHandle, EngineThread, Event, MemberId, Request, spawn_with_store,
};

/// The machine, whose disk hangs at the test's word, and how often it was read from.
#[derive(Debug, Default)]
struct Hanging(AtomicBool, AtomicUsize);

impl System for Hanging {
    fn wall_seconds(&self) -> u64 {
        Machine.wall_seconds()
    }
    fn uptime_seconds(&self) -> u64 {
        Machine.uptime_seconds()
    }
    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        Machine.free_bytes(folder)
    }
    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }
    fn read_at(&self, file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        while self.0.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Machine.read_at(file, bytes, at)
    }
}

fn options(folder: Option<&Path>) -> StoreOptions {
    StoreOptions {
        folder: folder.map(Path::to_owned),
        host_bytes: 1 << 20,
        disk_bytes: 1 << 20,
        disk_reserve_bytes: 0,
        ..StoreOptions::new(ModelDigest([1; 32]), limits(1, 1).block_bytes() as usize, 4)
    }
}

fn engine(store: Store, config: Config) -> EngineThread {
    let backend = Box::new(FakeBackend::new(limits(60, 4)));
    spawn_with_store(backend, config, Some(Arc::new(store))).unwrap()
}

fn open(folder: &Path) -> Store {
    Store::open(options(Some(folder))).unwrap()
}

/// Runs one request: what it said, and how much of its prompt did not have to be read.
fn run(handle: &EngineHandle, request: Request) -> (Vec<TokenId>, u32) {
    let (tell, heard) = mpsc::channel();
    handle.submit(vec![(request, Box::new(move |event: Event| tell.send(event).is_ok()))]);
    let (mut said, mut known) = (Vec::new(), None);
    loop {
        match heard.recv_timeout(Duration::from_secs(60)).unwrap() {
            Event::Token(token) => said.push(token.token),
            Event::Begun { cached } => known = Some(cached),
            Event::Finished { .. } => return (said, known.unwrap()),
            Event::Queued => {}
            other => panic!("{other:?}"),
        }
    }
}

fn text(length: u32) -> Vec<u32> {
    (0..length).map(|at| (at * 5 + 1) % VOCAB).collect()
}

#[test]
fn a_conversation_comes_back_from_disk_in_another_engine_and_not_for_another_member() {
    let folder = tempfile::tempdir().unwrap();
    let first = request("ada", text(30), 3, 1);
    for (round, cached) in [0, 28, 28].into_iter().enumerate() {
        let engine = engine(open(folder.path()), Config::default());
        let handle = engine.handle();
        assert_eq!(run(&handle, first.clone()), (alone(&first, 64).0, cached), "{round}");
        let other = request(&format!("bob {round}"), text(30), 3, 1);
        assert_eq!(run(&handle, other).1, 0);
        assert_eq!(handle.stats().restored_tokens, u64::from(cached));
        assert!(handle.settle(Duration::from_secs(60)));
        assert!(handle.kept().unwrap().disk_blocks >= 7 * (round as u64 + 2));
        drop(handle);
        engine.join().unwrap();
    }
}

#[test]
fn what_the_device_gave_up_comes_back_from_host_memory() {
    let store = Store::open(options(None)).unwrap();
    let backend = Box::new(FakeBackend::new(limits(10, 2)));
    let engine = spawn_with_store(backend, Config::default(), Some(Arc::new(store))).unwrap();
    let handle = engine.handle();
    let texts: Vec<Request> = (1..4)
        .map(|n| request("ada", text(25).iter().map(|t| t * n % VOCAB).collect(), 2, 1))
        .collect();
    for text in texts.iter().chain(&texts) {
        assert_eq!(run(&handle, text.clone()).0, alone(text, 40).0);
    }
    let stats = handle.stats();
    assert!(stats.evictions > 0);
    assert_eq!(stats.restored_tokens + stats.cached_tokens, 3 * 24, "{stats:?}");
    assert!(stats.restored_tokens >= 48);
}

#[test]
fn a_disk_that_hangs_costs_the_time_that_was_allowed_for_it_and_is_not_asked_again_soon() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |number| request(&format!("m{number}"), text(30), 3, number);
    let writes = engine(open(folder.path()), Config::default());
    (0..9).for_each(|number| drop(run(&writes.handle(), ask(number))));
    assert!(writes.handle().settle(Duration::from_secs(60)));
    writes.join().unwrap();

    let disk = Arc::new(Hanging::default());
    disk.0.store(true, Ordering::Relaxed);
    let system = Arc::clone(&disk) as Arc<dyn System>;
    let store = Store::open_on(options(Some(folder.path())), system).unwrap();
    let patience = Duration::from_millis(200);
    let engine = engine(store, Config { restore_patience: patience, ..Config::default() });
    let handle = engine.handle();
    let begins = Instant::now();
    assert_eq!(run(&handle, ask(0)), (alone(&ask(0), 64).0, 0));
    let took = begins.elapsed();
    assert!(took >= patience && took < 50 * patience, "{took:?}");
    // A step that reads enough says how fast reading is, and the disk was slower.
    run(&handle, request("cyd", text(60), 2, 1));
    let begins = Instant::now();
    for number in 1..9 {
        assert_eq!(run(&handle, ask(number)), (alone(&ask(number), 64).0, 0));
    }
    assert!(begins.elapsed() < 4 * patience, "{:?}", begins.elapsed());
    assert_eq!((handle.stats().looked_up_tokens, handle.stats().restored_tokens), (330, 0));
    disk.0.store(false, Ordering::Relaxed);
    drop(handle);
    engine.join().unwrap();
}

#[test]
fn cancelling_while_blocks_come_back_frees_everything() {
    let folder = tempfile::tempdir().unwrap();
    let ask = || request("ada", text(30), 3, 1);
    let writes = engine(open(folder.path()), Config::default());
    run(&writes.handle(), ask());
    assert!(writes.handle().settle(Duration::from_secs(60)));
    writes.join().unwrap();

    let disk = Arc::new(Hanging::default());
    disk.0.store(true, Ordering::Relaxed);
    let system = Arc::clone(&disk) as Arc<dyn System>;
    let store = Store::open_on(options(Some(folder.path())), system).unwrap();
    let engine = engine(store, Config::default());
    let handle = engine.handle();
    let ids = handle.submit(vec![(ask(), Box::new(|_: Event| true))]);
    let until = Instant::now() + Duration::from_secs(20);
    while handle.stats().restoring == 0 {
        assert!(Instant::now() < until, "{:?}", handle.stats());
        std::thread::yield_now();
    }
    assert_eq!((handle.stats().running, handle.stats().blocks_used), (1, 8));
    handle.cancel(ids[0]);
    while handle.stats().blocks_used > 0 {
        assert!(Instant::now() < until, "{:?}", handle.stats());
        std::thread::yield_now();
    }
    disk.0.store(false, Ordering::Relaxed);
    assert_eq!(run(&handle, ask()), (alone(&ask(), 64).0, 28));
}

#[test]
fn what_nobody_waits_for_any_more_does_not_keep_the_disk_from_others() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |member| request(member, text(30), 3, 1);
    let writes = engine(open(folder.path()), Config::default());
    for member in ["ada", "bob"] {
        run(&writes.handle(), ask(member));
    }
    assert!(writes.handle().settle(Duration::from_secs(60)));
    writes.join().unwrap();

    let disk = Arc::new(Hanging::default());
    let system = Arc::clone(&disk) as Arc<dyn System>;
    let store = Store::open_on(options(Some(folder.path())), system).unwrap();
    disk.0.store(true, Ordering::Relaxed);
    let before = disk.1.load(Ordering::Relaxed);
    let reads = || disk.1.load(Ordering::Relaxed) - before;
    let until = Instant::now() + Duration::from_secs(20);
    let wait = |is: &dyn Fn() -> bool| {
        while !is() {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
    };
    let engine = engine(store, Config::default());
    let handle = engine.handle();
    let ids = handle.submit(vec![(ask("ada"), Box::new(|_: Event| true))]);
    // Seven blocks, and four threads that read.
    wait(&|| reads() == 4);
    handle.cancel(ids[0]);
    wait(&|| handle.stats().blocks_used == 0);
    let (tell, heard) = mpsc::channel();
    handle.submit(vec![(ask("bob"), Box::new(move |event: Event| tell.send(event).is_ok()))]);
    wait(&|| handle.stats().restoring == 1);
    disk.0.store(false, Ordering::Relaxed);
    let known = heard.iter().find_map(|event| match event {
        Event::Begun { cached } => Some(cached),
        _ => None,
    });
    assert_eq!((known, reads()), (Some(28), 4 + 7));
    assert_eq!(run(&handle, ask("ada")).1, 28, "it is there still");
}

#[test]
fn what_the_store_lost_is_put_there_again_though_nobody_asks_for_anything_more() {
    let store = Arc::new(Store::open(options(None)).unwrap());
    let backend = Box::new(FakeBackend::new(limits(60, 1)));
    let config = Config { step_tokens: 4, ..Config::default() };
    let engine = spawn_with_store(backend, config, Some(Arc::clone(&store))).unwrap();
    let handle = engine.handle();
    run(&handle, request("ada", text(60), 1, 1));
    store.forget("ada").unwrap();
    assert_eq!(handle.kept().unwrap().host_bytes, 0);
    assert_eq!(run(&handle, request("ada", text(60), 1, 1)).1, 56);
    assert!(handle.settle(Duration::from_secs(60)));
    assert_eq!(handle.kept().unwrap().host_bytes, 15 * limits(1, 1).block_bytes());
}

#[test]
fn a_member_who_is_forgotten_is_read_again_here_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (ada, bob) = (request("ada", text(30), 3, 1), request("bob", text(30), 3, 1));
    let keys = || folder.path().join("keys").read_dir().unwrap().count();
    let first = engine(open(folder.path()), Config::default());
    let handle = first.handle();
    run(&handle, ada.clone());
    run(&handle, bob.clone());
    assert!(handle.settle(Duration::from_secs(60)));
    assert_eq!(keys(), 2);
    handle.forget(&MemberId::new("ada")).unwrap();
    assert_eq!(keys(), 1);
    assert_eq!(handle.stats().blocks_kept, 7, "bob's");
    assert_eq!(run(&handle, bob.clone()).1, 28);
    drop(handle);
    first.join().unwrap();
    let second = engine(open(folder.path()), Config::default());
    assert_eq!(run(&second.handle(), ada.clone()), (alone(&ada, 64).0, 0));
    assert_eq!(run(&second.handle(), bob).1, 28);
}

#[test]
fn a_back_end_whose_blocks_cannot_be_read_goes_on_without_the_store() {
    #[derive(Debug)]
    struct Closed(FakeBackend);
    impl Backend for Closed {
        fn limits(&self) -> Limits {
            self.0.limits()
        }
        fn submit(&mut self, step: &StepBatch) -> Result<Ticket, polder_backend::BackendError> {
            self.0.submit(step)
        }
        fn collect(&mut self, at: Ticket) -> Result<StepOutput, polder_backend::BackendError> {
            self.0.collect(at)
        }
    }
    let store = Store::open(options(None)).unwrap();
    let backend = Box::new(Closed(FakeBackend::new(limits(60, 4))));
    let engine = spawn_with_store(backend, Config::default(), Some(Arc::new(store))).unwrap();
    let ask = request("ada", text(30), 3, 1);
    assert_eq!(run(&engine.handle(), ask.clone()), (alone(&ask, 64).0, 0));
    assert_eq!(engine.handle().kept(), None);
    engine.join().unwrap();
}

#[test]
fn a_step_that_takes_longer_than_a_disk_may_is_not_the_disks_fault() {
    let folder = tempfile::tempdir().unwrap();
    let ask = || request("ada", text(30), 3, 1);
    let writes = engine(open(folder.path()), Config::default());
    run(&writes.handle(), ask());
    assert!(writes.handle().settle(Duration::from_secs(60)));
    writes.join().unwrap();

    let backend = FakeBackend::new(limits(60, 4)).slowed(Duration::from_millis(150));
    let config = Config { restore_patience: Duration::from_millis(100), ..Config::default() };
    let store = Some(Arc::new(open(folder.path())));
    let engine = spawn_with_store(Box::new(backend), config, store).unwrap();
    let handle = engine.handle();
    let mut busy = request("bob", vec![1], 40, 1);
    busy.stop_tokens = [].into();
    handle.submit(vec![(busy, Box::new(|_: Event| true))]);
    assert_eq!(run(&handle, ask()), (alone(&ask(), 64).0, 28));
    assert_eq!(handle.stats().running, 1, "the other one runs all the while");
}
