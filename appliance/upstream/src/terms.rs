//! What it comes to that a server elsewhere is asked, in words, before it is: which questions go there and when, what leaves the house, what it
//! costs, what members see. Pure.

use polder_site::{EngineKind, Site, UpstreamKind, UpstreamModel, UpstreamName, UpstreamServer};

use crate::paid::USUAL_ANSWER;
use crate::price::Price;

/// One of the things to know: what it is about, and a sentence or two.
pub type Term = (&'static str, String);

/// What comes of it when the box is told to ask this server so. `site`: as it is before.
pub fn terms(name: &UpstreamName, server: &UpstreamServer, site: &Site) -> Vec<Term> {
    let mut all = questions(server, site);
    all.push(("What leaves the house", leaves(server)));
    all.push(("Who is left out", "The questions of members who let nothing leave the box, and those asked with a key marked “Never elsewhere”: they hear why nobody answers.".to_owned()));
    all.extend(price(server));
    all.push(("What members see", members_see(name, server)));
    all.extend(changes(server, site.upstreams.get(name)));
    all
}

/// The same when the box is told to ask it no more.
pub fn terms_of_removal(name: &UpstreamName, server: &UpstreamServer, site: &Site) -> Vec<Term> {
    let only: Vec<&str> = server
        .models
        .keys()
        .filter(|model| !here(site, model.as_str()))
        .filter(|model| {
            let mut others = site.upstreams.iter().filter(|(other, _)| *other != name);
            !others.any(|(_, other)| other.models.contains_key(*model))
        })
        .map(|model| model.as_str())
        .collect();
    let mut all = Vec::new();
    if !only.is_empty() {
        let gone = format!(
            "{}: nobody else has it, and whoever asks for it hears that this box does not serve it.",
            list(&only)
        );
        all.push(("Models that are gone", gone));
    }
    all.push(("Questions", "What this box cannot answer itself is put to the other servers elsewhere, if there are any, and else to nobody. Answers that are under way go on to their end.".to_owned()));
    all.push((
        "Its key",
        "The box forgets it. Whoever runs the server should revoke it there too.".to_owned(),
    ));
    all.push(("What it cost", "That stays in the books.".to_owned()));
    all
}

fn here(site: &Site, model: &str) -> bool {
    site.engines.values().any(|slot| slot.recipe.as_str() == model)
}

fn list(names: &[&str]) -> String {
    names.join(", ")
}

fn questions(server: &UpstreamServer, site: &Site) -> Vec<Term> {
    let own = |model: &UpstreamModel, name: &str| match model.called == name {
        true => String::new(),
        false => format!(" (there it is called {})", model.called),
    };
    let when = match (server.when_down, server.when_full, server.full_at) {
        (false, false, _) => {
            "none, as it is asked neither when the box is down nor when it is full".to_owned()
        }
        (down, full, waiting) => {
            let full = match waiting {
                _ if !full => None,
                Some(1) => Some("has no room or a question waits for it already".to_owned()),
                Some(most) => Some(format!("has no room or {most} questions wait for it already")),
                None => Some("has no room for the question".to_owned()),
            };
            let down = down.then(|| "starts, stopped or broke down".to_owned());
            let both: Vec<String> = down.into_iter().chain(full).collect();
            format!("those that come while its engine here {}", both.join(", or "))
        }
    };
    let mut all: Vec<Term> = Vec::new();
    for (name, model) in &server.models {
        let name = name.as_str();
        let slot = site.engines.values().find(|slot| slot.recipe.as_str() == name);
        let which = match slot {
            None => format!("{name}{}: all, because no engine here serves it.", own(model, name)),
            // What another server serves there already.
            Some(slot) if slot.kind == EngineKind::Url => {
                format!("{name}{}: {when}, which another server stands for.", own(model, name))
            }
            Some(_) => format!("{name}{}: {when}.", own(model, name)),
        };
        all.push(("Questions that go there", which));
    }
    if all.is_empty() {
        let none = "None yet: the box asks it for nothing before a model is named.";
        all.push(("Questions that go there", none.to_owned()));
    }
    all
}

fn leaves(server: &UpstreamServer) -> String {
    let host = server.url.authority();
    if server.url.is_this_machine() {
        return format!(
            "Nothing by itself: {host} is on this machine. Where the server there passes it on to, the box does not know."
        );
    }
    let who = match server.kind {
        UpstreamKind::Polder => "Whoever looks after that box",
        UpstreamKind::Server => "Whoever runs that server",
        UpstreamKind::Cloud => "That company",
    };
    format!(
        "The whole conversation of such a question, encrypted on its way to {host}, and the answer on its way back. {who} can read and keep both, by their rules and their country's. They see this box's address and its key with them, and are not told which member asked."
    )
}

fn price(server: &UpstreamServer) -> Vec<Term> {
    let money = &server.currency;
    let mut all = Vec::new();
    let (mut paid, mut shortened) = (false, Vec::new());
    for (name, model) in &server.models {
        if Price::of(model).is_free() {
            all.push(("Price", format!("{name}: nothing.")));
            continue;
        }
        paid = true;
        let kept = match model.cached {
            Some(kept) => format!(", {kept} for a million that it had kept from before"),
            None => String::new(),
        };
        let keeping = match model.written {
            Some(written) => format!(" What it keeps from then on costs {written}."),
            None => {
                " What it keeps from then on counts a quarter more than reading, and for an hour twice as much.".to_owned()
            }
        };
        all.push((
            "Price",
            format!(
                "{name}: {} {money} for a million tokens read{kept}, {} for a million written.{keeping}",
                model.input, model.output
            ),
        ));
        match model.longest {
            None => shortened.push(name.as_str()),
            Some(longest) => {
                all.push(("Length of answers", format!("{name}: {longest} tokens at most.")))
            }
        }
    }
    if !shortened.is_empty() {
        all.push(("Length of answers", format!("{}: an answer ends after {USUAL_ANSWER} tokens there where the question does not say how long it may be; otherwise nobody could say before what it costs.", list(&shortened))));
    }
    all.push(("Budget", match (paid, server.budget.millionths()) {
        (false, _) => "Nothing is spent as long as nothing has a price.".to_owned(),
        (true, 0) => "0: what has a price is never asked for. Raise it to be answered.".to_owned(),
        (true, _) => format!("{} {money} in a calendar month (UTC), for everybody together. The most that a question may cost is set aside before it goes out, and what does not fit is not asked. When it is used up, nobody is asked there until the month is over or a steward raises it. Pictures, files and what else costs beside the tokens of its text are not passed on.", server.budget),
    }));
    all
}

fn members_see(name: &UpstreamName, server: &UpstreamServer) -> String {
    let counted = match server.models.keys().next() {
        Some(model) => {
            format!(" Where usage is counted per member, it is counted as “{model} at {name}”.")
        }
        None => String::new(),
    };
    format!(
        "Each answer says “{name}” in x-polder-served-by, in place of the box's own name. What lives only there is marked in the chat. What all of it cost together is on everybody's page Usage; who asked is not in those books.{counted}"
    )
}

fn changes(server: &UpstreamServer, before: Option<&UpstreamServer>) -> Option<Term> {
    let before = before?;
    let mut all = Vec::new();
    let mut say = |differs: bool, what: &str, was: String| {
        if differs {
            all.push(format!("{what} was {was}"));
        }
    };
    let mut differ = |what: &str, was: String, is: String| say(was != is, what, was);
    differ("the address", before.url.to_string(), server.url.to_string());
    differ(
        "the budget",
        format!("{} {}", before.budget, before.currency),
        format!("{} {}", server.budget, server.currency),
    );
    let when = |server: &UpstreamServer| match server.full_at.filter(|_| server.when_full) {
        Some(most) => format!("{} (at {most} that wait)", server.when()),
        None => server.when().to_owned(),
    };
    differ("the time to ask it", when(before), when(server));
    let models = |server: &UpstreamServer| {
        let names: Vec<&str> = server.models.keys().map(|name| name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { list(&names) }
    };
    differ("what it is asked for", models(before), models(server));
    for (name, model) in &server.models {
        let prices = |model: &UpstreamModel| {
            let kept = model.cached.map(|kept| format!(" / {kept}")).unwrap_or_default();
            let keeping = model.written.map(|it| format!(" (keeping: {it})")).unwrap_or_default();
            format!("{} / {}{kept}{keeping}", model.input, model.output)
        };
        if let Some(was) = before.models.get(name) {
            differ(&format!("the price of {name}"), prices(was), prices(model));
        }
    }
    let trusted = match &before.authority {
        Some(_) => "another authority of its own",
        None => "one that browsers trust",
    };
    say(before.authority != server.authority, "whoever signs its certificate", trusted.to_owned());
    let text = if all.is_empty() {
        "Nothing.".to_owned()
    } else {
        format!("Until now {}.", all.join("; "))
    };
    Some(("What changes", text))
}

#[cfg(test)]
mod tests {
    use polder_site::{EngineSlot, SiteChange};

    use super::*;
    use crate::question::tests::upstream;

    fn model(called: &str, input: &str, output: &str, longest: Option<u32>) -> UpstreamModel {
        let amount = |text: &str| text.parse().unwrap();
        UpstreamModel {
            called: called.into(),
            input: amount(input),
            output: amount(output),
            cached: None,
            written: None,
            longest,
        }
    }

    #[test]
    fn what_asking_a_server_elsewhere_comes_to_is_said_before_it_is_asked() {
        let slot = EngineSlot::serving("small".parse().unwrap());
        let mut site = SiteChange::Engine { name: "fast".parse().unwrap(), slot }
            .applied_to(&Site::unclaimed(8443));
        let mut text = String::new();
        let mut say = |title: &str, terms: Vec<Term>| {
            text += &format!("== {title}\n");
            for (about, sentence) in terms {
                text += &format!("{about}: {sentence}\n");
            }
            text += "\n";
        };
        let (cloud, elm): (UpstreamName, UpstreamName) =
            ("cloud".parse().unwrap(), "elm".parse().unwrap());

        let mut server = UpstreamServer { when_down: true, ..upstream() };
        say("A company's, without a model yet", terms(&cloud, &server, &site));

        server.models.insert("small".parse().unwrap(), model("vendor/small", "0.15", "0.60", None));
        let mut large = model("large", "3", "15", Some(32_000));
        large.cached = Some("0.30".parse().unwrap());
        large.written = Some("3.75".parse().unwrap());
        server.models.insert("large".parse().unwrap(), large);
        (server.when_full, server.full_at) = (true, Some(8));
        say(
            "The same, with one model of the box's and one of its own",
            terms(&cloud, &server, &site),
        );

        site.upstreams.insert(cloud.clone(), server.clone());
        server.budget = "0".parse().unwrap();
        (server.when_down, server.when_full) = (false, false);
        server.models.retain(|name, _| name.as_str() != "large");
        say("Changed", terms(&cloud, &server, &site));
        say("Not changed", terms(&cloud, &site.upstreams[&cloud].clone(), &site));

        let mut friends =
            UpstreamServer { kind: UpstreamKind::Polder, when_full: true, ..upstream() };
        friends.url = "https://elm.example.org:8443/v1".parse().unwrap();
        friends.models.insert("small".parse().unwrap(), model("small", "0", "0", None));
        say("Another box, for nothing", terms(&elm, &friends, &site));
        friends.url = "http://127.0.0.1:8000/v1".parse().unwrap();
        friends.kind = UpstreamKind::Server;
        say("A server on this machine", terms(&elm, &friends, &site));

        say("Removed", terms_of_removal(&cloud, &site.upstreams[&cloud].clone(), &site));
        say("Removed, with nothing that only it had", terms_of_removal(&elm, &friends, &site));
        assert_eq!(text, include_str!("terms.golden.txt"));
    }
}
