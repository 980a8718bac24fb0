//! The gateway's own figures, for stewards. Counts only: no names, no addresses.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use http::StatusCode;

use crate::limits::NoPlace;

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Tally {
    connections: AtomicU64,
    /// By the first digit of the status, 1 to 5.
    answers: [AtomicU64; 6],
    refused_address: AtomicU64,
    refused_full: AtomicU64,
    streams: Arc<AtomicI64>,
}

/// One answer of an engine that is under way.
pub(crate) struct StreamGuard(Arc<AtomicI64>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tally {
    pub(crate) fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, why: NoPlace) {
        match why {
            NoPlace::Address => &self.refused_address,
            NoPlace::Full => &self.refused_full,
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).min(5);
        self.answers[class].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stream(&self) -> StreamGuard {
        self.streams.fetch_add(1, Ordering::Relaxed);
        StreamGuard(self.streams.clone())
    }

    /// Answers of engines that are under way.
    pub fn streams(&self) -> i64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// In the text format that Prometheus reads.
    pub fn to_text(&self, open: usize) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, i128)]| {
            let _ = writeln!(text, "# HELP polder_gateway_{name} {help}");
            let _ = writeln!(text, "# TYPE polder_gateway_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "polder_gateway_{name}{labels} {value}");
            }
        };
        let count = |counter: &AtomicU64| i128::from(counter.load(Ordering::Relaxed));
        let bare = |value: i128| [(String::new(), value)];
        family("connections", "gauge", "Connections that are open.", &bare(open as i128));
        family(
            "connections_total",
            "counter",
            "Connections taken since the start.",
            &bare(count(&self.connections)),
        );
        family(
            "refused_connections_total",
            "counter",
            "Connections closed at once: their address, or the box, had too many.",
            &[
                ("{why=\"address\"}".to_owned(), count(&self.refused_address)),
                ("{why=\"full\"}".to_owned(), count(&self.refused_full)),
            ],
        );
        let answers: Vec<_> = (2..=5)
            .map(|class| (format!("{{status=\"{class}xx\"}}"), count(&self.answers[class])))
            .collect();
        family("answers_total", "counter", "Answers given, by class of status.", &answers);
        family(
            "streams",
            "gauge",
            "Answers of engines that are under way.",
            &bare(self.streams().into()),
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_prometheus_reads_them() {
        let tally = Tally::default();
        tally.answered(StatusCode::NOT_FOUND);
        let stream = tally.stream();
        let text = tally.to_text(3);
        assert!(text.contains("\npolder_gateway_answers_total{status=\"4xx\"} 1\n"), "{text}");
        assert!(text.contains("\npolder_gateway_streams 1\n"));
        assert!(text.starts_with("# HELP polder_gateway_connections "));
        drop(stream);
        assert_eq!(tally.streams(), 0);
    }
}
