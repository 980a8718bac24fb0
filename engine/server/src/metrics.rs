//! What the engine has done, as Prometheus reads it. Counts and times, never words.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use polder_scheduler::Stats;

/// Seconds over which the speed is averaged.
const WINDOW: u64 = 10;

const FIRST_TOKEN: [f64; 12] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const INTER_TOKEN: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Counters since the start.
#[derive(Debug)]
pub(crate) struct Metrics {
    prompt: AtomicU64,
    completion: AtomicU64,
    ignored_fields: AtomicU64,
    refused: AtomicU64,
    first_token: Histogram<12>,
    inter_token: Histogram<11>,
    speed: Mutex<Speed>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            prompt: AtomicU64::new(0),
            completion: AtomicU64::new(0),
            ignored_fields: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            first_token: Histogram::new(FIRST_TOKEN),
            inter_token: Histogram::new(INTER_TOKEN),
            speed: Mutex::new(Speed::new(Instant::now())),
        }
    }

    pub(crate) fn prompt_tokens(&self, count: u64) {
        self.prompt.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn completion_tokens(&self, count: u64) {
        self.completion.fetch_add(count, Ordering::Relaxed);
        self.speed.lock().unwrap_or_else(PoisonError::into_inner).add(Instant::now(), count);
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.record(after);
    }

    pub(crate) fn inter_token(&self, after: Duration) {
        self.inter_token.record(after);
    }

    pub(crate) fn ignored_fields(&self, count: usize) {
        self.ignored_fields.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The text of `/metrics`.
    pub(crate) fn text(&self, engine: &Stats) -> String {
        let mut text = String::with_capacity(4096);
        let speed = self
            .speed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tokens_per_second(Instant::now());
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        for (name, kind, help, value) in [
            ("requests_running", "gauge", "Sequences in a slot.", engine.running as f64),
            (
                "requests_paused",
                "gauge",
                "Of the running, those that wait for their readers.",
                engine.paused as f64,
            ),
            ("requests_waiting", "gauge", "Sequences waiting for a slot.", engine.waiting as f64),
            ("kv_blocks_used", "gauge", "KV blocks that sequences own.", engine.blocks_used as f64),
            (
                "kv_blocks_kept",
                "gauge",
                "KV blocks that nobody uses, kept for whoever begins alike.",
                engine.blocks_kept as f64,
            ),
            (
                "prefix_cache_queries_total",
                "counter",
                "Tokens of prompts that were started.",
                engine.asked_tokens as f64,
            ),
            (
                "prefix_cache_hits_total",
                "counter",
                "Of those, tokens that did not have to be read.",
                engine.cached_tokens as f64,
            ),
            (
                "prefix_cache_evictions_total",
                "counter",
                "Kept KV blocks that were given up for others.",
                engine.evictions as f64,
            ),
            ("kv_blocks_total", "gauge", "KV blocks in all.", engine.blocks_total as f64),
            ("tokens_per_second", "gauge", "Tokens sampled per second, last 10 s.", speed),
            ("prompt_tokens_total", "counter", "Tokens of prompts taken.", load(&self.prompt)),
            ("completion_tokens_total", "counter", "Tokens sampled.", load(&self.completion)),
            ("steps_total", "counter", "Forward passes.", engine.steps as f64),
            (
                "preemptions_total",
                "counter",
                "Times a sequence gave up its KV blocks for another.",
                engine.preemptions as f64,
            ),
            ("requests_refused_total", "counter", "Requests refused.", load(&self.refused)),
            (
                "fields_ignored_total",
                "counter",
                "Fields of requests that had no effect.",
                load(&self.ignored_fields),
            ),
        ] {
            let _ = writeln!(
                text,
                "# HELP polder_{name} {help}\n# TYPE polder_{name} {kind}\npolder_{name} {value}"
            );
        }
        self.first_token.write(
            &mut text,
            "time_to_first_token_seconds",
            "From taking a request to its first token.",
        );
        self.inter_token.write(
            &mut text,
            "inter_token_seconds",
            "Between two tokens of one answer.",
        );
        text
    }
}

#[derive(Debug)]
struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [AtomicU64; N],
    count: AtomicU64,
    micros: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N]) -> Self {
        Self {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            count: AtomicU64::new(0),
            micros: AtomicU64::new(0),
        }
    }

    fn record(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        if let Some(bucket) = self.bounds.iter().position(|bound| seconds <= *bound) {
            self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(value.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let _ = writeln!(text, "# HELP polder_{name} {help}\n# TYPE polder_{name} histogram");
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count.load(Ordering::Relaxed);
            let _ = writeln!(text, "polder_{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            text,
            "polder_{name}_bucket{{le=\"+Inf\"}} {count}\npolder_{name}_sum {sum}\n\
             polder_{name}_count {count}"
        );
    }
}

/// Tokens in each of the last seconds.
#[derive(Debug)]
struct Speed {
    start: Instant,
    /// The second that each place counts, and its tokens.
    seconds: [(u64, u64); WINDOW as usize + 1],
}

impl Speed {
    fn new(start: Instant) -> Self {
        Self { start, seconds: [(0, 0); WINDOW as usize + 1] }
    }

    fn add(&mut self, now: Instant, count: u64) {
        let second = (now - self.start).as_secs();
        let place = &mut self.seconds[(second % (WINDOW + 1)) as usize];
        if place.0 != second {
            *place = (second, 0);
        }
        place.1 += count;
    }

    fn tokens_per_second(&self, now: Instant) -> f64 {
        let second = (now - self.start).as_secs();
        let recent = |at: u64| at < second && at + WINDOW >= second;
        let tokens: u64 =
            self.seconds.iter().filter(|(at, _)| recent(*at)).map(|(_, tokens)| tokens).sum();
        tokens as f64 / second.clamp(1, WINDOW) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_forgets_what_is_long_past() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let mut speed = Speed::new(start);
        for second in 0..20 {
            speed.add(at(second), 7);
        }
        assert_eq!(speed.tokens_per_second(at(20)), 7.0);
        assert_eq!(speed.tokens_per_second(at(25)), 3.5);
        assert_eq!(speed.tokens_per_second(at(40)), 0.0);
    }

    #[test]
    fn every_time_is_in_its_bucket_and_all_above() {
        let metrics = Metrics::new();
        metrics.first_token(Duration::from_millis(60));
        metrics.first_token(Duration::from_secs(500));
        let text = metrics.text(&Stats::default());
        for line in [
            "polder_time_to_first_token_seconds_bucket{le=\"0.05\"} 0",
            "polder_time_to_first_token_seconds_bucket{le=\"0.1\"} 1",
            "polder_time_to_first_token_seconds_bucket{le=\"120\"} 1",
            "polder_time_to_first_token_seconds_bucket{le=\"+Inf\"} 2",
            "polder_time_to_first_token_seconds_count 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
