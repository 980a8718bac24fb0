//! What the box serves at `/handbook`, for members and stewards who have no other manual: chapters in plain
//! words, compiled in, so that they fit the version that runs and are there when the internet is not.

use std::sync::LazyLock;

use pulldown_cmark::{Alignment, CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

/// A chapter as it is written, by the end of its address.
const WRITTEN: [(&str, &str); 14] = [
    ("this-box", include_str!("../chapters/this-box.md")),
    ("first-day", include_str!("../chapters/first-day.md")),
    ("connect", include_str!("../chapters/connect.md")),
    ("people", include_str!("../chapters/people.md")),
    ("sign-in", include_str!("../chapters/sign-in.md")),
    ("another-model", include_str!("../chapters/another-model.md")),
    ("money", include_str!("../chapters/money.md")),
    ("update", include_str!("../chapters/update.md")),
    ("trouble", include_str!("../chapters/trouble.md")),
    ("takeover", include_str!("../chapters/takeover.md")),
    ("moving", include_str!("../chapters/moving.md")),
    ("giving-away", include_str!("../chapters/giving-away.md")),
    ("limits-of-trust", include_str!("../chapters/limits-of-trust.md")),
    ("tested", include_str!("../chapters/tested.md")),
];

/// One chapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chapter {
    /// The end of its address: `/handbook/SLUG`.
    pub slug: &'static str,
    /// What it is called.
    pub title: &'static str,
    /// What it is about, in a sentence.
    pub lead: &'static str,
    /// As it is written, without title and lead: Markdown.
    pub text: &'static str,
    /// The same as HTML. No scripts, no styles, nothing from elsewhere.
    pub html: String,
}

static CHAPTERS: LazyLock<Vec<Chapter>> =
    LazyLock::new(|| WRITTEN.iter().map(|&(slug, text)| read(slug, text)).collect());

/// Every chapter, in the order in which they are read.
pub fn chapters() -> &'static [Chapter] {
    &CHAPTERS
}

/// One chapter by the end of its address.
pub fn chapter(slug: &str) -> Option<&'static Chapter> {
    CHAPTERS.iter().find(|chapter| chapter.slug == slug)
}

/// A chapter begins with `# Title` and one paragraph, its lead.
fn read(slug: &'static str, written: &'static str) -> Chapter {
    let (title, rest) = written.split_once("\n\n").unwrap_or((written, ""));
    let (lead, text) = rest.split_once("\n\n").unwrap_or((rest, ""));
    let title = title.trim_start_matches("# ").trim();
    Chapter { slug, title, lead: lead.trim(), text, html: html_of(text) }
}

fn html_of(text: &str) -> String {
    let options = Options::ENABLE_TABLES;
    let mut events: Vec<Event<'_>> = Parser::new_ext(text, options).map(plain).collect();
    name_headings(&mut events);
    let mut out = String::new();
    html::push_html(&mut out, events.into_iter());
    out
}

/// HTML in a chapter would stay text, and a table's alignment would be an inline style, which the pages' policy forbids.
fn plain(event: Event<'_>) -> Event<'_> {
    match event {
        Event::Html(text) | Event::InlineHtml(text) => Event::Text(text),
        Event::Start(Tag::Table(columns)) => {
            Event::Start(Tag::Table(vec![Alignment::None; columns.len()]))
        }
        other => other,
    }
}

/// A heading can be linked to by its words.
fn name_headings(events: &mut [Event<'_>]) {
    let mut begun: Option<(usize, String)> = None;
    for at in 0..events.len() {
        match &events[at] {
            Event::Start(Tag::Heading { level: HeadingLevel::H2 | HeadingLevel::H3, .. }) => {
                begun = Some((at, String::new()));
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some((_, words)) = &mut begun {
                    words.push_str(text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                if let Some((start, words)) = begun.take()
                    && let Event::Start(Tag::Heading { id, .. }) = &mut events[start]
                {
                    *id = Some(CowStr::from(anchor(&words)));
                }
            }
            _ => {}
        }
    }
}

/// `A stolen disk` is linked to as `#a-stolen-disk`.
pub fn anchor(heading: &str) -> String {
    let words = heading.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chapter_has_a_title_a_lead_and_something_to_say() {
        for chapter in chapters() {
            assert!(!chapter.title.is_empty() && !chapter.title.contains('#'), "{}", chapter.slug);
            assert!(chapter.lead.ends_with('.'), "{}: {:?}", chapter.slug, chapter.lead);
            assert!(chapter.text.len() > 400, "{}", chapter.slug);
            assert!(!chapter.text.contains("\n# "), "{} has a second title", chapter.slug);
        }
    }

    #[test]
    fn what_is_served_has_no_style_no_script_and_nothing_from_elsewhere() {
        for chapter in chapters() {
            let html = &chapter.html;
            for foreign in ["<script", "style=", "<img", "http://", "https://", "<iframe"] {
                // An address that is shown is in <code>, never in an attribute.
                assert!(!html.contains(&format!("\"{foreign}")), "{}: {foreign}", chapter.slug);
            }
            assert!(!html.contains("<script") && !html.contains("style="), "{}", chapter.slug);
        }
    }

    #[test]
    fn html_in_a_chapter_stays_text_and_headings_can_be_linked_to() {
        let html = html_of(
            "## A stolen `disk`\n\na <b>c</b>\n\n<script>x</script>\n\n| a |\n|:-:|\n| b |\n",
        );
        assert!(html.contains("<h2 id=\"a-stolen-disk\">"), "{html}");
        assert!(html.contains("&lt;b&gt;") && html.contains("&lt;script&gt;"), "{html}");
        assert!(!html.contains("style"), "{html}");
    }

    #[test]
    fn a_link_to_a_chapter_leads_to_one_and_to_a_heading_that_it_has() {
        for chapter in chapters() {
            for link in chapter.text.split("](/handbook/").skip(1) {
                let target = link.split(')').next().unwrap();
                let (slug, part) = target.split_once('#').unwrap_or((target, ""));
                let found = super::chapter(slug)
                    .unwrap_or_else(|| panic!("{} links to {target}", chapter.slug));
                let there = part.is_empty() || found.html.contains(&format!("id=\"{part}\""));
                assert!(there, "{} links to {target}", chapter.slug);
            }
        }
    }
}
