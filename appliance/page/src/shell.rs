use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::{script_path, style_path};

/// What a page may load and where it may send: itself.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
    img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What is above every page.
#[derive(Debug, Clone, Default)]
pub struct Nav {
    /// What the box is called.
    pub box_name: String,
    /// Where one can go; empty for strangers and in the wizard.
    pub links: Vec<NavLink>,
    /// More of them, by what they are about, each a list that opens; for those who have many.
    pub groups: Vec<NavGroup>,
    /// Who is signed in, by name.
    pub who: Option<String>,
}

/// One place to go.
#[derive(Debug, Clone)]
pub struct NavLink {
    /// Where.
    pub href: &'static str,
    /// What it says.
    pub label: &'static str,
    /// True on the page itself.
    pub current: bool,
}

/// Places to go that belong together.
#[derive(Debug, Clone)]
pub struct NavGroup {
    /// What it says.
    pub label: &'static str,
    /// Where one can go.
    pub links: Vec<NavLink>,
}

/// A page with more than a title and a body.
#[derive(Default)]
pub struct Page<'a> {
    /// What the tab and the first heading say.
    pub title: &'a str,
    /// A sentence under the heading.
    pub lead: Option<&'a str>,
    /// Scripts besides `page.js`, by path.
    pub scripts: &'a [&'a str],
    /// Reload after so many seconds where there is no JavaScript.
    pub reload: Option<u32>,
    /// A narrow column, for forms and reading.
    pub narrow: bool,
    /// No heading: the body has its own.
    pub bare: bool,
}

/// The usual page: a title, what is above, a body.
pub fn page(title: &str, nav: &Nav, body: Markup) -> Markup {
    Page { title, ..Page::default() }.render(nav, body)
}

impl Page<'_> {
    /// The whole document.
    pub fn render(&self, nav: &Nav, body: Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="referrer" content="same-origin";
                    title {
                        (self.title)
                        @if !nav.box_name.is_empty() { " · " (nav.box_name) }
                    }
                    link rel="stylesheet" href=(style_path());
                    link rel="icon" href="/icon.svg" type="image/svg+xml";
                    @if let Some(seconds) = self.reload {
                        noscript { meta http-equiv="refresh" content=(seconds); }
                    }
                    script src=(script_path()) defer {}
                    @for script in self.scripts { script src=(script) defer {} }
                }
                body {
                    a.skip href="#main" { "Skip to the content" }
                    (header(nav))
                    main #main tabindex="-1" .narrow[self.narrow] {
                        @if !self.bare {
                            div.heading {
                                h1 { (self.title) }
                                @if let Some(lead) = self.lead { p.lead { (lead) } }
                            }
                        }
                        (body)
                    }
                    footer.foot { p { (nav.box_name) @if !nav.box_name.is_empty() { " is " } @else { "This box is " } "owned by the people who use it." @if !nav.box_name.is_empty() { " " a href="/handbook" { "Handbook" } } } }
                }
            }
        }
    }
}

fn header(nav: &Nav) -> Markup {
    html! {
        header.top {
            a.brand href="/" {
                (PreEscaped(MARK))
                span { @if nav.box_name.is_empty() { "Polder" } @else { (nav.box_name) } }
            }
            @if !nav.links.is_empty() {
                nav aria-label="Pages" {
                    ul {
                        @for link in &nav.links { (place(link)) }
                        @for group in &nav.groups {
                            @let here = group.links.iter().any(|link| link.current);
                            li {
                                // Of one name only one is open, without a script.
                                details.group name="pages" {
                                    summary aria-current=[here.then_some("true")] { (group.label) }
                                    ul { @for link in &group.links { (place(link)) } }
                                }
                            }
                        }
                    }
                }
            }
            @if let Some(who) = &nav.who {
                form.who method="post" action="/sign-out" {
                    a href="/account" title="Your account" { (who) }
                    button.quiet type="submit" { "Sign out" }
                }
            }
        }
    }
}

fn place(link: &NavLink) -> Markup {
    html! { li { a href=(link.href) aria-current=[link.current.then_some("page")] { (link.label) } } }
}

/// A dyke between two waters.
const MARK: &str = r#"<svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false"><rect class="mark-sky" width="32" height="32" rx="8"/><path class="mark-land" d="M3 17 L10 10 H22 L29 17 Z"/><path class="mark-water" d="M4 21.5 q3 -2.6 6 0 t6 0 t6 0 t6 0 M7 26 q3 -2.4 6 0 t6 0 t6 0"/></svg>"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_stays_text() {
        let nav = Nav {
            box_name: "<script>alert(1)</script>".into(),
            links: vec![NavLink { href: "/", label: "Home", current: true }],
            groups: Vec::new(),
            who: Some("\"><img src=x onerror=alert(1)>".into()),
        };
        let text = page("</title><script>", &nav, html! { p { "x" } }).into_string();
        assert_eq!(text.matches("<script").count(), 1, "only page.js");
        assert!(!text.contains("<img"));
    }

    #[test]
    fn a_group_opens_without_a_script_and_says_that_one_is_in_it() {
        let link = |href, current| NavLink { href, label: "A page", current };
        let groups = vec![
            NavGroup { label: "Models", links: vec![link("/a", false)] },
            NavGroup { label: "Machine", links: vec![link("/b", true), link("/c", false)] },
        ];
        let nav = Nav { links: vec![link("/", false)], groups, ..Nav::default() };
        let text = page("A", &nav, html! {}).into_string();
        assert_eq!(text.matches("<details class=\"group\" name=\"pages\">").count(), 2);
        assert!(text.contains("<summary>Models</summary>"), "{text}");
        assert!(text.contains("<summary aria-current=\"true\">Machine</summary>"), "{text}");
        assert!(text.contains("<a href=\"/b\" aria-current=\"page\">"), "{text}");
    }

    #[test]
    fn nothing_is_inline_and_everything_is_from_here() {
        let text = page("A", &Nav::default(), html! { p { "x" } }).into_string();
        assert!(!text.contains("style=") && !text.contains("http:") && !text.contains("https:"));
        assert!(text.contains("href=\"#main\"") && text.contains("lang=\"en\""));
    }
}
