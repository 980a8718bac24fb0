//! What the engine has done, as Prometheus reads it. Counts and times, never words.
//!
//! What means the same as in vLLM has vLLM's name and its label for the model, so that dashboards
//! made for it show this engine too. The rest begins with `polder_`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use polder_kv::Counters;
use polder_scheduler::Stats;

use crate::turnover::Turnover;

/// Seconds over which the speed is averaged.
const WINDOW: u64 = 10;

const FIRST_TOKEN: [f64; 12] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const WHOLE: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 1800.0];
const INTER_TOKEN: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// How an answer ended, in vLLM's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Stop,
    Length,
    /// Nobody wanted it any more.
    Abort,
}

impl Ended {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Stop, "stop"), (Self::Length, "length"), (Self::Abort, "abort")];
}

/// Counters since the start.
#[derive(Debug)]
pub(crate) struct Metrics {
    prompt: AtomicU64,
    completion: AtomicU64,
    ignored_fields: AtomicU64,
    refused: AtomicU64,
    first_token: Histogram<12>,
    inter_token: Histogram<11>,
    whole: Histogram<12>,
    /// By [`Ended`].
    ended: [AtomicU64; 3],
    speed: Mutex<Speed>,
    turnover: Mutex<Turnover>,
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
            whole: Histogram::new(WHOLE),
            ended: [const { AtomicU64::new(0) }; 3],
            speed: Mutex::new(Speed::new(Instant::now())),
            turnover: Mutex::default(),
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

    /// An answer ended, so long after its request was taken.
    pub(crate) fn ended(&self, how: Ended, after: Duration) {
        self.ended[how as usize].fetch_add(1, Ordering::Relaxed);
        self.turnover.lock().unwrap_or_else(PoisonError::into_inner).ended(Instant::now());
        if how != Ended::Abort {
            self.whole.record(after);
        }
    }

    /// Seconds after which whoever found no place is likely to find one.
    pub(crate) fn soon(&self) -> u32 {
        self.turnover.lock().unwrap_or_else(PoisonError::into_inner).seconds(Instant::now())
    }

    pub(crate) fn ignored_fields(&self, count: usize) {
        self.ignored_fields.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The text of `/metrics`.
    pub(crate) fn text(&self, engine: &Stats, kept: Option<&Counters>, model: &str) -> String {
        let mut text = String::with_capacity(8192);
        let model = escaped(model);
        let vllm = format!("model_name=\"{model}\"");
        let speed = self
            .speed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tokens_per_second(Instant::now());
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let (used, total) = (engine.blocks_used as f64, engine.blocks_total as f64);
        let used_part = if total > 0.0 { used / total } else { 0.0 };
        let counter = |name: &str| name.ends_with("_total");
        let figures = [
            ("vllm:num_requests_running", "Sequences in a slot.", engine.running as f64),
            ("vllm:num_requests_waiting", "Sequences waiting for a slot.", engine.waiting as f64),
            (
                "vllm:kv_cache_usage_perc",
                "Part of the KV blocks that sequences own, 0 to 1.",
                used_part,
            ),
            (
                "vllm:prefix_cache_queries_total",
                "Tokens of prompts that were started.",
                engine.asked_tokens as f64,
            ),
            (
                "vllm:prefix_cache_hits_total",
                "Of those, tokens that did not have to be read.",
                engine.cached_tokens as f64,
            ),
            (
                "vllm:external_prefix_cache_queries_total",
                "Tokens of prompts that the device did not have and that were looked for beside it.",
                engine.looked_up_tokens as f64,
            ),
            (
                "vllm:external_prefix_cache_hits_total",
                "Of those, tokens that came back from host memory or disk.",
                engine.restored_tokens as f64,
            ),
            (
                "vllm:num_preemptions_total",
                "Times a sequence gave up its KV blocks for another.",
                engine.preemptions as f64,
            ),
            (
                "vllm:spec_decode_num_drafts_total",
                "Times that a sequence's next tokens were guessed.",
                engine.drafts as f64,
            ),
            (
                "vllm:spec_decode_num_draft_tokens_total",
                "Tokens guessed.",
                engine.draft_tokens as f64,
            ),
            (
                "vllm:spec_decode_num_accepted_tokens_total",
                "Of those, tokens that were right.",
                engine.accepted_tokens as f64,
            ),
            ("vllm:prompt_tokens_total", "Tokens of prompts taken.", load(&self.prompt)),
            ("vllm:generation_tokens_total", "Tokens sampled.", load(&self.completion)),
            (
                "polder_requests_paused",
                "Of the running, those that wait for their readers.",
                engine.paused as f64,
            ),
            (
                "polder_requests_restoring",
                "Of the running, those whose beginning is on its way back to the device.",
                engine.restoring as f64,
            ),
            ("polder_kv_blocks_used", "KV blocks that sequences own.", used),
            (
                "polder_kv_blocks_kept",
                "KV blocks that nobody uses, kept for whoever begins alike.",
                engine.blocks_kept as f64,
            ),
            ("polder_kv_blocks", "KV blocks in all.", total),
            (
                "polder_prefix_cache_evictions_total",
                "Kept KV blocks that were given up for others.",
                engine.evictions as f64,
            ),
            ("polder_tokens_per_second", "Tokens sampled per second, last 10 s.", speed),
            ("polder_steps_total", "Forward passes.", engine.steps as f64),
            ("polder_requests_refused_total", "Requests refused.", load(&self.refused)),
            (
                "polder_fields_ignored_total",
                "Fields of requests that had no effect.",
                load(&self.ignored_fields),
            ),
        ];
        for (name, help, value) in figures.into_iter().chain(kept.into_iter().flat_map(beside)) {
            let kind = if counter(name) { "counter" } else { "gauge" };
            let labels =
                if name.starts_with("vllm:") { format!("{{{vllm}}}") } else { String::new() };
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}"
            );
        }
        let name = "vllm:request_success_total";
        let _ = writeln!(text, "# HELP {name} Answers that ended, by why.\n# TYPE {name} counter");
        for (how, word) in Ended::ALL {
            let count = self.ended[how as usize].load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}{{finished_reason=\"{word}\",{vllm}}} {count}");
        }
        self.first_token.write(
            &mut text,
            "vllm:time_to_first_token_seconds",
            &vllm,
            "From taking a request to its first token.",
        );
        self.inter_token.write(
            &mut text,
            "vllm:inter_token_latency_seconds",
            &vllm,
            "Between two tokens of one answer.",
        );
        self.whole.write(
            &mut text,
            "vllm:e2e_request_latency_seconds",
            &vllm,
            "From taking a request to the end of its answer.",
        );
        text
    }
}

/// What is kept beside the device.
fn beside(kept: &Counters) -> [(&'static str, &'static str, f64); 13] {
    let off = u8::from(kept.disk_off);
    [
        ("polder_kv_host_bytes", "Bytes of KV kept in host memory.", kept.host_bytes as f64),
        ("polder_kv_disk_bytes", "Bytes of disk that kept KV takes.", kept.disk_bytes as f64),
        ("polder_kv_host_blocks", "KV blocks kept in host memory.", kept.host_blocks as f64),
        ("polder_kv_disk_blocks", "KV blocks kept on disk.", kept.disk_blocks as f64),
        (
            "polder_kv_spills_waiting",
            "KV blocks to be written to disk.",
            kept.waiting_spills as f64,
        ),
        ("polder_kv_spills_total", "KV blocks written to disk.", kept.spills as f64),
        (
            "polder_kv_host_restores_total",
            "KV blocks read in host memory.",
            kept.host_restores as f64,
        ),
        ("polder_kv_disk_restores_total", "KV blocks read from disk.", kept.disk_restores as f64),
        ("polder_kv_drops_total", "Kept KV blocks lost for want of room.", kept.drops as f64),
        ("polder_kv_refusals_total", "KV blocks not kept for want of room.", kept.refusals as f64),
        (
            "polder_kv_expired_total",
            "Kept KV blocks nobody used for the retention.",
            kept.expired as f64,
        ),
        (
            "polder_kv_read_failures_total",
            "Kept KV blocks that could not be read.",
            kept.failures as f64,
        ),
        (
            "polder_kv_disk_off",
            "1 where the disk takes no more KV, because writing failed.",
            off.into(),
        ),
    ]
}

/// A label's value as the text format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
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

    fn write(&self, text: &mut String, name: &str, labels: &str, help: &str) {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\",{labels}}} {below}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            text,
            "{name}_bucket{{le=\"+Inf\",{labels}}} {count}\n{name}_sum{{{labels}}} {sum}\n\
             {name}_count{{{labels}}} {count}"
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
        metrics.ended(Ended::Length, Duration::from_secs(2));
        metrics.ended(Ended::Abort, Duration::from_secs(2));
        let kept = Counters { spills: 7, disk_off: true, ..Counters::default() };
        let engine = Stats { draft_tokens: 9, accepted_tokens: 7, ..Stats::default() };
        let text = metrics.text(&engine, Some(&kept), "a\"b\\c");
        let model = r#"model_name="a\"b\\c""#;
        let ttft = "vllm:time_to_first_token_seconds";
        for line in [
            format!("{ttft}_bucket{{le=\"0.05\",{model}}} 0"),
            format!("{ttft}_bucket{{le=\"0.1\",{model}}} 1"),
            format!("{ttft}_bucket{{le=\"120\",{model}}} 1"),
            format!("{ttft}_bucket{{le=\"+Inf\",{model}}} 2"),
            format!("{ttft}_count{{{model}}} 2"),
            format!("vllm:request_success_total{{finished_reason=\"length\",{model}}} 1"),
            format!("vllm:request_success_total{{finished_reason=\"abort\",{model}}} 1"),
            format!("vllm:e2e_request_latency_seconds_count{{{model}}} 1"),
            format!("vllm:spec_decode_num_draft_tokens_total{{{model}}} 9"),
            format!("vllm:spec_decode_num_accepted_tokens_total{{{model}}} 7"),
            "# TYPE vllm:spec_decode_num_drafts_total counter".to_owned(),
            "# TYPE vllm:prompt_tokens_total counter".to_owned(),
            "# TYPE vllm:num_requests_running gauge".to_owned(),
            format!("vllm:external_prefix_cache_hits_total{{{model}}} 0"),
            "polder_kv_spills_total 7".to_owned(),
            "polder_kv_disk_off 1".to_owned(),
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
