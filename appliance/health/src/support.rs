//! A text for whoever helps: what they need to know of a box, and nothing that opens it or that anybody wrote to a model.
//!
//! It is made of values that are named here one by one, never of files as they are; what is free text, such as the last words
//! of a part, goes through [`scrubbed`] as well. It is one readable text, so that a steward can look through it before
//! sending it.

use std::fmt::Write as _;

use polder_control::{AuditHead, BoxStatus, HealthReport, Machine, PartStatus, UpdateStatus};

use crate::checks::span;

/// What the text is made of.
#[derive(Debug)]
pub(crate) struct Sources<'a> {
    pub(crate) now: i64,
    pub(crate) system: String,
    pub(crate) status: Option<&'a BoxStatus>,
    pub(crate) machine: Option<&'a Machine>,
    pub(crate) update: Option<&'a UpdateStatus>,
    pub(crate) head: Option<&'a AuditHead>,
    pub(crate) report: &'a HealthReport,
    /// The last lines of the parts' logs, where a journal keeps them.
    pub(crate) journal: &'a str,
    /// What must not be in it, wherever it comes from.
    pub(crate) secrets: Vec<String>,
}

/// The text.
pub(crate) fn text(sources: &Sources<'_>) -> String {
    let free = |text: &str| scrubbed(text, &sources.secrets);
    let mut text = String::from(
        "What this is: how a Polder box is, for somebody who helps its stewards. It has no passwords, keys, names of people or\n\
         words that anybody wrote to a model. Look through it before you send it.\n",
    );
    let mut section = |title: &str, body: &str| {
        let _ = write!(text, "\n== {title} ==\n{}\n", body.trim_end());
    };
    section("This version", &format!("Polder {}\n{}", env!("CARGO_PKG_VERSION"), sources.system));
    section("Machine", &sources.machine.map(machine).unwrap_or_else(unknown));
    section("Parts", &sources.status.map(|status| parts(status, &free)).unwrap_or_else(unknown));
    section("What it is told to be", &sources.status.map(site).unwrap_or_else(unknown));
    section("Image", &sources.update.map(image).unwrap_or_else(unknown));
    section("What is wrong", &wrong(sources, &free));
    section("What was wrong", &past(sources, &free));
    section("What could not be looked at", &unseen(sources.report, &free));
    let head = sources
        .head
        .map(|head| format!("{} entries, the last one's hash {}", head.number, head.hash));
    section("Audit trail", &head.unwrap_or_else(unknown));
    let journal: Vec<String> = sources.journal.lines().map(free).collect();
    section(
        "Last lines of the log",
        if journal.is_empty() {
            "(there is no journal to read)".to_owned()
        } else {
            journal.join("\n")
        }
        .as_str(),
    );
    text
}

fn unknown() -> String {
    "(nobody answered)".to_owned()
}

fn machine(machine: &Machine) -> String {
    let Machine { cpu, threads, memory, disk_free, disk_total, gpus, driver, idle_cards, ports } =
        machine;
    let mut text = format!(
        "{cpu}, {threads} threads, {} MiB memory\ndisk: {} of {} MiB free\n",
        memory >> 20,
        disk_free >> 20,
        disk_total >> 20
    );
    for gpu in gpus {
        let memory = gpu.memory.map_or("?".to_owned(), |bytes| (bytes >> 20).to_string());
        let _ = writeln!(text, "card: {}, {memory} MiB", gpu.name);
    }
    for port in ports {
        let cable = if port.connected { "cable in" } else { "no cable" };
        let _ = writeln!(text, "port {}: {cable}", port.name);
    }
    let _ = writeln!(
        text,
        "{}, {idle_cards} cards without driver",
        driver.as_deref().unwrap_or("no image")
    );
    text
}

fn parts(status: &BoxStatus, free: &dyn Fn(&str) -> String) -> String {
    let line = |name: &str, part: &PartStatus| {
        free(&format!("{name}: {:?}, started again {} times", part.state, part.restarts))
    };
    let mut lines = vec![line("door", &status.gateway)];
    for engine in &status.engines {
        lines.push(line(&format!("engine {} ({})", engine.name, engine.recipe), &engine.part));
        lines.extend(engine.note.as_ref().map(|note| free(&format!("  {note}"))));
    }
    for other in &status.others {
        lines.push(line(&format!("what {}", other.name.does()), &other.part));
    }
    if status.safe {
        lines.push("safe mode".to_owned());
    }
    lines.join("\n")
}

/// Never the names, addresses and instructions that a site holds: counts of them.
fn site(status: &BoxStatus) -> String {
    let site = &status.site;
    let mut text = format!(
        "port {}, {} addresses, {} extra names, {} apps, {} common instructions\nusage counted: {}, trusting: {}, keeping: {} days, {} %\nverifier: {}, updates from the web: {}\n",
        site.door.port,
        site.door.listen.len(),
        site.door.names.len(),
        site.apps.len(),
        site.common.len(),
        site.usage.per_member,
        site.sharing.trusting,
        site.keeping.days,
        site.keeping.disk_percent,
        site.verifier.is_some(),
        site.updates.is_some(),
    );
    if let Some(alerts) = &site.alerts {
        let _ = writeln!(
            text,
            "alerts: mail {}, webhook {}, ntfy {}, dead man {}",
            alerts.mail.is_some(),
            alerts.webhook,
            alerts.ntfy,
            alerts.dead_man
        );
    }
    for (name, slot) in &site.engines {
        let memory = slot.memory.map_or("as planned".to_owned(), |memory| memory.to_string());
        let _ = writeln!(
            text,
            "engine {name}: {}, {:?}, memory {memory}",
            slot.recipe, slot.conversations
        );
    }
    text
}

fn image(update: &UpdateStatus) -> String {
    match &update.image {
        None => "no image".to_owned(),
        Some(image) => format!(
            "{} for {}, root hash {}, kernel {}, driver {}, other slot {}, found {}, on trial {}",
            image.version,
            image.arch,
            image.roothash,
            image.kernel,
            image.driver.as_deref().unwrap_or("none"),
            image.other.as_deref().unwrap_or("empty"),
            update.offer.as_ref().map_or("nothing", |offer| &offer.version),
            update.trying.as_deref().unwrap_or("nothing"),
        ),
    }
}

fn wrong(sources: &Sources<'_>, free: &dyn Fn(&str) -> String) -> String {
    let lines = sources.report.standing.iter().map(|standing| {
        let issue = &standing.issue;
        let since = span(sources.now.saturating_sub(standing.since));
        free(&format!("{} {} for {since}: {}", issue.severity.word(), issue.id.check, issue.what))
    });
    or_nothing(lines.collect())
}

fn past(sources: &Sources<'_>, free: &dyn Fn(&str) -> String) -> String {
    let lines = sources.report.past.iter().take(50).map(|past| {
        let ago = span(sources.now.saturating_sub(past.until));
        let lasted = span(past.until.saturating_sub(past.since));
        free(&format!(
            "{} {} {ago} ago for {lasted}: {}",
            past.severity.word(),
            past.id.check,
            past.what
        ))
    });
    or_nothing(lines.collect())
}

fn unseen(report: &HealthReport, free: &dyn Fn(&str) -> String) -> String {
    or_nothing(report.unseen.iter().map(|u| free(&format!("{}: {}", u.check, u.why))).collect())
}

fn or_nothing(lines: Vec<String>) -> String {
    if lines.is_empty() { "(nothing)".to_owned() } else { lines.join("\n") }
}

/// A line without known secrets, and without what looks like a key, a password in an address, or somebody's mail address.
fn scrubbed(text: &str, secrets: &[String]) -> String {
    const OUT: &str = "(left out)";
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= 4) {
        text = text.replace(secret.as_str(), OUT);
    }
    let words = text.split(' ').map(|word| {
        let address = word.contains('@');
        let link = word.find("://").map(|at| at + 3);
        let keylike = |run: &str| {
            run.len() >= 20
                && run.bytes().any(|c| c.is_ascii_digit())
                && run.bytes().any(|c| c.is_ascii_alphabetic())
        };
        let of_a_key = |c: char| c.is_ascii_alphanumeric() || "+/_-=".contains(c);
        // A short name may be a part of other words, and is left out only where it stands alone.
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        let named = !bare.is_empty() && secrets.iter().any(|secret| secret == bare);
        match link {
            _ if named || address || word.contains("-----") => OUT.to_owned(),
            Some(at) if word.len() > at => format!("{}{OUT}", &word[..at]),
            _ if word.split(|c| !of_a_key(c)).any(|run| run.split('/').any(keylike)) => {
                OUT.to_owned()
            }
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_addresses_and_known_secrets_are_left_out_of_free_text() {
        let secrets = ["correct horse".to_owned()];
        let left = |text: &str| scrubbed(text, &secrets);
        let short = ["Ada".to_owned()];
        assert_eq!(scrubbed("Ada, and Adam (Ada)", &short), "(left out) and Adam (left out)");
        assert_eq!(left("it said correct horse twice"), "it said (left out) twice");
        assert_eq!(left("key pld_7f3kQ9xZ2mB4nV8cL1sD6hJ0 bad"), "key (left out) bad");
        assert_eq!(left("mail to ada@example.org failed"), "mail to (left out) failed");
        assert_eq!(left("GET https://ntfy.sh/oak-secret 403"), "GET https://(left out) 403");
        assert_eq!(left("-----BEGIN PRIVATE KEY-----"), "(left out) PRIVATE (left out)");
        let plain = "the engine fast died of signal 9 (killed; perhaps memory ran out)";
        assert_eq!(left(plain), plain);
    }

    proptest! {
        #[test]
        fn a_known_secret_is_in_no_line(
            secret in "[a-zA-Z0-9 ]{6,30}", before in "\\PC{0,30}", after in "\\PC{0,30}"
        ) {
            let line = format!("{before}{secret}{after}");
            prop_assert!(!scrubbed(&line, std::slice::from_ref(&secret)).contains(&secret));
        }
    }
}
