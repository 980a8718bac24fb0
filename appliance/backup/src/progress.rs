use polder_control::{Progress, Unit};
use serde::Deserialize;

/// What restic says on standard output while it sends, line by line.
#[derive(Debug, PartialEq)]
pub(crate) enum News {
    /// It is further.
    Further(Progress),
    /// It is done.
    Done(Summary),
}

/// What restic says at the end.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Summary {
    #[serde(default)]
    pub(crate) data_added: u64,
    #[serde(default)]
    pub(crate) total_files_processed: u64,
    #[serde(default)]
    pub(crate) total_bytes_processed: u64,
    pub(crate) snapshot_id: String,
}

#[derive(Deserialize)]
struct Status {
    message_type: String,
    #[serde(default)]
    bytes_done: u64,
    total_bytes: Option<u64>,
    #[serde(default)]
    seconds_elapsed: u64,
}

/// Reads a line; nothing where it says nothing that we know.
pub(crate) fn read(line: &str) -> Option<News> {
    let status: Status = serde_json::from_str(line).ok()?;
    match status.message_type.as_str() {
        "summary" => serde_json::from_str(line).ok().map(News::Done),
        "status" => {
            let (done, total) = (status.bytes_done, status.total_bytes);
            Some(News::Further(progress("sending", done, total, status.seconds_elapsed as f64)))
        }
        _ => None,
    }
}

/// Figures after so many seconds.
pub(crate) fn progress(phase: &str, done: u64, total: Option<u64>, seconds: f64) -> Progress {
    let rate = (seconds > 0.2 && done > 0).then(|| done as f64 / seconds);
    let left = |total: u64, rate: f64| (total.saturating_sub(done) as f64 / rate).ceil() as u64;
    let eta_seconds = total.zip(rate).map(|(total, rate)| left(total, rate));
    Progress { phase: phase.to_owned(), done, total, unit: Unit::Bytes, rate, eta_seconds }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_restic_become_figures_with_the_time_that_is_left() {
        let line = r#"{"message_type":"status","seconds_elapsed":2,"percent_done":0.25,"total_files":4,"total_bytes":4000,"bytes_done":1000}"#;
        let Some(News::Further(progress)) = read(line) else { panic!() };
        assert_eq!((progress.done, progress.total), (1000, Some(4000)));
        assert_eq!((progress.rate, progress.eta_seconds), (Some(500.0), Some(6)));
        let line = r#"{"message_type":"summary","files_new":2,"data_added":1053,"total_files_processed":2,"total_bytes_processed":4,"total_duration":0.2,"snapshot_id":"d6ce503a"}"#;
        let Some(News::Done(summary)) = read(line) else { panic!() };
        assert_eq!((summary.data_added, summary.snapshot_id.as_str()), (1053, "d6ce503a"));
        assert_eq!(read("Please note that"), None);
        assert_eq!(read(r#"{"message_type":"of tomorrow"}"#), None);
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(line in ".{0,200}", done: u64, total: Option<u64>, seconds in 0.0..1e9) {
            let _ = (read(&line), progress("x", done, total, seconds));
        }
    }
}
