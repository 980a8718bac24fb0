use std::fmt;

use serde::{Deserialize, Serialize};

use crate::alerts::Alerts;
use crate::apps::App;
use crate::backup::{Backup, BackupPlace};
use crate::certificate::PublicCertificate;
use crate::document::{EngineSlot, Keeping, Metering, Sharing, Site};
use crate::dynamic_dns::DynamicDns;
use crate::money::Money;
use crate::names::{AppName, BoxName, EngineName, ModelAlias, UplinkName, UpstreamName};
use crate::ports::PortAddress;
use crate::power::PowerPlan;
use crate::sign_in::SignIn;
use crate::spare::Spare;
use crate::succession::SuccessionStep;
use crate::updates::Updates;
use crate::uplinks::{InterfaceName, Uplinks};
use crate::upstreams::UpstreamServer;
use crate::verifier::Verifier;

/// Everything a steward may ask to be different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiteChange {
    /// Call the box something else.
    Rename(BoxName),
    /// Listen on these addresses, answer to these extra names.
    Door {
        /// Addresses to listen on.
        listen: Vec<std::net::IpAddr>,
        /// Extra host names.
        names: Vec<String>,
    },
    /// Run this engine in this slot, importing its model first if need be.
    Engine {
        /// The slot.
        name: EngineName,
        /// What should run there.
        slot: EngineSlot,
    },
    /// Stop an engine and forget its slot (its weights stay).
    RemoveEngine(EngineName),
    /// Have a name of members' programs lead to this slot.
    Alias {
        /// The name.
        name: ModelAlias,
        /// The slot.
        to: EngineName,
    },
    /// Have the name lead nowhere.
    RemoveAlias(ModelAlias),
    /// Go on with a change of model. One that cannot be gone on with changes nothing: see [`Site::stepped`].
    Succession(SuccessionStep),
    /// Keep the books in this currency.
    Money(Money),
    /// Keep no books any more; what was written down stays.
    RemoveMoney,
    /// Count usage, or stop counting.
    Usage(Metering),
    /// Let members have more together, or less.
    Sharing(Sharing),
    /// Read these instructions once for all members.
    Common {
        /// What they are called.
        title: String,
        /// Their words.
        text: String,
    },
    /// Read them for each member again.
    RemoveCommon(String),
    /// Keep more of conversations on disk, or less, or nothing. Engines start again for it.
    Keeping(Keeping),
    /// Stand before this web app.
    App {
        /// What it is called.
        name: AppName,
        /// Where it is, and for whom.
        app: App,
    },
    /// Stand before it no more.
    RemoveApp(AppName),
    /// Ask this service who somebody is that brings no credential of the box's own.
    Verifier(Verifier),
    /// Ask nobody any more.
    RemoveVerifier,
    /// Let people sign in with what they have there.
    SignIn(Box<SignIn>),
    /// Let them sign in with the box's own passwords only.
    RemoveSignIn,
    /// Look for updates there.
    Updates(Updates),
    /// Look for updates on sticks only.
    RemoveUpdates,
    /// Have a certificate that the world trusts. The door answers to its names, too.
    Certificate(Box<PublicCertificate>),
    /// Have none but the box's own.
    RemoveCertificate,
    /// Live off this UPS when the mains is away.
    Power(PowerPlan),
    /// Watch no UPS any more.
    RemovePower,
    /// Keep backups there, in this way.
    Backup(Backup),
    /// Make no more backups; those there are stay.
    RemoveBackup,
    /// Be the spare of another box, or have one.
    Spare(Spare),
    /// Neither is nor has a spare.
    RemoveSpare,
    /// Go out by these ways, all of them; none leaves the machine's own routes as they are. Undone unless it is confirmed.
    Uplinks(Uplinks),
    /// Give a network port these addresses, or have it ask a router. Undone unless it is confirmed.
    Port {
        /// Which port.
        port: InterfaceName,
        /// What it gets.
        address: PortAddress,
    },
    /// Ask the router before an uplink to let callers in at the door's port, or ask it no more.
    AskRouter {
        /// Which uplink.
        uplink: UplinkName,
        /// Ask.
        ask: bool,
    },
    /// Tell this service or zone where the box is, whenever it goes out another way.
    DynamicDns(DynamicDns),
    /// Tell nobody any more.
    RemoveDynamicDns,
    /// Tell stewards in these ways that something is wrong.
    Alerts(Alerts),
    /// Tell nobody any more.
    RemoveAlerts,
    /// Ask this server elsewhere when the box itself cannot answer.
    Upstream {
        /// What the box calls it.
        name: UpstreamName,
        /// What it is.
        upstream: Box<UpstreamServer>,
    },
    /// Ask it no more.
    RemoveUpstream(UpstreamName),
}

impl SiteChange {
    /// The site as it would be afterwards. Not yet checked: see [`Site::check`].
    pub fn applied_to(&self, site: &Site) -> Site {
        let mut next = site.clone();
        match self {
            Self::Rename(name) => next.name = name.clone(),
            Self::Door { listen, names } => {
                next.door.listen = listen.clone();
                next.door.names = names.clone();
            }
            Self::Engine { name, slot } => {
                next.engines.insert(name.clone(), slot.clone());
            }
            Self::RemoveEngine(name) => {
                next.engines.remove(name);
            }
            Self::Alias { name, to } => {
                next.aliases.insert(name.clone(), to.clone());
            }
            Self::RemoveAlias(name) => {
                next.aliases.remove(name);
            }
            Self::Succession(step) => return site.stepped(step).unwrap_or(next),
            Self::Money(money) => next.money = Some(money.clone()),
            Self::RemoveMoney => next.money = None,
            Self::Usage(metering) => next.usage = metering.clone(),
            Self::Sharing(sharing) => next.sharing = *sharing,
            Self::Common { title, text } => {
                next.common.insert(title.clone(), text.clone());
            }
            Self::RemoveCommon(title) => {
                next.common.remove(title);
            }
            Self::Keeping(keeping) => next.keeping = *keeping,
            Self::App { name, app } => {
                next.apps.insert(name.clone(), app.clone());
            }
            Self::RemoveApp(name) => {
                next.apps.remove(name);
            }
            Self::Verifier(verifier) => next.verifier = Some(verifier.clone()),
            Self::RemoveVerifier => next.verifier = None,
            Self::SignIn(sign_in) => next.sign_in = Some((**sign_in).clone()),
            Self::RemoveSignIn => next.sign_in = None,
            Self::Updates(updates) => next.updates = Some(updates.clone()),
            Self::RemoveUpdates => next.updates = None,
            Self::Certificate(certificate) => {
                for name in &certificate.names {
                    let names = &mut next.door.names;
                    if !names.iter().any(|known| known.eq_ignore_ascii_case(name.base())) {
                        names.push(name.base().to_owned());
                    }
                }
                next.certificate = Some((**certificate).clone());
            }
            Self::RemoveCertificate => next.certificate = None,
            Self::Power(plan) => next.power = Some(plan.clone()),
            Self::RemovePower => next.power = None,
            Self::Backup(backup) => next.backup = Some(backup.clone()),
            Self::RemoveBackup => next.backup = None,
            Self::Spare(spare) => next.spare = Some(*spare),
            Self::RemoveSpare => {
                next.spare = None;
                // There is nobody any more whom they could go to.
                next.backup.take_if(|backup| backup.to == BackupPlace::Spare);
            }
            Self::Uplinks(uplinks) => next.uplinks = uplinks.clone(),
            Self::Port { port, address } => {
                next.ports.insert(port.clone(), address.clone());
            }
            Self::AskRouter { uplink, ask } => {
                if let Some(uplink) = next.uplinks.get_mut(uplink) {
                    uplink.ask_router = *ask;
                }
            }
            Self::DynamicDns(dns) => next.dynamic_dns = Some(dns.clone()),
            Self::RemoveDynamicDns => next.dynamic_dns = None,
            Self::Alerts(alerts) => next.alerts = Some(alerts.clone()),
            Self::RemoveAlerts => next.alerts = None,
            Self::Upstream { name, upstream } => {
                next.upstreams.insert(name.clone(), (**upstream).clone());
            }
            Self::RemoveUpstream(name) => {
                next.upstreams.remove(name);
            }
        }
        next.format = next.layout();
        next
    }
}

/// One line of the difference between two sites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What differs, such as `door.port`.
    pub what: String,
    /// Before; empty where it was not there.
    pub before: String,
    /// After; empty where it is gone.
    pub after: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.before.as_str(), self.after.as_str()) {
            ("", after) => write!(f, "+ {} = {after}", self.what),
            (before, "") => write!(f, "- {} = {before}", self.what),
            (before, after) => write!(f, "~ {}: {before} -> {after}", self.what),
        }
    }
}

impl Site {
    /// Every value that differs between `self` and `next`, by name.
    pub fn differences(&self, next: &Site) -> Vec<Difference> {
        let value = |site: &Site| toml::Value::try_from(site).expect("a Site is a TOML table");
        let (mut before, mut after) = (Vec::new(), Vec::new());
        flatten("", &value(self), &mut before);
        flatten("", &value(next), &mut after);
        let find = |list: &[(String, String)], key: &str| {
            list.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()).unwrap_or_default()
        };
        let mut keys: Vec<&String> = before.iter().chain(&after).map(|(k, _)| k).collect();
        let mut seen = std::collections::HashSet::new();
        keys.retain(|k| seen.insert(*k));
        keys.into_iter()
            .map(|key| Difference {
                what: key.clone(),
                before: find(&before, key),
                after: find(&after, key),
            })
            .filter(|d| d.before != d.after)
            .map(|d| Difference { before: shown(&d.before), after: shown(&d.after), ..d })
            .collect()
    }
}

/// As much of a value as a line can show.
fn shown(value: &str) -> String {
    const MOST: usize = 160;
    match value.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}… ({} letters)", &value[..end], value.chars().count()),
        None => value.to_owned(),
    }
}

fn flatten(prefix: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, out);
            }
        }
        other => out.push((prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_engine_shows_as_added_lines_and_its_removal_as_removed_ones() {
        let site = Site::unclaimed(8443);
        let slot = EngineSlot::serving("smollm2-135m-instruct".parse().unwrap());
        let next = SiteChange::Engine { name: "fast".parse().unwrap(), slot }.applied_to(&site);
        let lines: Vec<String> = site.differences(&next).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "+ engines.fast.kind = \"polder\"",
                "+ engines.fast.recipe = \"smollm2-135m-instruct\""
            ]
        );
        let back = SiteChange::RemoveEngine("fast".parse().unwrap()).applied_to(&next);
        assert_eq!(back, site);
        assert!(next.differences(&back).iter().all(|d| d.after.is_empty()));
    }

    #[test]
    fn common_instructions_are_added_and_removed_and_a_difference_shows_their_beginning() {
        let site = Site::unclaimed(8443);
        let text = "Be brief. ".repeat(300);
        let next = SiteChange::Common { title: "Agent".into(), text }.applied_to(&site);
        let lines: Vec<String> = site.differences(&next).iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("+ common.Agent = \"Be brief."), "{}", lines[0]);
        assert!(lines[0].ends_with("… (3002 letters)"), "{}", lines[0]);
        assert_eq!(SiteChange::RemoveCommon("Agent".into()).applied_to(&next), site);
    }

    #[test]
    fn a_verifier_is_set_and_removed() {
        let site = Site::unclaimed(8443);
        let url = "unix:/run/auth.sock:/auth".parse().unwrap();
        let next = SiteChange::Verifier(Verifier { url, mode: Default::default() });
        let next = next.applied_to(&site);
        let lines: Vec<String> = site.differences(&next).iter().map(ToString::to_string).collect();
        let url = "+ verifier.url = \"unix:/run/auth.sock:/auth\"";
        assert_eq!(lines, ["+ verifier.mode = \"nginx\"", url]);
        assert_eq!(SiteChange::RemoveVerifier.applied_to(&next), site);
    }

    #[test]
    fn a_box_answers_to_the_names_that_it_gets_a_certificate_for() {
        let site = Site::unclaimed(8443);
        let certificate = PublicCertificate {
            names: vec!["gpu.example.org".parse().unwrap(), "*.gpu.example.org".parse().unwrap()],
            directory: "https://acme.example/dir".parse().unwrap(),
            account: None,
            contact: None,
            root: None,
            dns_update: None,
            dns_hook: Some(crate::DnsHook {
                url: "https://hook.example".parse().unwrap(),
                wait: 20,
            }),
        };
        let next = SiteChange::Certificate(Box::new(certificate.clone())).applied_to(&site);
        assert_eq!(next.door.names, ["gpu.example.org"]);
        next.check().unwrap();
        assert_eq!(Site::from_toml(&next.to_toml()).unwrap(), next);
        let gone = SiteChange::RemoveCertificate.applied_to(&next);
        assert_eq!((gone.certificate, gone.door.names.len()), (None, 1));

        let says = |change: &dyn Fn(&mut Site)| {
            let mut site = next.clone();
            change(&mut site);
            site.check().unwrap_err().to_string()
        };
        let set = |change: fn(&mut PublicCertificate)| {
            says(&|site| change(site.certificate.as_mut().unwrap()))
        };
        assert!(says(&|site| site.door.names.clear()).contains("does not answer to gpu.example"));
        assert!(set(|c| c.names.clear()).contains("has 0 names"));
        assert!(set(|c| c.dns_hook = None).contains("only to be had by a proof in the DNS"));
        assert!(set(|c| c.root = Some("no".into())).contains("certificate in PEM"));
        assert!(set(|c| c.contact = Some("a b".into())).contains("e-mail"));
        assert!(set(|c| c.account = Some(String::new())).contains("certificate.account"));
    }

    #[test]
    fn an_unchanged_site_has_no_differences() {
        let site = Site::unclaimed(1);
        assert!(site.differences(&site.clone()).is_empty());
    }
}
