//! What every page of the box shares, for whoever writes one: the shell, one style sheet, one
//! small script, and the pieces that pages are built from.
//!
//! A page works without JavaScript. Nothing is inline, so a `Content-Security-Policy` of
//! `default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';
//! form-action 'self'; base-uri 'none'; frame-ancestors 'none'` holds ([`CONTENT_SECURITY_POLICY`]).
//! maud escapes whatever text is put in.
//!
//! What `page.js` does where there is JavaScript:
//! - `data-refresh="/path"` (with `data-every="2000"`): fetches that path, which answers a piece of
//!   HTML, and puts it in place; an answer with the header `x-polder-next: /path` goes there instead.
//!   A `[data-done]` inside the piece ends the fetching.
//! - `data-copy="id"`: a button that copies the text of that element; hidden without JavaScript.
//! - `data-confirm="Sentence?"` on a form: asks before sending.

mod assets;
mod charts;
mod parts;
mod shell;
mod units;

pub use assets::{ASSETS, Asset, asset, script_path, style_path};
pub use charts::{Bar, bars, sparkline};
pub use parts::{
    Choice, Field, ProgressView, StepMark, Tone, badge, banner, card, copyable, empty, facts,
    field, hidden, progress, select, stat, steps, table, tick,
};
pub use shell::{CONTENT_SECURITY_POLICY, Nav, NavGroup, NavLink, Page, page};
pub use units::{
    bytes, count, duration, per_second, percent, tokens_per_second, when, when_rfc3339,
};

#[cfg(test)]
mod contrast {
    //! Reads the colours out of the style sheet itself.

    /// WCAG 2.2: relative luminance of `#rrggbb`.
    fn luminance(colour: &str) -> f64 {
        let part = |at: usize| {
            let c = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    }

    #[test]
    fn every_text_has_a_contrast_of_at_least_four_and_a_half_on_what_is_behind_it() {
        let css = include_str!("style.css");
        let sets: Vec<&str> = css.split(":root {").skip(1).take(2).collect();
        assert_eq!(sets.len(), 2);
        for set in sets {
            let colour = |name: &str| {
                let at = set.find(&format!("--{name}: #")).unwrap() + name.len() + 4;
                luminance(&set[at..at + 7])
            };
            let pairs = [
                ("ink", &["paper", "sheet", "inset", "wash"][..]),
                ("soft", &["paper", "sheet", "inset"]),
                ("accent", &["paper", "sheet", "inset", "wash"]),
                ("on-accent", &["accent", "accent-deep"]),
                ("good", &["sheet", "good-wash"]),
                ("warn", &["sheet", "warn-wash"]),
                ("bad", &["sheet", "paper", "bad-wash"]),
            ];
            for (text, surfaces) in pairs {
                for surface in surfaces {
                    let (a, b) = (colour(text), colour(surface));
                    let ratio = (a.max(b) + 0.05) / (a.min(b) + 0.05);
                    assert!(ratio >= 4.5, "{text} on {surface}: {ratio:.2}");
                }
            }
        }
    }
}
