//! What `site.toml` says that this version does not know: a newer one wrote it, or somebody mistyped it. A box serves without it, says so,
//! and leaves it where it is.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_ignored::Path;

use crate::alerts::{Alerts, MailServer};
use crate::apps::App;
use crate::backup::{Backup, Retention};
use crate::certificate::{DnsHook, DnsUpdate, PublicCertificate};
use crate::document::{Door, EngineSlot, Keeping, Metering, Sharing, Site};
use crate::dynamic_dns::{DnsZone, DynamicDns};
use crate::foreign::{Container, Served};
use crate::money::Money;
use crate::ports::PortAddress;
use crate::power::PowerPlan;
use crate::sign_in::SignIn;
use crate::spare::Spare;
use crate::succession::Succession;
use crate::updates::Updates;
use crate::uplinks::Uplink;
use crate::upstreams::{UpstreamModel, UpstreamServer};
use crate::verifier::Verifier;

/// Letters that a mistyped key may have wrong, and at most a third of them.
const MISTYPED: usize = 2;

/// A key that this version does not know. It has no effect. Its `Display` is a sentence without its full stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// The tables that it is in, and its own name.
    path: Vec<String>,
    /// Does the document have the key that may be meant?
    beside: bool,
}

/// Keys whose usual value does more than somebody may have wanted who mistyped one. A version that knows them always writes them, so that
/// no newer one's file is taken for a mistake. All others are necessary, or their usual value is the strictest.
/// Only a budget and an authority are not always written: no later key beside them may be as near to one.
const MORE_THAN_MEANT: [&str; 17] = [
    "keeping",
    "keeping.days",
    "keeping.disk_percent",
    "verifier.mode",
    "sign_in.members",
    "engines.*.memory",
    "power.role",
    "power.low_charge",
    "power.margin",
    "power.start_charge",
    "backup.limit_kib",
    "spare.port",
    "spare.disk_percent",
    "uplinks.*.metered",
    "upstreams.*.authority",
    "engines.*.served.authority",
    "engines.*.container.authority",
];

/// Is the key this one? A star stands for any name.
fn matches(pattern: &str, key: &str) -> bool {
    let (mut wanted, mut names) = (pattern.split('.'), key.split('.'));
    loop {
        match (wanted.next(), names.next()) {
            (None, None) => return true,
            (Some(wanted), Some(name)) if wanted == "*" || wanted == name => {}
            _ => return false,
        }
    }
}

impl UnknownKey {
    pub(crate) fn at(path: &Path<'_>, document: &toml::Table) -> Self {
        let mut keys = Vec::new();
        let mut rest = path;
        loop {
            rest = match rest {
                Path::Root => break,
                Path::Map { parent, key } => {
                    keys.push(key.clone());
                    parent
                }
                Path::Seq { parent, index } => {
                    keys.push(index.to_string());
                    parent
                }
                Path::Some { parent }
                | Path::NewtypeStruct { parent }
                | Path::NewtypeVariant { parent } => parent,
            };
        }
        keys.reverse();
        Self::of(keys, document)
    }

    fn of(path: Vec<String>, document: &toml::Table) -> Self {
        let mut key = Self { path, beside: false };
        key.beside = key.nearest().is_some_and(|meant| {
            let mut tables = key.path.iter().rev().skip(1).rev();
            let table = tables.try_fold(document, |table, name| table.get(name)?.as_table());
            table.is_some_and(|table| table.contains_key(meant))
        });
        key
    }

    /// As it is written in the file, such as `door.lisen`.
    pub fn key(&self) -> String {
        self.path.join(".")
    }

    /// The key that it may be a mistyped form of.
    pub fn meant(&self) -> Option<String> {
        let (_, tables) = self.path.split_last()?;
        Some([tables, &[self.nearest()?.to_owned()]].concat().join("."))
    }

    fn nearest(&self) -> Option<&'static str> {
        let (name, tables) = self.path.split_last()?;
        let far = |known: &&&str| strsim::osa_distance(name, known);
        let nearest = fields_in(tables).iter().min_by_key(far)?;
        let near = far(&nearest) <= MISTYPED.min((nearest.len() / 3).max(1));
        near.then_some(*nearest)
    }

    /// This key and the one that may be meant, where the box would do more without that than somebody may have wanted.
    pub(crate) fn hides(&self) -> Option<(String, String)> {
        let meant = self.meant().filter(|_| !self.beside)?;
        MORE_THAN_MEANT.iter().any(|p| matches(p, &meant)).then(|| (self.shown(), meant))
    }

    /// As much of it as a sentence can hold.
    fn shown(&self) -> String {
        self.key().chars().filter(|c| !c.is_control()).take(120).collect()
    }
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.shown();
        write!(
            f,
            "site.toml says {key}, which this version of polder does not know, so that it has no effect; "
        )?;
        match self.meant() {
            Some(meant) => {
                let correct = match self.beside {
                    true => format!("remove it and set {meant}, which is there too,"),
                    false => "correct it".to_owned(),
                };
                write!(
                    f,
                    "if {meant} is meant, stop the box, which writes this file from memory while it runs, {correct} and start the box again"
                )
            }
            None => write!(f, "it stays there for the version that wrote it"),
        }
    }
}

/// What a table of the document may say, by where it is.
fn fields_in(tables: &[String]) -> &'static [&'static str] {
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    match tables[..] {
        [] => fields::<Site>(),
        ["door"] => fields::<Door>(),
        ["usage"] => fields::<Metering>(),
        ["sharing"] => fields::<Sharing>(),
        ["keeping"] => fields::<Keeping>(),
        ["engines", _] => fields::<EngineSlot>(),
        ["succession"] => fields::<Succession>(),
        ["succession", "parked"] => fields::<EngineSlot>(),
        ["money"] => fields::<Money>(),
        ["engines", _, "container"] => fields::<Container>(),
        ["engines", _, "served"] => fields::<Served>(),
        ["apps", _] => fields::<App>(),
        ["verifier"] => fields::<Verifier>(),
        ["sign_in"] => fields::<SignIn>(),
        ["updates"] => fields::<Updates>(),
        ["certificate"] => fields::<PublicCertificate>(),
        ["certificate", "dns_update"] => fields::<DnsUpdate>(),
        ["certificate", "dns_hook"] => fields::<DnsHook>(),
        ["power"] => fields::<PowerPlan>(),
        ["backup"] => fields::<Backup>(),
        ["spare"] => fields::<Spare>(),
        ["backup", "keep"] => fields::<Retention>(),
        ["uplinks", _] => fields::<Uplink>(),
        ["ports", _] => fields::<PortAddress>(),
        ["dynamic_dns"] => fields::<DynamicDns>(),
        ["dynamic_dns", "zone"] => fields::<DnsZone>(),
        ["alerts"] => fields::<Alerts>(),
        ["alerts", "mail"] => fields::<MailServer>(),
        ["upstreams", _] => fields::<UpstreamServer>(),
        ["upstreams", _, "models", _] => fields::<UpstreamModel>(),
        _ => &[],
    }
}

/// The names of a type's fields, which it tells whoever hands it a value.
fn fields<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    struct Asks<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Asks<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Error::custom("asked"))
        }

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(Error::custom("no struct"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut fields: &'static [&'static str] = &[];
    // It gets no value, and that was not the question.
    let _ = T::deserialize(Asks(&mut fields));
    fields
}

/// The text of a site, with what `before` said that this version does not know. What belonged to something that is gone, such as an
/// engine, is gone with it.
pub(crate) fn rewritten(site: &Site, before: &str) -> String {
    let mut text = site.to_toml();
    let (Ok((_, unknown)), Ok(before)) = (Site::written(before), before.parse::<toml::Table>())
    else {
        return text;
    };
    for key in unknown {
        let with = text.parse().ok().and_then(|table| added(table, &before, &key.path));
        let Some(with) = with else { continue };
        if Site::from_toml(&with).is_ok_and(|read| read == *site) {
            text = with;
        }
    }
    text
}

/// A document with one value more, from another one.
fn added(mut to: toml::Table, from: &toml::Table, path: &[String]) -> Option<String> {
    let (name, tables) = path.split_last()?;
    let (mut there, mut here) = (from, &mut to);
    for table in tables {
        there = there.get(table)?.as_table()?;
        here = here.entry(table).or_insert_with(|| toml::Table::new().into()).as_table_mut()?;
    }
    here.insert(name.clone(), there.get(name)?.clone());
    toml::to_string_pretty(&to).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::SiteError;

    /// A site that says everything.
    fn everything() -> Site {
        let mut site = Site::unclaimed(8443);
        site.sharing.trusting = true;
        site.common.insert("Agent".into(), "Be brief.".into());
        site.keeping.days = 3;
        let upstream = "unix:/run/wiki.sock".parse().unwrap();
        site.apps.insert("wiki".parse().unwrap(), App { upstream, open_to: Default::default() });
        let recipe = "smollm2-135m-instruct".parse().unwrap();
        let conversations = crate::document::Conversations::Compact;
        let memory = Some("40 %".parse().unwrap());
        let slot = EngineSlot { conversations, memory, ..EngineSlot::serving(recipe) };
        site.engines.insert("fast".parse().unwrap(), slot.clone());
        let hours = |from, until| {
            let at = |seconds| jiff::Timestamp::from_second(seconds).unwrap();
            vec![crate::TrialHours { from: at(from), until: at(until) }]
        };
        let (alias, from) = ("house".parse().unwrap(), "fast".parse().unwrap());
        let memory = None;
        let slot = EngineSlot { memory, ..slot };
        let begin =
            crate::SuccessionStep::Begin { alias, from, slot, beside: false, hours: hours(9, 10) };
        site = site.stepped(&begin).unwrap();
        let at = jiff::Timestamp::from_second(20).unwrap();
        site = site.stepped(&crate::SuccessionStep::Announce { at }).unwrap();
        site.money = Some(Money { currency: "EUR".parse().unwrap() });
        let url = "unix:/run/auth.sock:/auth".parse().unwrap();
        site.verifier = Some(Verifier { url, mode: Default::default() });
        let issuer = "https://sso.example.org".parse().unwrap();
        let mut sign_in = SignIn::at("House", issuer, "box");
        (sign_in.members, sign_in.stewards) = (vec!["m".into()], vec!["s".into()]);
        sign_in.root = Some("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".into());
        site.sign_in = Some(sign_in);
        site.updates = Some(Updates { from: "https://example.org/polder".parse().unwrap() });
        site.door.names.push("gpu.example.org".into());
        site.certificate = Some(PublicCertificate {
            names: vec!["gpu.example.org".parse().unwrap()],
            directory: "https://acme.example/dir".parse().unwrap(),
            account: Some("7".into()),
            contact: Some("ada@example.org".into()),
            root: None,
            dns_update: Some(DnsUpdate {
                server: "192.0.2.1".parse().unwrap(),
                zone: "example.org".into(),
                key: "box".into(),
                wait: 20,
            }),
            dns_hook: None,
        });
        let mut power = PowerPlan::attached("usb".parse().unwrap());
        power.card_percent = Some(60);
        power.battery_since = Some("2023-05-01".parse().unwrap());
        site.power = Some(power);
        site.backup = Some(Backup::to("/mnt/usb".parse().unwrap()));
        site.spare = Some(Spare::of(crate::SpareRole::OfThis));
        let (interface, targets) = ("enp1s0".parse().unwrap(), Uplink::usual_targets());
        let uplink = Uplink { interface, order: 1, metered: false, ask_router: true, targets };
        let name = |text: &str| text.parse().unwrap();
        let (server, key) = ("ns1".into(), name("box"));
        let zone = DnsZone { name: name("a.b"), zone: name("b"), server, key };
        site.dynamic_dns = Some(DynamicDns { hook: None, zone: Some(zone) });
        site.uplinks.insert("fibre".parse().unwrap(), uplink);
        let port = PortAddress::line("10.0.0.5/8 10.0.0.1 9.9.9.9").unwrap();
        site.ports.insert("enp1s0".parse().unwrap(), port);
        let mail = MailServer {
            server: "smtp.example.org".parse().unwrap(),
            port: 465,
            security: Default::default(),
            sender: "box@example.org".parse().unwrap(),
            user: Some("box".into()),
            authority: Some("PEM".into()),
        };
        site.alerts = Some(Alerts { mail: Some(mail), ..Alerts::default() });
        let amount = |text: &str| text.parse::<crate::Amount>().unwrap();
        let model = UpstreamModel {
            called: "big".into(),
            input: amount("0.15"),
            output: amount("0.6"),
            cached: Some(amount("0.02")),
            written: Some(amount("0.20")),
            longest: Some(8192),
        };
        let upstream = UpstreamServer {
            kind: crate::UpstreamKind::Cloud,
            url: "https://api.example.org/v1".parse().unwrap(),
            authority: None,
            budget: amount("25"),
            currency: Default::default(),
            when_down: true,
            when_full: true,
            full_at: Some(8),
            models: [("big".parse().unwrap(), model)].into(),
        };
        site.upstreams.insert("cloud".parse().unwrap(), upstream);
        site
    }

    fn told(text: &str) -> Vec<(String, Option<String>)> {
        let (_, unknown) = Site::read(text).unwrap();
        unknown.iter().map(|key| (key.key(), key.meant())).collect()
    }

    #[test]
    fn a_box_starts_with_what_it_knows_and_names_the_rest() {
        let site = Site::unclaimed(8443);
        let text = format!("colour = \"red\"\n{}\n[lamps.kitchen]\non = true\n", site.to_toml());
        assert_eq!(Site::from_toml(&text).unwrap(), site);
        assert_eq!(told(&text), [("colour".into(), None), ("lamps".into(), None)]);
        let says = Site::read(&text).unwrap().1[1].to_string();
        assert!(says.contains("says lamps") && says.contains("has no effect"), "{says}");
    }

    #[test]
    fn a_mistyped_key_is_told_with_the_one_that_is_meant_wherever_it_is() {
        let text = everything().to_toml();
        let Ok(document) = text.parse::<toml::Table>() else { panic!("{text}") };
        assert!(fields::<Site>().iter().all(|name| document.contains_key(*name)), "{text}");
        let mut tried = 0;
        for tables in [
            &[][..],
            &["door"],
            &["usage"],
            &["sharing"],
            &["keeping"],
            &["engines", "fast"],
            &["apps", "wiki"],
            &["succession"],
            &["money"],
            &["verifier"],
            &["sign_in"],
            &["updates"],
            &["certificate"],
            &["certificate", "dns_update"],
            &["power"],
            &["backup"],
            &["spare"],
            &["backup", "keep"],
            &["uplinks", "fibre"],
            &["ports", "enp1s0"],
            &["dynamic_dns"],
            &["dynamic_dns", "zone"],
            &["alerts"],
            &["alerts", "mail"],
            &["upstreams", "cloud"],
            &["upstreams", "cloud", "models", "big"],
        ] {
            let mut table = &document;
            tables.iter().for_each(|name| table = table[*name].as_table().unwrap());
            for name in table.keys() {
                let mut path: Vec<String> = tables.iter().map(|name| (*name).to_owned()).collect();
                path.push(format!("{name}x"));
                let meant = [tables, &[name.as_str()]].concat().join(".");
                assert_eq!(UnknownKey::of(path, &document).meant(), Some(meant));
                tried += 1;
            }
        }
        assert_eq!(tried, 129);
        let typo = text.replace("trusting", "trustign");
        assert_eq!(told(&typo), [("sharing.trustign".into(), Some("sharing.trusting".into()))]);
    }

    #[test]
    fn a_mistyped_key_whose_usual_value_does_more_is_refused_and_beside_the_right_one_it_is_not() {
        let text = everything().to_toml();
        for (right, wrong, key, meant) in [
            ("[keeping]", "[keepin]", "keepin", "keeping"),
            ("days = 3", "dais = 0", "keeping.dais", "keeping.days"),
            (
                "disk_percent = 20",
                "disk_precent = 1",
                "keeping.disk_precent",
                "keeping.disk_percent",
            ),
            (
                "memory = \"40 %\"",
                "memroy = \"30 %\"",
                "engines.fast.memroy",
                "engines.fast.memory",
            ),
            ("mode = \"nginx\"", "mod = \"forward\"", "verifier.mod", "verifier.mode"),
            ("members = [\"m\"]", "membres = [\"m\"]", "sign_in.membres", "sign_in.members"),
            ("margin = 120", "margn = 900", "power.margn", "power.margin"),
        ] {
            let mistyped = text.replace(right, wrong);
            let says = Site::from_toml(&mistyped).unwrap_err().to_string();
            assert!(says.contains(&format!("says {key}, which")), "{says}");
            assert!(says.contains(&format!("if {meant} is meant")), "{says}");
            // A box that went by it once can still be asked about it, and nothing strange is lost when it writes.
            assert!(Site::written(&mistyped).is_ok());
            let anew = rewritten(&everything(), &mistyped);
            assert_eq!(told(&anew), [(key.into(), Some(meant.into()))]);
        }
        let none = text.replace("[keeping]\ndays = 3\ndisk_percent = 20\n", "");
        assert_eq!(Site::from_toml(&none).unwrap().keeping, Keeping::default());
    }

    #[test]
    fn a_mistyped_key_that_the_box_cannot_do_without_is_refused_with_the_one_that_is_meant() {
        let text = Site::unclaimed(8443).to_toml().replace("listen", "lisen");
        let Err(SiteError::Syntax(says)) = Site::from_toml(&text) else { panic!("it was taken") };
        assert!(says.contains("missing field `listen`"), "{says}");
        assert!(says.contains("says door.lisen") && says.contains("if door.listen is"), "{says}");
        // A strange key beside that has nothing to do with it.
        let says = Site::from_toml(&format!("lamps = 3\n{text}")).unwrap_err().to_string();
        assert!(!says.contains("lamps"), "{says}");
    }

    #[test]
    fn an_app_that_does_not_say_whom_it_is_open_to_is_opened_to_nobody() {
        let text = everything().to_toml();
        for (wrong, hint) in [("opento = \"stewards\"", true), ("", false)] {
            let text = text.replace("open_to = \"members\"", wrong);
            let Err(SiteError::Syntax(says)) = Site::from_toml(&text) else { panic!("{text}") };
            assert!(says.contains("missing field `open_to`"), "{says}");
            assert_eq!(says.contains("if apps.wiki.open_to is meant"), hint, "{says}");
        }
    }

    #[test]
    fn what_to_do_about_a_mistyped_key_never_leads_to_a_key_that_is_there_twice() {
        let text = everything().to_toml();
        let says = |text: String| Site::read(&text).unwrap().1[0].to_string();
        let beside = says(text.replace("trusting =", "trustign = false\ntrusting ="));
        for told in
            ["if sharing.trusting is meant, stop the box, ", "remove it and set sharing.trusting"]
        {
            assert!(beside.contains(told) && !beside.contains("correct it"), "{beside}");
        }
        let alone = says(text.replace("trusting =", "trustign ="));
        for told in ["if sharing.trusting is meant, stop the box, ", "correct it and start"] {
            assert!(alone.contains(told) && !alone.contains("remove it"), "{alone}");
        }
    }

    #[test]
    fn what_is_not_known_stays_where_it_is_and_goes_with_what_it_belongs_to() {
        let site = everything();
        let mut more: toml::Table = site.to_toml().parse().unwrap();
        let lamps = "on = [1, 2.5, \"x\"]\nsince = 1979-05-27\n[more]\ndeep = true";
        more.insert("lamps".into(), lamps.parse::<toml::Table>().unwrap().into());
        more.insert("zebra".into(), 7.into());
        for table in ["sharing", "verifier", "door"] {
            more[table].as_table_mut().unwrap().insert("hours".into(), 3.into());
        }
        for (table, name) in [("engines", "fast"), ("apps", "wiki")] {
            more[table][name].as_table_mut().unwrap().insert("gpu".into(), "a.b".into());
        }
        let before = toml::to_string_pretty(&more).unwrap();
        assert_eq!(told(&before).len(), 7);
        assert_eq!(rewritten(&site, &before).parse::<toml::Table>().unwrap(), more);

        let mut less = site.clone();
        less.engines.clear();
        (less.succession, less.aliases) = (None, Default::default());
        less.verifier = None;
        // Its table is not written as long as all in it is usual.
        less.sharing = Sharing::default();
        let text = rewritten(&less, &before);
        assert_eq!(Site::from_toml(&text).unwrap(), less);
        let left: Vec<String> = told(&text).into_iter().map(|(key, _)| key).collect();
        assert_eq!(left, ["apps.wiki.gpu", "door.hours", "lamps", "sharing.hours", "zebra"]);
        // Nothing strange, nothing changed.
        for before in ["", "not toml [", site.to_toml().as_str()] {
            assert_eq!(rewritten(&site, before), site.to_toml());
        }
    }
}
