//! The engine's thread: it serves whoever comes, sleeps while nobody listens, and ends with the last.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use common::{Sums, alone, limits, request};
use polder_backend::{Backend, Limits, StepBatch, Ticket, TokenId};
use polder_scheduler::fake::FakeBackend;
use polder_scheduler::{Config, Event, Grammar, Matcher, Next, Refusal, SchedulerError, Sink};

#[test]
fn the_engine_thread_serves_many_callers_and_ends_with_the_last() {
    for steps_ahead in [0, 1] {
        let limits = limits(20, 4);
        let config = Config { max_waiting: 64, step_tokens: 16, steps_ahead, ..Config::default() };
        let engine = polder_scheduler::spawn(Box::new(FakeBackend::new(limits)), config).unwrap();
        let said: Arc<Mutex<BTreeMap<u64, Vec<Event>>>> = Arc::default();
        let (done, all_done) = mpsc::channel();
        let handle = engine.handle();
        let mut requests = Vec::new();
        for number in 0..20u64 {
            let mut request =
                request(&format!("m{}", number % 3), vec![1, number as u32], 12, number);
            request.grammar = (number % 2 == 0).then(|| Sums::grammar(9, Next::Complete));
            requests.push(request.clone());
            let (said, done) = (said.clone(), done.clone());
            handle.submit(vec![(
                request,
                Box::new(move |event: Event| {
                    let last = matches!(event, Event::Finished { .. });
                    said.lock().unwrap().entry(number).or_default().push(event);
                    if last {
                        done.send(()).unwrap();
                    }
                    true
                }),
            )]);
        }
        for _ in 0..20 {
            all_done.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        }
        for (number, request) in requests.iter().enumerate() {
            let said = &said.lock().unwrap()[&(number as u64)];
            assert_eq!(said[0], Event::Queued);
            let tokens: Vec<TokenId> = said
                .iter()
                .filter_map(|event| match event {
                    Event::Token(token) => Some(token.token),
                    _ => None,
                })
                .collect();
            assert_eq!(tokens, alone(request, handle.capacity()).0);
        }
        drop(handle);
        engine.join().unwrap();
    }
}

/// Has room for a few events that were not read yet.
struct Bounded {
    tell: mpsc::Sender<Event>,
    unread: Arc<AtomicUsize>,
}

impl Sink for Bounded {
    fn hear(&mut self, event: Event) -> bool {
        self.unread.fetch_add(1, Ordering::SeqCst);
        self.tell.send(event).is_ok()
    }
    fn has_room(&mut self) -> bool {
        self.unread.load(Ordering::SeqCst) < 6
    }
}

#[test]
fn the_engine_sleeps_while_all_readers_stall_and_goes_on_when_one_reads() {
    let engine =
        polder_scheduler::spawn(Box::new(FakeBackend::new(limits(20, 4))), Config::default())
            .unwrap();
    let handle = engine.handle();
    let (tell, heard) = mpsc::channel();
    let unread = Arc::new(AtomicUsize::new(0));
    let mut request = request("m", vec![1], 30, 1);
    request.stop_tokens = [].into();
    handle.submit(vec![(request, Box::new(Bounded { tell, unread: unread.clone() }))]);
    let wait = std::time::Duration::from_secs(20);
    let until = std::time::Instant::now() + wait;
    while handle.stats().sampled_tokens < 4 {
        assert!(std::time::Instant::now() < until, "{:?}", handle.stats());
        std::thread::yield_now();
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!((handle.stats().sampled_tokens, unread.load(Ordering::SeqCst)), (4, 6));
    assert_eq!(handle.hung(), None);
    let mut tokens = 0;
    loop {
        let event = heard.recv_timeout(wait).unwrap();
        tokens += usize::from(matches!(event, Event::Token(_)));
        if matches!(event, Event::Finished { .. }) {
            break;
        }
        unread.fetch_sub(1, Ordering::SeqCst);
        handle.wake();
    }
    assert_eq!(tokens, 30);
}

#[test]
fn a_listener_that_left_frees_its_blocks() {
    let limits = limits(20, 4);
    let backend = FakeBackend::new(limits).slowed(std::time::Duration::from_millis(1));
    let engine = polder_scheduler::spawn(Box::new(backend), Config::default()).unwrap();
    let handle = engine.handle();
    let mut endless = request("m", vec![1], 60, 1);
    endless.stop_tokens = [].into();
    let mut heard = 0;
    handle.submit(vec![(
        endless.clone(),
        Box::new(move |_: Event| {
            heard += 1;
            heard < 5
        }),
    )]);
    let ids = handle.submit(vec![(endless, Box::new(|_: Event| true))]);
    handle.cancel(ids[0]);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while handle.stats().sampled_tokens < 3 || handle.stats().blocks_used > 0 {
        assert!(std::time::Instant::now() < until, "{:?}", handle.stats());
        std::thread::yield_now();
    }
    assert_eq!(handle.stats().running, 0);
}

#[test]
fn a_device_that_fails_tells_everyone_and_ends_the_engine() {
    #[derive(Debug)]
    struct Broken(FakeBackend);
    impl Backend for Broken {
        fn limits(&self) -> Limits {
            self.0.limits()
        }
        fn submit(&mut self, _: &StepBatch) -> Result<Ticket, polder_backend::BackendError> {
            Err(polder_backend::BackendError::Device("it is on fire".into()))
        }
        fn collect(
            &mut self,
            _: Ticket,
        ) -> Result<polder_backend::StepOutput, polder_backend::BackendError> {
            unreachable!()
        }
    }
    let backend = Broken(FakeBackend::new(limits(20, 4)));
    let engine = polder_scheduler::spawn(Box::new(backend), Config::default()).unwrap();
    let (tell, heard) = mpsc::channel();
    let handle = engine.handle();
    handle.submit(vec![(
        request("m", vec![1], 4, 1),
        Box::new(move |event: Event| tell.send(event).is_ok()),
    )]);
    let wait = std::time::Duration::from_secs(20);
    assert_eq!(heard.recv_timeout(wait).unwrap(), Event::Queued);
    assert_eq!(heard.recv_timeout(wait).unwrap(), Event::Failed);
    assert!(matches!(engine.join(), Err(SchedulerError::Backend(_))));
    let (tell, heard) = mpsc::channel();
    handle.submit(vec![(
        request("m", vec![1], 4, 1),
        Box::new(move |event: Event| tell.send(event).is_ok()),
    )]);
    assert_eq!(heard.recv_timeout(wait).unwrap(), Event::Refused(Refusal::Stopping));
}

/// A grammar that allows everything and takes its time.
#[derive(Debug)]
struct Slow;

impl Grammar for Slow {
    fn first_mask(&self) -> Vec<u32> {
        vec![(1 << common::VOCAB) - 1]
    }

    fn begin(&self) -> Box<dyn Matcher> {
        Box::new(Self)
    }
}

impl Matcher for Slow {
    fn after(&mut self, token: TokenId) -> Next {
        assert!(token != TokenId(7), "the thread must live on");
        std::thread::sleep(std::time::Duration::from_millis(100));
        Next::Mask(self.first_mask())
    }
}

#[test]
fn nobody_waits_for_the_grammar_of_another() {
    let backend = FakeBackend::with(limits(40, 4), Box::new(|_, _| TokenId(5)));
    let engine = polder_scheduler::spawn(Box::new(backend), Config::default()).unwrap();
    let (said, hear) = mpsc::channel();
    let mut slow = request("m", vec![1], 4, 0);
    slow.grammar = Some(Arc::new(Slow));
    let other = request("n", vec![2], 50, 0);
    let jobs: Vec<(_, Box<dyn Sink>)> = [slow, other]
        .into_iter()
        .enumerate()
        .map(|(number, request)| {
            let said = said.clone();
            let hear = move |event: Event| said.send((number, event)).is_ok();
            (request, Box::new(hear) as Box<dyn Sink>)
        })
        .collect();
    engine.handle().submit(jobs);
    drop(said);
    let heard: Vec<(usize, Event)> = hear.iter().collect();
    let ended = |which: usize| {
        let last = |(number, event): &(usize, Event)| {
            *number == which && matches!(event, Event::Finished { .. })
        };
        heard.iter().position(last).unwrap()
    };
    assert!(ended(1) < ended(0));
    let slow_tokens = heard[..ended(1)]
        .iter()
        .filter(|(number, event)| *number == 0 && matches!(event, Event::Token(_)))
        .count();
    assert!(slow_tokens <= 3, "{slow_tokens}");
    engine.join().unwrap();
}

#[test]
fn a_grammar_that_panics_ends_its_own_answer() {
    let backend = FakeBackend::with(
        limits(40, 4),
        Box::new(|tokens, _| if tokens[0] == TokenId(1) { TokenId(7) } else { TokenId(5) }),
    );
    let engine = polder_scheduler::spawn(Box::new(backend), Config::default()).unwrap();
    let (said, hear) = mpsc::channel();
    for prompt in [1, 2] {
        let mut request = request("m", vec![prompt], 3, 0);
        request.grammar = Some(Arc::new(Slow));
        let said = said.clone();
        let hear = move |event: Event| said.send((prompt, event)).is_ok();
        engine.handle().submit(vec![(request, Box::new(hear))]);
    }
    drop(said);
    let heard: Vec<(u32, Event)> = hear.iter().collect();
    let last = |which| heard.iter().rfind(|(prompt, _)| *prompt == which).unwrap();
    assert!(matches!(last(1).1, Event::Stuck(_)));
    assert!(matches!(last(2).1, Event::Finished { sampled: 3, .. }));
    engine.join().unwrap();
}
