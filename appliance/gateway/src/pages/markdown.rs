//! A model's Markdown as HTML that is safe to show. Pure.
//!
//! What a model writes is as untrusted as what a stranger writes. HTML in it stays text, a link goes
//! to the web or to mail and nowhere else, and nothing is loaded: an image becomes its description.

use maud::{Render, html};
use pulldown_cmark::{
    Alignment, CowStr, Event, HeadingLevel, LinkType, Options, Parser, Tag, TagEnd,
};

/// The HTML of each block of the text, one after the other. An answer that grows changes only its
/// last blocks, so that only those need to be sent again.
pub(super) fn blocks(text: &str) -> Vec<String> {
    let options =
        Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let (mut blocks, mut block, mut depth) = (Vec::new(), Vec::new(), 0usize);
    let mut safe = Safe::default();
    for event in Parser::new_ext(text, options) {
        match &event {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth = depth.saturating_sub(1),
            _ => {}
        }
        block.extend(safe.event(event));
        if depth == 0 {
            let mut html = String::new();
            pulldown_cmark::html::push_html(&mut html, block.drain(..));
            blocks.push(html);
        }
    }
    blocks
}

/// Makes each event harmless.
#[derive(Default)]
struct Safe {
    /// For every link that is open: whether it was let through.
    links: Vec<bool>,
}

impl Safe {
    fn event<'a>(&mut self, event: Event<'a>) -> Option<Event<'a>> {
        Some(match event {
            // HTML stays text; the block that held it becomes a paragraph.
            Event::Html(text) | Event::InlineHtml(text) => Event::Text(text),
            Event::Start(Tag::HtmlBlock) => Event::Start(Tag::Paragraph),
            Event::End(TagEnd::HtmlBlock) => Event::End(TagEnd::Paragraph),
            Event::Start(Tag::Link { link_type, dest_url, .. }) => {
                let target = target(link_type, &dest_url);
                self.links.push(target.is_some());
                Event::InlineHtml(opening(&target?).into())
            }
            Event::End(TagEnd::Link) => {
                if !self.links.pop().unwrap_or(false) {
                    return None;
                }
                Event::InlineHtml("</a>".into())
            }
            Event::Start(Tag::Image { .. }) => Event::Text("[picture: ".into()),
            Event::End(TagEnd::Image) => Event::Text("]".into()),
            // The page has its own first and second headings; and no id or class from outside.
            Event::Start(Tag::Heading { level, .. }) => Event::Start(Tag::Heading {
                level: below(level),
                id: None,
                classes: vec![],
                attrs: vec![],
            }),
            Event::End(TagEnd::Heading(level)) => Event::End(TagEnd::Heading(below(level))),
            // Alignment would be an inline style, which the page's policy forbids.
            Event::Start(Tag::Table(columns)) => {
                Event::Start(Tag::Table(vec![Alignment::None; columns.len()]))
            }
            other => other,
        })
    }
}

/// Where a link may lead, or nowhere.
fn target(kind: LinkType, given: &CowStr<'_>) -> Option<String> {
    if kind == LinkType::Email {
        return Some(format!("mailto:{given}"));
    }
    // Browsers pass over blanks and control signs in front of and inside a scheme.
    let plain: String = given.chars().filter(|c| !c.is_control() && !c.is_whitespace()).collect();
    let lower = plain.to_ascii_lowercase();
    let allowed = ["https://", "http://", "mailto:"].iter().any(|scheme| lower.starts_with(scheme));
    allowed.then_some(plain)
}

fn opening(target: &str) -> String {
    // maud escapes; the element is closed by the end of the link.
    let whole = html! { a href=(target) rel="noopener noreferrer nofollow" target="_blank" {} };
    let text = whole.render().into_string();
    text.strip_suffix("</a>").map(str::to_owned).unwrap_or_default()
}

fn below(level: HeadingLevel) -> HeadingLevel {
    match level {
        HeadingLevel::H1 => HeadingLevel::H3,
        HeadingLevel::H2 => HeadingLevel::H4,
        HeadingLevel::H3 => HeadingLevel::H5,
        _ => HeadingLevel::H6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn html(text: &str) -> String {
        blocks(text).concat()
    }

    /// Every `<` that begins a tag is one of those that Markdown makes, without an attribute that
    /// could do anything.
    fn assert_harmless(markdown: &str) {
        let drawn = html(markdown);
        let allowed = [
            "p",
            "h3",
            "h4",
            "h5",
            "h6",
            "ul",
            "ol",
            "li",
            "blockquote",
            "pre",
            "code",
            "em",
            "strong",
            "del",
            "a",
            "br",
            "hr",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "input",
        ];
        for piece in drawn.split('<').skip(1) {
            let (tag, _) =
                piece.split_once('>').unwrap_or_else(|| panic!("{markdown:?} -> {drawn}"));
            let closing = tag.starts_with('/');
            let tag = tag.trim_start_matches('/').trim_end_matches('/');
            let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
            assert!(allowed.contains(&name.trim()), "{markdown:?} -> {drawn}");
            let harmless = match name {
                _ if closing => attributes.is_empty(),
                "a" => ["href=\"http://", "href=\"https://", "href=\"mailto:"]
                    .iter()
                    .any(|start| attributes.starts_with(start)),
                "code" => attributes.is_empty() || attributes.starts_with("class=\"language-"),
                "ol" => attributes.is_empty() || attributes.starts_with("start=\""),
                "input" => attributes.starts_with("disabled=\"\" type=\"checkbox\""),
                _ => attributes.trim().is_empty(),
            };
            assert!(harmless, "{markdown:?} -> {drawn}");
        }
    }

    #[test]
    fn nothing_that_a_model_writes_becomes_a_script() {
        for attack in [
            "<script>alert(1)</script>",
            "a <script>alert(1)</script> b",
            "<img src=x onerror=alert(1)>",
            "text <img src=x onerror=alert(1)> text",
            "<svg onload=alert(1)>",
            "<svg><script>alert(1)</script></svg>",
            "<iframe src=javascript:alert(1)>",
            "<details open ontoggle=alert(1)>",
            "<style>*{background:url(//evil.example)}</style>",
            "<base href=//evil.example>",
            "<meta http-equiv=refresh content=0;url=//evil.example>",
            "[a](javascript:alert(1))",
            "[a](JaVaScRiPt:alert(1))",
            "[a](java\tscript:alert(1))",
            "[a](&#106;avascript:alert(1))",
            "[a](&#x6A;avascript&colon;alert(1))",
            "[a]( javascript:alert(1))",
            "[a](\u{1}javascript:alert(1))",
            "[a](data:text/html,<script>alert(1)</script>)",
            "[a](vbscript:x)",
            "[a](file:///etc/passwd)",
            "[a](//evil.example)",
            "[a](/sign-out)",
            "[a](https://x/\"onmouseover=\"alert(1))",
            "[a](<https://x/\" onmouseover=\"alert(1)>)",
            "[a](https://x 'title\" onmouseover=\"alert(1)')",
            "[a][r]\n\n[r]: javascript:alert(1)",
            "<javascript:alert(1)>",
            "![x](https://evil.example/beacon.png)",
            "![<img src=x onerror=alert(1)>](data:image/svg+xml,x)",
            "![a](javascript:alert(1))",
            "[![x](https://evil.example/a.png)](javascript:alert(1))",
            "```\"><script>alert(1)</script>\nx\n```",
            "```x\" onclick=\"alert(1)\ny\n```",
            "# h {#id onclick=alert(1)}",
            "| a |\n|:-:|\n| <script>alert(1)</script> |",
            "- [x] <script>alert(1)</script>",
            "<!-- --><script>alert(1)</script>",
            "<![CDATA[<script>alert(1)</script>]]>",
            "<?php x ?><script>alert(1)</script>",
            "<a href=\"javascript:alert(1)\">x</a>",
            "&lt;script&gt;alert(1)&lt;/script&gt;",
        ] {
            assert_harmless(attack);
        }
    }

    #[test]
    fn html_is_shown_as_it_was_written() {
        assert_eq!(html("a <b>c</b>"), "<p>a &lt;b&gt;c&lt;/b&gt;</p>\n");
        assert!(html("<div>x</div>").contains("&lt;div&gt;x&lt;/div&gt;"));
    }

    #[test]
    fn ordinary_markdown_is_drawn() {
        let text = "# One\n\ntext **bold** `code` [link](https://example.org/a?b=c&d)\n\n1. a\n2. b\n\n```rust\nfn f() {}\n```";
        let drawn = html(text);
        for part in [
            "<h3>One</h3>",
            "<strong>bold</strong>",
            "<code>code</code>",
            "<ol>",
            "language-rust",
            "href=\"https://example.org/a?b=c&amp;d\"",
            "rel=\"noopener noreferrer nofollow\"",
        ] {
            assert!(drawn.contains(part), "{part} in {drawn}");
        }
        assert_eq!(html("![a dog](https://x/y.png)"), "<p>[picture: a dog]</p>\n");
        assert!(html("<me@example.org>").contains("href=\"mailto:me@example.org\""));
    }

    #[test]
    fn what_is_finished_does_not_change_when_more_is_written() {
        let before = blocks("one\n\n- a\n- b\n\nthr");
        let after = blocks("one\n\n- a\n- b\n\nthree and more\n\nfour");
        assert_eq!(before.len(), 3);
        assert_eq!(before[..2], after[..2]);
        assert_eq!(after.len(), 4);
    }

    proptest::proptest! {
        #[test]
        fn no_text_becomes_anything_but_harmless_html(
            text in "([<>\\[\\]()`#*_~|!\\-\"'&;:=\n ]|script|javascript:|onerror=|https://|[a-z]{1,3}){0,60}"
        ) {
            assert_harmless(&text);
        }
    }
}
