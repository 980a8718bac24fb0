use maud::{Markup, Render, html};

use crate::units;

/// How a thing is, by colour and by word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Neither good nor bad.
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Warn,
    /// Wrong.
    Bad,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Good => "good",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// A sentence across the page: what was done, or what is wrong.
pub fn banner(tone: Tone, body: Markup) -> Markup {
    let role = if tone == Tone::Bad { "alert" } else { "status" };
    html! { div.banner.(tone.class()) role=(role) { (body) } }
}

/// A titled box.
pub fn card(title: &str, body: Markup) -> Markup {
    html! { section.card { h2 { (title) } (body) } }
}

/// A word in a pill.
pub fn badge(tone: Tone, word: &str) -> Markup {
    html! { span.badge.(tone.class()) { (word) } }
}

/// What is shown where there is nothing yet.
pub fn empty(sentence: &str) -> Markup {
    html! { p.empty { (sentence) } }
}

/// A figure with its name above and a note below.
pub fn stat(label: &str, value: &str, note: Markup) -> Markup {
    html! {
        div.stat {
            p.stat-label { (label) }
            p.stat-value { (value) }
            div.stat-note { (note) }
        }
    }
}

/// Names and values in two columns.
pub fn facts(rows: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts { @for (name, value) in rows { div { dt { (name) } dd { (value) } } } }
    }
}

/// A table that scrolls inside itself on a narrow screen. Every row has as many cells as `head`.
pub fn table(caption: &str, head: &[&str], rows: &[Vec<Markup>]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(caption) {
            table {
                caption.hidden-visually { (caption) }
                thead { tr { @for name in head { th scope="col" { (name) } } } }
                tbody {
                    @for row in rows {
                        tr {
                            @for (name, cell) in head.iter().zip(row) { td data-name=(name) { div { (cell) } } }
                        }
                    }
                }
            }
        }
    }
}

/// One labelled input.
#[derive(Debug, Clone, Copy, Default)]
pub struct Field<'a> {
    /// What it is called in the form; also its id, unless that is given.
    pub name: &'a str,
    /// Its id, where another form of the page has a field of the same name; the name when empty.
    pub id: &'a str,
    /// What a person reads.
    pub label: &'a str,
    /// `text` when empty.
    pub kind: &'a str,
    /// What is in it.
    pub value: &'a str,
    /// A sentence below the label.
    pub hint: &'a str,
    /// What is wrong with what was written; empty if nothing is.
    pub error: &'a str,
    /// The browser's `autocomplete` word; `off` when empty.
    pub autocomplete: &'a str,
    /// Must be filled.
    pub required: bool,
    /// Gets the keyboard when the page opens.
    pub autofocus: bool,
}

/// A [`Field`] with its label, hint and error, tied together for those who hear the page.
pub fn field(f: &Field<'_>) -> Markup {
    let or = |text: &'static str, given| {
        if str::is_empty(given) { text.to_owned() } else { given.to_owned() }
    };
    let id = if f.id.is_empty() { f.name } else { f.id };
    let (hint, error) = (format!("{id}-hint"), format!("{id}-error"));
    let mut described: Vec<&str> = Vec::new();
    if !f.hint.is_empty() {
        described.push(&hint);
    }
    if !f.error.is_empty() {
        described.push(&error);
    }
    let described = (!described.is_empty()).then(|| described.join(" "));
    html! {
        div.field .wrong[!f.error.is_empty()] {
            label for=(id) { (f.label) }
            @if !f.hint.is_empty() { p.hint id=(hint) { (f.hint) } }
            input id=(id) name=(f.name) type=(or("text", f.kind)) value=[(f.kind != "password").then_some(f.value)]
                autocomplete=(or("off", f.autocomplete)) required[f.required] autofocus[f.autofocus]
                aria-describedby=[described] aria-invalid=[(!f.error.is_empty()).then_some("true")];
            @if !f.error.is_empty() { p.error id=(error) { (f.error) } }
        }
    }
}

/// One answer of a [`select`].
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// What is sent.
    pub value: &'a str,
    /// What is read.
    pub label: &'a str,
}

/// A labelled choice.
pub fn select(name: &str, label: &str, hint: &str, choices: &[Choice<'_>], chosen: &str) -> Markup {
    html! {
        div.field {
            label for=(name) { (label) }
            @if !hint.is_empty() { p.hint id=(format!("{name}-hint")) { (hint) } }
            select id=(name) name=(name) aria-describedby=[(!hint.is_empty()).then(|| format!("{name}-hint"))] {
                @for c in choices { option value=(c.value) selected[c.value == chosen] { (c.label) } }
            }
        }
    }
}

/// A box to tick.
pub fn tick(name: &str, label: &str, hint: &str, ticked: bool) -> Markup {
    html! {
        div.field.tick {
            input id=(name) name=(name) type="checkbox" value="yes" checked[ticked]
                aria-describedby=[(!hint.is_empty()).then(|| format!("{name}-hint"))];
            label for=(name) { (label) }
            @if !hint.is_empty() { p.hint id=(format!("{name}-hint")) { (hint) } }
        }
    }
}

/// A value that a form sends along unseen.
pub fn hidden(name: &str, value: &str) -> Markup {
    html! { input type="hidden" name=(name) value=(value); }
}

/// Text to be copied, with a button where there is JavaScript. `id` must be unique on the page.
pub fn copyable(id: &str, label: &str, text: impl Render) -> Markup {
    html! {
        div.copyable {
            pre tabindex="0" aria-label=(label) { code id=(id) { (text) } }
            button.quiet.copy type="button" data-copy=(id) hidden aria-label=(format!("Copy: {label}")) { "Copy" }
        }
    }
}

/// How far a thing is.
#[derive(Debug, Clone, Default)]
pub struct ProgressView {
    /// What is being done: `fetching`.
    pub what: String,
    /// From 0 to 1; `None` where nobody knows.
    pub fraction: Option<f64>,
    /// `42 MiB of 94 MiB`; may be empty.
    pub amount: String,
    /// `12 MiB/s`; may be empty.
    pub rate: String,
    /// Seconds left, where known.
    pub eta: Option<u64>,
}

/// A bar, and the same in words.
pub fn progress(p: &ProgressView) -> Markup {
    let fraction = p.fraction.filter(|f| f.is_finite()).map(|f| f.clamp(0.0, 1.0));
    let left = p.eta.map(|s| format!("about {} left", units::duration(s)));
    let words: Vec<&str> = [p.amount.as_str(), p.rate.as_str(), left.as_deref().unwrap_or("")]
        .into_iter()
        .filter(|w| !w.is_empty())
        .collect();
    html! {
        div.progress {
            p.progress-what {
                span { (p.what) }
                @if let Some(f) = fraction { span { (units::percent(f)) } }
            }
            @match fraction {
                Some(f) => progress max="1" value=(format!("{f:.4}")) aria-label=(p.what) { (units::percent(f)) },
                None => progress aria-label=(p.what) {},
            }
            @if !words.is_empty() { p.progress-words { (words.join(" · ")) } }
        }
    }
}

/// How far a step of [`steps`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepMark {
    /// Behind us.
    Done,
    /// Where we are.
    Now,
    /// To come.
    Later,
    /// Went wrong.
    Failed,
}

/// Steps in order: of the wizard, or of a plan.
pub fn steps(label: &str, steps: &[(StepMark, &str)]) -> Markup {
    html! {
        ol.steps aria-label=(label) {
            @for (mark, name) in steps {
                @let (class, word) = match mark {
                    StepMark::Done => ("done", "done: "),
                    StepMark::Now => ("now", "now: "),
                    StepMark::Later => ("later", "to come: "),
                    StepMark::Failed => ("failed", "failed: "),
                };
                li.(class) aria-current=[(*mark == StepMark::Now).then_some("step")] {
                    span.hidden-visually { (word) } span { (name) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "\"><script>alert(1)</script>";

    #[test]
    fn every_part_keeps_hostile_text_as_text() {
        let parts = [
            card(HOSTILE, html! { (HOSTILE) }),
            badge(Tone::Good, HOSTILE),
            empty(HOSTILE),
            stat(HOSTILE, HOSTILE, html! {}),
            facts(&[(HOSTILE, html! { (HOSTILE) })]),
            table(HOSTILE, &[HOSTILE], &[vec![html! { (HOSTILE) }]]),
            field(&Field {
                name: HOSTILE,
                label: HOSTILE,
                value: HOSTILE,
                hint: HOSTILE,
                error: HOSTILE,
                kind: HOSTILE,
                autocomplete: HOSTILE,
                ..Field::default()
            }),
            select(HOSTILE, HOSTILE, HOSTILE, &[Choice { value: HOSTILE, label: HOSTILE }], ""),
            tick(HOSTILE, HOSTILE, HOSTILE, true),
            hidden(HOSTILE, HOSTILE),
            copyable(HOSTILE, HOSTILE, HOSTILE),
            progress(&ProgressView {
                what: HOSTILE.into(),
                amount: HOSTILE.into(),
                ..Default::default()
            }),
            steps(HOSTILE, &[(StepMark::Now, HOSTILE)]),
            crate::sparkline(HOSTILE, &[Some(1.0)], None),
        ];
        for part in parts {
            let text = part.into_string();
            assert!(!text.contains("<script"), "{text}");
        }
    }

    #[test]
    fn a_password_is_never_sent_back() {
        let text =
            field(&Field { name: "p", kind: "password", value: "secret", ..Field::default() });
        assert!(!text.into_string().contains("secret"));
    }

    #[test]
    fn an_error_is_tied_to_its_field() {
        let text = field(&Field { name: "n", error: "is taken", ..Field::default() }).into_string();
        assert!(text.contains("aria-describedby=\"n-error\"") && text.contains("id=\"n-error\""));
        assert!(text.contains("aria-invalid=\"true\""));
    }

    #[test]
    fn progress_says_in_words_what_the_bar_shows() {
        let view = ProgressView {
            what: "fetching".into(),
            fraction: Some(0.5),
            amount: "47 MiB of 94 MiB".into(),
            rate: "2 MiB/s".into(),
            eta: Some(24),
        };
        let text = progress(&view).into_string();
        assert!(
            text.contains("50\u{a0}%")
                && text.contains("47 MiB of 94 MiB · 2 MiB/s · about 24 s left")
        );
        let unknown = progress(&ProgressView { fraction: Some(f64::NAN), ..view }).into_string();
        assert!(!unknown.contains("NaN"));
    }
}
