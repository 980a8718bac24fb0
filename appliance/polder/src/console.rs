//! What a person sees: text on standard output, progress and errors on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use polder_control::{Progress, Unit};

/// Without a terminal a line of progress is printed this often.
const PLAIN_PAUSE: Duration = Duration::from_secs(5);

/// Prints to standard output. Whoever reads it may stop early (`polder recipes | head`): that is
/// an end, not an error.
pub(crate) fn say(text: impl std::fmt::Display) {
    match heard(text) {
        Ok(true) => {}
        Ok(false) => std::process::exit(0),
        Err(error) => {
            complain(format!("error: {error:#}"));
            std::process::exit(1);
        }
    }
}

/// Prints to standard output, for a process that has to end in order: false when nobody reads it
/// any more.
pub(crate) fn heard(text: impl std::fmt::Display) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("could not write to standard output"),
    }
}

/// A line on standard error. Whoever read it may be gone, and then there is nobody to tell.
pub(crate) fn complain(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// An error and what it came from, leaving out what has been said already.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if said.is_empty() {
            said = cause;
        } else if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

/// One line on standard error that says how far something is: rewritten in place on a terminal,
/// repeated now and then where the output is kept.
pub(crate) struct ProgressLine {
    terminal: bool,
    shown: Option<(String, Instant)>,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: None }
    }

    pub(crate) fn show(&mut self, title: &str, progress: Option<&Progress>) {
        let text = match progress {
            Some(progress) if self.terminal => format!("{title}  {}", bar(progress)),
            Some(progress) => format!("{title}: {}", figures(progress)),
            None => title.to_owned(),
        };
        let due = match &self.shown {
            None => true,
            Some((last, at)) if self.terminal => *last != text && at.elapsed() > REDRAW,
            // A new phase is news at once, further figures now and then.
            Some((last, at)) => {
                head(last) != head(&text) || (at.elapsed() > PLAIN_PAUSE && *last != text)
            }
        };
        if !due {
            return;
        }
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K{text}").and_then(|()| io::stderr().flush());
        } else {
            complain(&text);
        }
        self.shown = Some((text, Instant::now()));
    }

    /// The line has done its duty; what follows begins on a new one.
    pub(crate) fn finish(&mut self, text: &str) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        if !text.is_empty() {
            complain(text);
        }
        self.shown = None;
    }
}

const REDRAW: Duration = Duration::from_millis(80);

/// What a line is about, without its figures.
fn head(text: &str) -> &str {
    let end = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
    &text[..end]
}

fn bar(progress: &Progress) -> String {
    const WIDTH: usize = 24;
    let Some(fraction) = progress.fraction() else { return figures(progress) };
    let full = (fraction * WIDTH as f64) as usize;
    format!("[{}{}] {}", "=".repeat(full), " ".repeat(WIDTH - full), figures(progress))
}

/// `fetching, 12.0 of 94.0 MiB, 3.1 MiB/s, 26 s left`.
pub(crate) fn figures(progress: &Progress) -> String {
    let Progress { phase, done, total, unit, rate, eta_seconds } = progress;
    let amount = |n: u64| match unit {
        Unit::Bytes => bytes(n),
        Unit::Items => n.to_string(),
    };
    let mut text = phase.clone();
    let of = match total {
        Some(total) => format!("{} of {}", amount(*done), amount(*total)),
        None => amount(*done),
    };
    if *done > 0 || total.is_some() {
        let gap = if text.is_empty() { "" } else { ", " };
        text += &format!("{gap}{of}");
    }
    if let Some(rate) = rate {
        text += &format!(", {}/s", amount(*rate as u64));
    }
    if let Some(seconds) = eta_seconds {
        text += &format!(", {} left", span(*seconds));
    }
    text
}

/// Bytes as people say them.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_never_says_the_same_twice() {
        let inner = anyhow::anyhow!("no such file");
        let error = inner.context("could not read x: no such file").context("could not start");
        assert_eq!(sentence(&error), "could not start: could not read x: no such file");
    }

    #[test]
    fn figures_read_as_a_line() {
        let mut progress = Progress {
            phase: "fetching".into(),
            done: 12 << 20,
            total: Some(94 << 20),
            unit: Unit::Bytes,
            rate: Some(3.0 * 1024.0 * 1024.0),
            eta_seconds: Some(27),
        };
        let text = figures(&progress);
        assert_eq!(text, "fetching, 12.0 MiB of 94.0 MiB, 3.0 MiB/s, 27 s left");
        assert!(bar(&progress).starts_with("[===                     ] fetching"));
        progress.done = u64::MAX;
        assert!(bar(&progress).starts_with("[========================]"));
    }
}
