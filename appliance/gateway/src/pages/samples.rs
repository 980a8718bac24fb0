//! The last minutes of every engine, in memory: what the dashboard's charts show.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use polder_control::PartState;
use polder_site::EngineName;

use crate::Gateway;
use crate::pages::metrics::{self, Figures};

const EVERY: Duration = Duration::from_secs(5);
/// Seven and a half minutes.
const KEPT: usize = 90;
const LONGEST_ANSWER: usize = 1 << 20;

/// One look at an engine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    pub(super) figures: Figures,
    /// Tokens written per second since the look before.
    pub(super) write_rate: Option<f64>,
    /// Tokens read per second since the look before.
    pub(super) read_rate: Option<f64>,
}

/// What was seen, by engine; oldest first. A look that got no answer is `None`.
pub(super) type Series = VecDeque<Option<Sample>>;

/// Everything seen lately.
pub(super) struct Samples {
    begun: AtomicBool,
    series: Mutex<BTreeMap<EngineName, Series>>,
}

impl Samples {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { begun: AtomicBool::new(false), series: Mutex::default() })
    }

    /// Begins to look, once; ends when the gateway is gone.
    pub(super) fn begin(self: &Arc<Self>, gateway: &Arc<Gateway>) {
        if self.begun.swap(true, Ordering::Relaxed) {
            return;
        }
        let (samples, gateway) = (self.clone(), Arc::downgrade(gateway));
        tokio::spawn(async move {
            let mut before = BTreeMap::new();
            let mut tick = tokio::time::interval(EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let Some(gateway) = gateway.upgrade() else { return };
                samples.look(&gateway, &mut before).await;
            }
        });
    }

    pub(super) fn of(&self, engine: &EngineName) -> Series {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        series.get(engine).cloned().unwrap_or_default()
    }

    async fn look(&self, gateway: &Gateway, before: &mut BTreeMap<EngineName, (Instant, Figures)>) {
        let status = gateway.status();
        for engine in &status.engines {
            let figures = if engine.part.state == PartState::Ready {
                ask(gateway, &engine.name).await
            } else {
                None
            };
            let at = Instant::now();
            let last = match figures {
                Some(figures) => before.insert(engine.name.clone(), (at, figures)),
                None => before.remove(&engine.name),
            };
            let sample = figures.map(|figures| step(figures, last, at));
            let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
            let own = series.entry(engine.name.clone()).or_default();
            if own.len() >= KEPT {
                own.pop_front();
            }
            own.push_back(sample);
        }
        let gone = |name: &EngineName| !status.engines.iter().any(|e| e.name == *name);
        self.series.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| !gone(name));
        before.retain(|name, _| !gone(name));
    }
}

fn step(figures: Figures, last: Option<(Instant, Figures)>, at: Instant) -> Sample {
    let rate = |now: Option<f64>, then: Option<f64>, seconds: f64| match (now, then) {
        // A smaller count is another engine process: its first look has no rate.
        (Some(now), Some(then)) if now >= then && seconds > 0.0 => Some((now - then) / seconds),
        _ => None,
    };
    let (seconds, then) = match last {
        Some((when, then)) => (at.duration_since(when).as_secs_f64(), then),
        None => (0.0, Figures::default()),
    };
    Sample {
        figures,
        write_rate: rate(figures.written, then.written, seconds),
        read_rate: rate(figures.read, then.read, seconds),
    }
}

async fn ask(gateway: &Gateway, engine: &EngineName) -> Option<Figures> {
    let request = http::Request::get("/metrics").body(Bytes::new()).expect("the path is a path");
    let look = async {
        let answer = gateway.engine_request(Some(engine.as_str()), request).await.ok()?;
        if !answer.response.status().is_success() {
            return None;
        }
        let body = Limited::new(answer.response.into_body(), LONGEST_ANSWER);
        let bytes = body.collect().await.ok()?.to_bytes();
        Some(metrics::read(&String::from_utf8_lossy(&bytes)))
    };
    tokio::time::timeout(Duration::from_secs(3), look).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_came_since_the_last_look_and_a_restart_has_none() {
        let start = Instant::now();
        let figures = |written| Figures { written: Some(written), ..Figures::default() };
        let later = start + Duration::from_secs(5);
        let rate = |now, then: Option<f64>| {
            step(figures(now), then.map(|n| (start, figures(n))), later).write_rate
        };
        assert_eq!(rate(150.0, Some(100.0)), Some(10.0));
        assert_eq!(rate(5.0, Some(100.0)), None);
        assert_eq!(rate(5.0, None), None);
    }
}
