//! Reads what an engine tells about itself, in the Prometheus text format. Pure.

/// What a dashboard shows of one engine. A figure that the engine does not tell is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Figures {
    /// Conversations being answered.
    pub(super) running: Option<f64>,
    /// Requests in the queue.
    pub(super) waiting: Option<f64>,
    /// Share of the KV blocks in use, 0 to 1.
    pub(super) kv_used: Option<f64>,
    /// Tokens written since the engine started.
    pub(super) written: Option<f64>,
    /// Tokens read since the engine started.
    pub(super) read: Option<f64>,
}

/// No engine has so many lines to say.
const MOST_LINES: usize = 5_000;

/// The names that our engine uses; series of one name with different labels are added up.
const RUNNING: &str = "vllm:num_requests_running";
const WAITING: &str = "vllm:num_requests_waiting";
const KV_USED: &str = "polder_kv_blocks_used";
const KV_TOTAL: &str = "polder_kv_blocks";
const WRITTEN: &str = "vllm:generation_tokens_total";
const READ: &str = "vllm:prompt_tokens_total";

/// Takes what it knows and passes over the rest.
pub(super) fn read(text: &str) -> Figures {
    let (mut figures, mut used, mut total) = (Figures::default(), None, None);
    for line in text.lines().take(MOST_LINES) {
        let Some((name, value)) = sample(line) else { continue };
        let place = match name {
            RUNNING => &mut figures.running,
            WAITING => &mut figures.waiting,
            WRITTEN => &mut figures.written,
            READ => &mut figures.read,
            KV_USED => &mut used,
            KV_TOTAL => &mut total,
            _ => continue,
        };
        *place = Some(place.unwrap_or(0.0) + value);
    }
    figures.kv_used = match (used, total) {
        (Some(used), Some(total)) if total > 0.0 => Some((used / total).clamp(0.0, 1.0)),
        _ => None,
    };
    figures
}

/// `name{labels} value [time]`
fn sample(line: &str) -> Option<(&str, f64)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (name, rest) = match line.split_once('{') {
        Some((name, rest)) => (name, rest.rsplit_once('}')?.1),
        None => line.split_once(char::is_whitespace)?,
    };
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some((name.trim(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_says_is_read_and_the_rest_passed_over() {
        let text = "# HELP vllm:num_requests_running x\n# TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running 3\nvllm:num_requests_waiting{class=\"a}b\"} 1 1700000000\n\
            vllm:num_requests_waiting{class=\"c\"} 2\npolder_kv_blocks_used 25\n\
            polder_kv_blocks 100\nvllm:generation_tokens_total 1e3\nother_metric 7\n";
        let figures = read(text);
        assert_eq!(figures.running, Some(3.0));
        assert_eq!(figures.waiting, Some(3.0));
        assert_eq!(figures.kv_used, Some(0.25));
        assert_eq!(figures.written, Some(1000.0));
        assert_eq!(figures.read, None);
    }

    #[test]
    fn numbers_that_are_none_are_passed_over() {
        let text = "vllm:num_requests_running NaN\npolder_kv_blocks_used 1\npolder_kv_blocks 0\n\
            vllm:num_requests_waiting -1\nvllm:prompt_tokens_total +Inf\n{} {}\n";
        assert_eq!(read(text), Figures::default());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(polder_kv_blocks_used|[ -~\n]){0,40}") {
            let _ = read(&text);
        }
    }
}
