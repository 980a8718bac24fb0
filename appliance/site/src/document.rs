use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::alerts::{Alerts, MailError};
use crate::apps::App;
use crate::backup::{Backup, BackupPlace};
use crate::budget::Budget;
use crate::certificate::{Proof, PublicCertificate, PublicName};
use crate::dynamic_dns::{DynamicDns, DynamicDnsError};
use crate::foreign::{Container, ForeignFault, Served, is_word};
use crate::money::Money;
use crate::names::{AppName, BoxName, EngineName, ModelAlias, RecipeName};
use crate::ports::{self, AddressFault, Ports};
use crate::power::PowerPlan;
use crate::sign_in::{SignIn, SignInError};
use crate::spare::{Spare, SpareRole};
use crate::succession::Succession;
use crate::unknown::UnknownKey;
use crate::updates::Updates;
use crate::uplinks::{self, Uplinks, UplinksError};
use crate::upstreams::{UpstreamFault, Upstreams};
use crate::verifier::Verifier;

/// The document's layout; raised when an old binary could misread a new file. A key that it may leave out of account is no
/// reason: see `unknown.rs`.
const FORMAT: u32 = 1;
/// The layout of a site with a slot that another server than our engine serves: a new word for an old key.
const FORMAT_FOREIGN: u32 = 2;

/// What the box is told to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Layout version of this file.
    pub format: u32,
    /// What the box is called.
    pub name: BoxName,
    /// Where it listens.
    pub door: Door,
    /// What is counted, and who may see it.
    #[serde(default)]
    pub usage: Metering,
    /// What members have together in the engines.
    #[serde(default, skip_serializing_if = "Sharing::is_usual")]
    pub sharing: Sharing,
    /// How conversations of several members begin, by title: instructions that their programs send, whose words are no
    /// secret. They are read once for everybody.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub common: BTreeMap<String, String>,
    /// What engines keep of conversations so that going on with one is quick. Always written: see `unknown.rs`.
    #[serde(default)]
    pub keeping: Keeping,
    /// The engines that should run, by slot. Empty until a model is chosen.
    #[serde(default)]
    pub engines: BTreeMap<EngineName, EngineSlot>,
    /// What members' programs call models, and the slot that each name leads to. Looked up before recipes and slots.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<ModelAlias, EngineName>,
    /// A change of model that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succession: Option<Succession>,
    /// What the collective's money is counted in, where it keeps its books here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money: Option<Money>,
    /// Other web apps on this machine that the door stands before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub apps: BTreeMap<AppName, App>,
    /// Who is asked about people that bring no credential of the box's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier: Option<Verifier>,
    /// Where the collective's people sign in already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_in: Option<SignIn>,
    /// Where updates of the image are looked for; sticks are looked at without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updates: Option<Updates>,
    /// A certificate that the world trusts; the box's own authority is always there beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PublicCertificate>,
    /// The UPS that the box lives off when its mains is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<PowerPlan>,
    /// Where copies of the box's small precious state are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// The other box, where one of the two is the other's spare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<Spare>,
    /// The ways out to the internet, where the box looks after them; without any, the machine's own routes are used as they are.
    #[serde(default, skip_serializing_if = "Uplinks::is_empty")]
    pub uplinks: Uplinks,
    /// Network ports whose addresses somebody decided about; the others ask a router.
    #[serde(default, skip_serializing_if = "Ports::is_empty")]
    pub ports: Ports,
    /// Who is told where the box is, whenever it goes out another way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dynamic_dns: Option<DynamicDns>,
    /// How stewards are told that something is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<Alerts>,
    /// Servers elsewhere that are asked when the box itself cannot answer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub upstreams: Upstreams,
}

/// The public door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// One port speaks TLS to everyone and plain HTTP to loopback.
    pub port: u16,
    /// Addresses to listen on. A trial box listens on loopback only.
    pub listen: Vec<IpAddr>,
    /// Other host names that the box answers to, besides `NAME.local` and `localhost`.
    #[serde(default)]
    pub names: Vec<String>,
}

/// Usage counting: off unless the collective wants it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Metering {
    /// Count tokens per member.
    #[serde(default)]
    pub per_member: bool,
    /// Who may see the counts, besides each member their own.
    #[serde(default)]
    pub visible_to: UsageVisibility,
}

/// What members have together in the engines' memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sharing {
    /// How a conversation begins is kept for all members, and not for each their own: what several of them send is read
    /// once. Somebody could then tell by the time of an answer whether another has sent the same before.
    #[serde(default)]
    pub trusting: bool,
}

impl Sharing {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What engines keep of conversations on disk, encrypted with a key for each member. It saves reading them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeping {
    /// Days after which what nobody came back to is dropped; 0 keeps nothing on disk.
    #[serde(default = "usual_days")]
    pub days: u16,
    /// Most of the state disk that all engines together may use for it, in percent.
    #[serde(default = "usual_percent")]
    pub disk_percent: u8,
}

impl Default for Keeping {
    fn default() -> Self {
        Self { days: usual_days(), disk_percent: usual_percent() }
    }
}

fn usual_days() -> u16 {
    30
}

fn usual_percent() -> u8 {
    20
}

/// Who sees members' usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsageVisibility {
    /// Each member sees only their own.
    #[default]
    Nobody,
    /// Stewards see everyone's.
    Stewards,
    /// Everyone sees everyone's.
    Everyone,
}

/// One engine that should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSlot {
    /// Which pinned model it serves.
    pub recipe: RecipeName,
    /// What serves it.
    #[serde(default)]
    pub kind: EngineKind,
    /// How it holds conversations in a graphics card's memory.
    #[serde(default, skip_serializing_if = "Conversations::is_usual")]
    pub conversations: Conversations,
    /// Most memory that it takes. Without one, an only engine takes what is free, and several share: see the planner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Budget>,
    /// For [`EngineKind::Container`]: which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Box<Container>>,
    /// For [`EngineKind::Url`]: where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Box<Served>>,
}

/// How an engine holds what was said in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conversations {
    /// Every number as it was computed, in 16 bits.
    #[default]
    Full,
    /// Every number rounded to 8 bits: twice as many or twice as long conversations fit, and answers may come out a little otherwise. Only on
    /// a graphics card; a processor holds them in full and says so.
    Compact,
}

impl Conversations {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl EngineSlot {
    /// That serves a model, with the usual values for everything else.
    pub fn serving(recipe: RecipeName) -> Self {
        let (kind, conversations) = (EngineKind::default(), Conversations::default());
        Self { recipe, kind, conversations, memory: None, container: None, served: None }
    }

    /// What the model is called by whoever serves it, where that is not our own engine.
    pub fn called(&self) -> &str {
        let container = self.container.as_ref().and_then(|container| container.called.as_deref());
        let served = self.served.as_ref().and_then(|served| served.called.as_deref());
        container.or(served).unwrap_or(self.recipe.as_str())
    }

    fn check(&self, name: &EngineName) -> Result<(), ForeignFault> {
        let (kind, needed, fits) = match self.kind {
            EngineKind::Polder => {
                ("polder", "container or served", self.container.is_none() && self.served.is_none())
            }
            EngineKind::Container => {
                ("container", "container", self.container.is_some() && self.served.is_none())
            }
            EngineKind::Url => ("url", "served", self.served.is_some() && self.container.is_none()),
        };
        if !fits {
            return Err(ForeignFault::Table { slot: name.to_string(), kind, needed });
        }
        let container = self.container.as_ref();
        let arguments = container.map(|container| &container.arguments[..]).unwrap_or_default();
        if arguments.len() > 100
            || !arguments.iter().all(|word| is_word(word))
            || !is_word(self.called())
        {
            return Err(ForeignFault::Word(name.to_string()));
        }
        container.map_or(Ok(()), |container| container.check(name.as_str()))
    }
}

/// What serves a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// Our own engine.
    #[default]
    Polder,
    /// Another server, in a container that the box starts and stops.
    Container,
    /// Another server, which somebody else looks after.
    Url,
}

/// `site.toml` does not say something that a box can be.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// Not TOML, a field that is missing, or a value of the wrong kind.
    #[error("site.toml cannot be read: {0}")]
    Syntax(String),
    /// A key is not known and may be a mistyped form of one whose usual value does more than may be wanted.
    #[error(
        "site.toml says {key}, which this version of polder does not know, and not {meant}, whose usual value may be more than you want; if {meant} is meant, correct it, and if not, write {meant} too, then start the box again"
    )]
    Mistyped {
        /// What the file says.
        key: String,
        /// What it does not say.
        meant: String,
    },
    /// From another time.
    #[error(
        "site.toml has format {found}, this version of polder reads formats {FORMAT} and {FORMAT_FOREIGN}; start the version that wrote it"
    )]
    Format {
        /// What the file says.
        found: u32,
    },
    /// The door has no address to listen on.
    #[error(
        "site.toml: door.listen is empty, so nobody could reach the box; name at least 127.0.0.1"
    )]
    NoListen,
    /// Port 0 is not a port that members could be told.
    #[error("site.toml: door.port is 0; choose a port from 1 to 65535")]
    NoPort,
    /// More of the disk than others can spare.
    #[error(
        "site.toml: keeping.disk_percent is {0}; choose 1 to 80, since weights and members need room on the same disk, or days = 0 to keep nothing there"
    )]
    KeepsTooMuch(u8),
    /// What the box is to be for another, or another for it, does not fit together.
    #[error("site.toml: {0}")]
    Spare(String),
    /// There is none that backups could go to.
    #[error(
        "site.toml: backup.to is the spare, and this box has none; pair it with one on the page Spare first, or name another place for backups"
    )]
    NoSpare,
    /// Every copy would be removed again.
    #[error(
        "site.toml: backup.keep has only zeros, so that no backup would be kept; let it keep some hours, days, weeks or months"
    )]
    KeepsNoBackup,
    /// More than there is.
    #[error(
        "site.toml: the engines may take {0} % of the memory, all together, and there are 100 %; lower engines.{1}.memory"
    )]
    SharesTooMuch(u32, EngineName),
    /// What the box is to do on battery does not fit together.
    #[error("site.toml: {0}")]
    Power(String),
    /// A host name that no certificate could carry.
    #[error("site.toml: door.names has {0:?}, which is not a host name")]
    HostName(String),
    /// An app behind the door that is the door.
    #[error(
        "site.toml: the app {0} is at the box's own port, so that requests would go round in circles; name the port of the app"
    )]
    AppIsDoor(AppName),
    /// A verifier that is the door.
    #[error(
        "site.toml: the verifier is at the box's own port, so that the box would ask itself for ever; name the port of the verifier"
    )]
    VerifierIsDoor,
    /// A public certificate for nothing, or for more names than one may have.
    #[error("site.toml: certificate.names has {0} names; write 1 to 100, or leave certificate out")]
    CertificateNames(usize),
    /// A public certificate for somebody else.
    #[error(
        "site.toml: certificate.names has {0}, and the box does not answer to {base}; add {base} to door.names first", base = .0.base()
    )]
    CertificateForeign(PublicName),
    /// A wildcard that this proof cannot get.
    #[error(
        "site.toml: certificate.names has {0}, which is only to be had by a proof in the DNS; name each name, or choose dns_update or dns_hook"
    )]
    CertificateWildcard(PublicName),
    /// A text that stands where a certificate, a zone or an address should.
    #[error("site.toml: certificate.{0} is not {1}; correct it or leave it out")]
    CertificateText(&'static str, &'static str),
    /// Instructions with a title that no line could show.
    #[error(
        "site.toml: common instructions need a title of 1 to 60 letters, and {0:?} is none; shorten it"
    )]
    CommonTitle(String),
    /// Instructions without words.
    #[error("site.toml: the common instructions {0:?} are empty; write them or leave them out")]
    CommonEmpty(String),
    /// Too many of them.
    #[error(
        "site.toml: the common instructions have {bytes} bytes, all together, and {most} are the most; remove some"
    )]
    CommonLong {
        /// How long they are.
        bytes: usize,
        /// How long they may be.
        most: usize,
    },
    /// A name of a model that leads nowhere, or a change of model that cannot be.
    #[error("site.toml: {0}")]
    Succession(String),
    /// Uplinks that no box can have.
    #[error(transparent)]
    Uplinks(#[from] UplinksError),
    /// Addresses that no port can have.
    #[error("site.toml: ports: {0}")]
    Ports(#[from] AddressFault),
    /// Nobody could be told where the box is in that way.
    #[error(transparent)]
    DynamicDns(#[from] DynamicDnsError),
    /// A mail server that cannot be used as it says.
    #[error("site.toml: alerts.mail: {0}")]
    Mail(#[from] MailError),
    /// Nobody could sign in with that service.
    #[error("site.toml: sign_in: {0}")]
    SignIn(#[from] SignInError),
    /// A server elsewhere that cannot be asked.
    #[error("site.toml: {0}")]
    Upstream(#[from] UpstreamFault),
    /// A slot that nothing could serve as it says.
    #[error("site.toml: {0}")]
    Foreign(#[from] ForeignFault),
    /// A host name of an app that is a name of the box.
    #[error(
        "site.toml: the box would answer to {host} as the app {app} and as itself; call the app something else"
    )]
    AppHost {
        /// The app.
        app: AppName,
        /// The name.
        host: String,
    },
}

impl Site {
    /// A box nobody has set up yet: it listens on loopback and serves no model.
    pub fn unclaimed(port: u16) -> Self {
        Self {
            format: FORMAT,
            name: "polder".parse().expect("the literal is a valid name"),
            door: Door { port, listen: vec![IpAddr::from([127, 0, 0, 1])], names: Vec::new() },
            usage: Metering::default(),
            sharing: Sharing::default(),
            common: BTreeMap::new(),
            keeping: Keeping::default(),
            engines: BTreeMap::new(),
            aliases: BTreeMap::new(),
            succession: None,
            money: None,
            apps: BTreeMap::new(),
            verifier: None,
            sign_in: None,
            updates: None,
            certificate: None,
            power: None,
            backup: None,
            spare: None,
            uplinks: Uplinks::new(),
            ports: Ports::new(),
            dynamic_dns: None,
            alerts: None,
            upstreams: Upstreams::new(),
        }
    }

    /// A slot with this model in it. What else it says stays as it is.
    pub fn slot_with(&self, name: &EngineName, recipe: RecipeName) -> EngineSlot {
        match self.engines.get(name) {
            Some(slot) => EngineSlot { recipe, ..slot.clone() },
            None => EngineSlot::serving(recipe),
        }
    }

    /// Reads and checks a document. Keys that this version does not know are left out of account.
    pub fn from_toml(text: &str) -> Result<Self, SiteError> {
        Self::read(text).map(|(site, _)| site)
    }

    /// Reads and checks a document, and says which of its keys this version does not know.
    pub(crate) fn read(text: &str) -> Result<(Self, Vec<UnknownKey>), SiteError> {
        let (site, unknown) = Self::written(text)?;
        match unknown.iter().find_map(UnknownKey::hides) {
            Some((key, meant)) => Err(SiteError::Mistyped { key, meant }),
            None => Ok((site, unknown)),
        }
    }

    /// The same for a document that this box has written once and went by, whatever it may hide.
    pub(crate) fn written(text: &str) -> Result<(Self, Vec<UnknownKey>), SiteError> {
        // The format first: a newer file may have fields that this version would call unknown.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let syntax = |error: toml::de::Error| SiteError::Syntax(one_line(&error.to_string()));
        let head: Head = toml::from_str(text).map_err(syntax)?;
        if ![FORMAT, FORMAT_FOREIGN].contains(&head.format) {
            return Err(SiteError::Format { found: head.format });
        }
        let table: toml::Table = toml::from_str(text).map_err(syntax)?;
        let mut unknown = Vec::new();
        let document = toml::Deserializer::parse(text);
        let site: Result<Self, _> = document.and_then(|document| {
            serde_ignored::deserialize(document, |path| unknown.push(UnknownKey::at(&path, &table)))
        });
        let site = site.map_err(|error| {
            // What is missing may be there under a wrong name.
            let meant = unknown.iter().filter(|key| key.meant().is_some());
            let hints: String = meant.map(|key| format!("; {key}")).collect();
            SiteError::Syntax(format!("{}{hints}", one_line(&error.to_string())))
        })?;
        site.check()?;
        Ok((Self { format: site.layout(), ..site }, unknown))
    }

    /// The oldest layout that says all of it without being misread.
    pub fn layout(&self) -> u32 {
        let foreign = self.engines.values().any(|slot| slot.kind != EngineKind::Polder);
        if foreign { FORMAT_FOREIGN } else { FORMAT }
    }

    /// Writes the document.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a Site has only types that TOML can hold")
    }

    /// What types cannot say.
    pub fn check(&self) -> Result<(), SiteError> {
        if self.door.port == 0 {
            return Err(SiteError::NoPort);
        }
        if self.door.listen.is_empty() {
            return Err(SiteError::NoListen);
        }
        if !(1..=80).contains(&self.keeping.disk_percent) {
            return Err(SiteError::KeepsTooMuch(self.keeping.disk_percent));
        }
        let share = |slot: &EngineSlot| match slot.memory {
            Some(Budget::Percent(percent)) => u32::from(percent),
            _ => 0,
        };
        let shares: u32 = self.engines.values().map(share).sum();
        if let (101.., Some((largest, _))) =
            (shares, self.engines.iter().max_by_key(|(_, slot)| share(slot)))
        {
            return Err(SiteError::SharesTooMuch(shares, largest.clone()));
        }
        if let Some(fault) = self.power.as_ref().and_then(PowerPlan::fault) {
            return Err(SiteError::Power(fault));
        }
        for name in &self.door.names {
            let label = |l: &str| {
                !l.is_empty()
                    && l.len() <= 63
                    && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                    && !l.starts_with('-')
                    && !l.ends_with('-')
            };
            if name.len() > 253 || !name.split('.').all(label) {
                return Err(SiteError::HostName(name.chars().take(80).collect()));
            }
        }
        if self.verifier.as_ref().and_then(|v| v.url.upstream().port()) == Some(self.door.port) {
            return Err(SiteError::VerifierIsDoor);
        }
        self.check_certificate()?;
        if self.backup.as_ref().is_some_and(|backup| !backup.keep.keeps_something()) {
            return Err(SiteError::KeepsNoBackup);
        }
        self.check_spare()?;
        uplinks::check(&self.uplinks)?;
        ports::check(&self.ports)?;
        self.dynamic_dns.as_ref().map_or(Ok(()), DynamicDns::check)?;
        if let Some(mail) = self.alerts.as_ref().and_then(|alerts| alerts.mail.as_ref()) {
            mail.check()?;
        }
        if let Some(sign_in) = &self.sign_in {
            sign_in.check()?;
        }
        self.upstreams
            .iter()
            .try_for_each(|(name, upstream)| upstream.check(name, self.door.port))?;
        self.engines.iter().try_for_each(|(name, slot)| slot.check(name))?;
        self.check_common()?;
        self.check_succession().map_err(SiteError::Succession)?;
        self.check_apps()
    }

    fn check_spare(&self) -> Result<(), SiteError> {
        let role = self.spare.as_ref().map(|spare| spare.role);
        let to_spare = self.backup.as_ref().is_some_and(|b| b.to == BackupPlace::Spare);
        if to_spare && role != Some(SpareRole::OfThis) {
            return Err(SiteError::NoSpare);
        }
        let checked = self.spare.map_or(Ok(()), |spare| spare.check(self.door.port));
        checked.map_err(SiteError::Spare)
    }

    fn check_certificate(&self) -> Result<(), SiteError> {
        let Some(certificate) = &self.certificate else { return Ok(()) };
        let names = &certificate.names;
        if !(1..=100).contains(&names.len()) {
            return Err(SiteError::CertificateNames(names.len()));
        }
        let ours = |name: &&PublicName| {
            self.door.names.iter().any(|own| {
                let rest = name.base().strip_suffix(&own.to_ascii_lowercase());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })
        };
        if let Some(foreign) = names.iter().find(|name| !ours(name)) {
            return Err(SiteError::CertificateForeign(foreign.clone()));
        }
        if certificate.proof() == Proof::Http
            && let Some(star) = names.iter().find(|name| name.is_wildcard())
        {
            return Err(SiteError::CertificateWildcard(star.clone()));
        }
        let plain = |text: &str| {
            (1..=200).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_graphic())
        };
        if certificate.account.as_deref().is_some_and(|account| !plain(account)) {
            return Err(SiteError::CertificateText("account", "the number of an account's key"));
        }
        if certificate.contact.as_deref().is_some_and(|to| !plain(to) || !to.contains('@')) {
            return Err(SiteError::CertificateText("contact", "an e-mail address"));
        }
        let pem = |text: &str| {
            text.len() <= 16 << 10
                && text.trim_start().starts_with("-----BEGIN CERTIFICATE-----")
                && text.trim_end().ends_with("-----END CERTIFICATE-----")
        };
        if certificate.root.as_deref().is_some_and(|root| !pem(root)) {
            return Err(SiteError::CertificateText("root", "a certificate in PEM"));
        }
        if let Some(update) = &certificate.dns_update
            && ![&update.zone, &update.key].iter().all(|text| plain(text))
        {
            return Err(SiteError::CertificateText(
                "dns_update",
                "whole: it needs a zone and a key",
            ));
        }
        if certificate.dns_update.is_some() && certificate.dns_hook.is_some() {
            return Err(SiteError::CertificateText("dns_hook", "possible beside dns_update"));
        }
        Ok(())
    }

    fn check_common(&self) -> Result<(), SiteError> {
        /// All texts together, in bytes: the site is sent about whole.
        const MOST: usize = 64 << 10;
        let title = |t: &str| {
            let letters = t.chars().count();
            t.trim() == t && (1..=60).contains(&letters) && !t.chars().any(char::is_control)
        };
        for (name, text) in &self.common {
            if !title(name) {
                return Err(SiteError::CommonTitle(name.chars().take(80).collect()));
            }
            if text.trim().is_empty() {
                return Err(SiteError::CommonEmpty(name.clone()));
            }
        }
        match self.common.values().map(String::len).sum::<usize>() {
            bytes if bytes > MOST => Err(SiteError::CommonLong { bytes, most: MOST }),
            _ => Ok(()),
        }
    }

    fn check_apps(&self) -> Result<(), SiteError> {
        for (name, app) in &self.apps {
            if app.upstream.port() == Some(self.door.port) {
                return Err(SiteError::AppIsDoor(name.clone()));
            }
            let hosts = self.hosts_of(name);
            if let Some(host) = hosts.into_iter().find(|host| self.answers_to(host)) {
                return Err(SiteError::AppHost { app: name.clone(), host });
            }
        }
        Ok(())
    }

    /// Every host name the box answers to: `localhost`, its own, and the extra ones.
    pub fn host_names(&self) -> Vec<String> {
        let mut names =
            vec!["localhost".to_owned(), self.name.to_string(), format!("{}.local", self.name)];
        names.extend(self.door.names.iter().map(|n| n.to_ascii_lowercase()));
        names.dedup();
        names
    }

    /// Is this, in lower case, one of [`Site::host_names`]?
    pub fn answers_to(&self, host: &str) -> bool {
        host == "localhost"
            || host.strip_suffix(".local").unwrap_or(host) == self.name.as_str()
            || self.door.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// The app that this host name, in lower case, is for: `APP.` before a name of the box with a
    /// dot in it, or before `localhost`.
    pub fn app_at(&self, host: &str) -> Option<(&AppName, &App)> {
        let (label, rest) = host.split_once('.')?;
        let (name, app) = self.apps.iter().find(|(name, _)| name.as_str() == label)?;
        (self.answers_to(rest) && carries_apps(rest)).then_some((name, app))
    }

    /// Every host name of an app.
    pub fn hosts_of(&self, app: &AppName) -> Vec<String> {
        let names = self.host_names().into_iter().filter(|host| carries_apps(host));
        names.map(|host| format!("{app}.{host}")).collect()
    }

    /// Would an engine be told the same by `other`? What it keeps and how much memory it takes it is told when it starts, and without a
    /// budget of its own it takes what others leave: their budgets, or what their models need.
    pub fn tells_alike(&self, other: &Self, name: &EngineName) -> bool {
        let (ours, theirs) = (self.engines.get(name), other.engines.get(name));
        let budgeted = ours.is_some_and(|slot| slot.memory.is_some());
        let takes = |site: &Self| -> Vec<_> {
            let of = |(name, slot): (&EngineName, &EngineSlot)| {
                let needs =
                    slot.memory.is_none().then(|| (slot.recipe.clone(), slot.conversations));
                (name.clone(), slot.memory, needs)
            };
            // What another machine serves takes nothing here.
            site.engines.iter().filter(|(_, slot)| slot.kind != EngineKind::Url).map(of).collect()
        };
        ours == theirs && self.keeping == other.keeping && (budgeted || takes(self) == takes(other))
    }

    /// True while only this machine can reach the box: a trial.
    pub fn is_trial(&self) -> bool {
        self.door.listen.iter().all(IpAddr::is_loopback)
    }
}

/// An address has no names below it; a name without a dot is a search list's business.
fn carries_apps(host: &str) -> bool {
    host == "localhost" || (host.contains('.') && host.parse::<IpAddr>().is_err())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier::VerifierMode;

    #[test]
    fn a_site_reads_back_as_it_was_written() {
        let mut site = Site::unclaimed(8443);
        site.engines.insert(
            "fast".parse().unwrap(),
            EngineSlot {
                conversations: Conversations::Compact,
                ..EngineSlot::serving("smollm2-135m-instruct".parse().unwrap())
            },
        );
        assert!(site.to_toml().contains("conversations = \"compact\""));
        site.door.names.push("ai.example.org".into());
        assert_eq!(Site::from_toml(&site.to_toml()).unwrap(), site);
    }

    #[test]
    fn another_model_in_a_slot_leaves_the_rest_of_it_as_it_was() {
        let (name, recipe): (EngineName, RecipeName) =
            ("fast".parse().unwrap(), "tiny".parse().unwrap());
        let mut site = Site::unclaimed(8443);
        let mut slot = site.slot_with(&name, recipe.clone());
        assert_eq!(slot.conversations, Conversations::Full);
        assert!(!site.to_toml().contains("conversations"));
        slot.conversations = Conversations::Compact;
        site.engines.insert(name.clone(), slot.clone());
        let other: RecipeName = "other".parse().unwrap();
        assert_eq!(site.slot_with(&name, other.clone()), EngineSlot { recipe: other, ..slot });
    }

    #[test]
    fn common_instructions_keep_their_lines_and_have_a_title_and_an_end() {
        let with = |title: &str, text: String| {
            let mut site = Site::unclaimed(8443);
            site.common.insert(title.into(), text);
            site
        };
        let site = with("Code agent", "You are\n  \"brief\".\n".into());
        assert_eq!(Site::from_toml(&site.to_toml()).unwrap(), site);
        for (title, text) in [("", "x"), (" a", "x"), ("a\nb", "x"), ("a", " \n")] {
            let site = with(title, text.into());
            assert!(Site::from_toml(&site.to_toml()).is_err(), "{title:?}: {text:?}");
        }
        assert!(with(&"a".repeat(61), "x".into()).check().is_err());
        assert!(with("long", "x".repeat(64 << 10)).check().is_ok());
        assert!(with("longer", "x".repeat((64 << 10) + 1)).check().is_err());
    }

    #[test]
    fn what_is_kept_on_disk_has_usual_bounds_and_can_be_switched_off() {
        let read = |keeping: &str| {
            let usual = "[keeping]\ndays = 30\ndisk_percent = 20";
            let text = Site::unclaimed(8443).to_toml();
            assert!(text.contains(usual), "{text}");
            Site::from_toml(&text.replace(usual, &format!("[keeping]\n{keeping}")))
        };
        let usual = Site::unclaimed(8443);
        assert_eq!((usual.keeping.days, usual.keeping.disk_percent), (30, 20));
        let off = read("days = 0").unwrap();
        assert_eq!(off.keeping, Keeping { days: 0, ..Keeping::default() });
        assert_eq!(Site::from_toml(&off.to_toml()).unwrap(), off);
        for wrong in [0, 81] {
            let read = read(&format!("disk_percent = {wrong}"));
            assert!(matches!(read, Err(SiteError::KeepsTooMuch(part)) if part == wrong));
        }
    }

    #[test]
    fn a_file_from_a_newer_polder_says_so_instead_of_complaining_about_its_fields() {
        let text = Site::unclaimed(8443).to_toml().replace("format = 1", "format = 3\nnew = true");
        assert!(matches!(Site::from_toml(&text), Err(SiteError::Format { found: 3 })));
    }

    #[test]
    fn an_app_has_a_host_name_below_each_name_of_the_box() {
        let mut site = Site::unclaimed(8443);
        site.name = "oak".parse().unwrap();
        site.door.names = vec!["AI.example.org".into(), "203.0.113.9".into()];
        let wiki: AppName = "wiki".parse().unwrap();
        let upstream = "http://127.0.0.1:3000".parse().unwrap();
        site.apps.insert(wiki.clone(), App { upstream, open_to: Default::default() });
        assert_eq!(Site::from_toml(&site.to_toml()).unwrap(), site);
        let hosts = ["wiki.localhost", "wiki.oak.local", "wiki.ai.example.org"];
        assert_eq!(site.hosts_of(&wiki), hosts);
        for host in hosts {
            assert_eq!(site.app_at(host).map(|(name, _)| name), Some(&wiki), "{host}");
        }
        for host in
            ["oak.local", "wiki.oak", "wiki.203.0.113.9", "x.wiki.oak.local", "pad.oak.local"]
        {
            assert!(site.app_at(host).is_none(), "{host}");
        }
        for host in site.host_names() {
            assert!(site.answers_to(&host), "{host}");
        }
        assert!(!site.answers_to("wiki.oak.local") && !site.answers_to("oak.local.local"));
    }

    #[test]
    fn an_app_that_is_the_door_or_has_the_boxs_name_is_refused() {
        let mut site = Site::unclaimed(8443);
        let upstream = "http://127.0.0.1:8443".parse().unwrap();
        site.apps.insert("wiki".parse().unwrap(), App { upstream, open_to: Default::default() });
        assert!(matches!(site.check(), Err(SiteError::AppIsDoor(_))));
        let upstream = "http://127.0.0.1:3000".parse().unwrap();
        site.apps.insert("wiki".parse().unwrap(), App { upstream, open_to: Default::default() });
        site.door.names = vec!["wiki.polder.local".into()];
        assert!(matches!(site.check(), Err(SiteError::AppHost { .. })));
    }

    #[test]
    fn a_verifier_is_read_and_one_elsewhere_or_of_another_kind_is_refused_in_a_sentence() {
        let read = |verifier: &str| {
            let text = format!("{}\n[verifier]\n{verifier}", Site::unclaimed(8443).to_toml());
            Site::from_toml(&text).map_err(|error| error.to_string())
        };
        let site = read("url = \"http://127.0.0.1:4180/oauth2/auth\"\nmode = \"forward\"").unwrap();
        assert_eq!(site.verifier.as_ref().unwrap().mode, VerifierMode::Forward);
        assert_eq!(Site::from_toml(&site.to_toml()).unwrap(), site);
        let elsewhere = read("url = \"http://10.0.0.1:4180/auth\"").unwrap_err();
        assert!(elsewhere.contains("on this machine"), "{elsewhere}");
        let own = read("url = \"http://127.0.0.1:8443/auth\"").unwrap_err();
        assert!(own.contains("ask itself for ever"), "{own}");
        let mode = read("url = \"unix:/a:/b\"\nmode = \"caddy\"").unwrap_err();
        assert!(mode.contains("caddy"), "{mode}");
    }

    #[test]
    fn an_engine_s_memory_is_an_amount_or_a_part_and_parts_are_no_more_than_all() {
        let read = |fast: &str, slow: &str| {
            let slot = |name, memory| {
                format!("\n[engines.{name}]\nrecipe = \"tiny\"\nmemory = {memory}\n")
            };
            let text = Site::unclaimed(8443).to_toml() + &slot("fast", fast) + &slot("slow", slow);
            Site::from_toml(&text).map_err(|error| error.to_string())
        };
        let site = read("\"24 GiB\"", "\"60 %\"").unwrap();
        let memory = |name: &str| site.engines[&name.parse().unwrap()].memory;
        assert_eq!(memory("fast"), Some(Budget::Bytes(24 << 30)));
        assert_eq!(memory("slow"), Some(Budget::Percent(60)));
        assert_eq!(Site::from_toml(&site.to_toml()).unwrap(), site);
        let over = read("\"41 %\"", "\"60 %\"").unwrap_err();
        assert!(over.contains("101 %") && over.contains("engines.slow.memory"), "{over}");
        assert!(read("\"much\"", "\"60 %\"").unwrap_err().contains("40 %"));
        assert!(read("24", "\"60 %\"").is_err());
    }

    #[test]
    fn an_engine_without_a_budget_is_told_of_every_other_one() {
        let (fast, slow): (EngineName, EngineName) =
            ("fast".parse().unwrap(), "slow".parse().unwrap());
        let mut alone = Site::unclaimed(8443);
        alone.engines.insert(fast.clone(), EngineSlot::serving("tiny".parse().unwrap()));
        let mut both = alone.clone();
        both.engines.insert(slow.clone(), EngineSlot::serving("big".parse().unwrap()));
        assert!(!alone.tells_alike(&both, &fast) && alone.tells_alike(&alone, &fast));
        let with = |recipe: &str, memory: Option<u8>| {
            let mut site = both.clone();
            let memory = memory.map(Budget::Percent);
            let slot = EngineSlot { memory, ..EngineSlot::serving(recipe.parse().unwrap()) };
            site.engines.insert(slow.clone(), slot);
            site
        };
        // What another with a budget serves is nothing to it, but how much that may take is.
        assert!(with("big", Some(40)).tells_alike(&with("bigger", Some(40)), &fast));
        assert!(!with("big", Some(40)).tells_alike(&with("big", Some(50)), &fast));
        assert!(!with("big", None).tells_alike(&with("bigger", None), &fast));
        for site in [&mut alone, &mut both] {
            let slot = site.engines.get_mut(&fast).unwrap();
            slot.memory = Some(Budget::Percent(30));
        }
        assert!(alone.tells_alike(&both, &fast));
    }

    #[test]
    fn doors_that_nobody_could_use_are_refused() {
        let text = Site::unclaimed(8443).to_toml();
        assert!(matches!(Site::from_toml(&text.replace("8443", "0")), Err(SiteError::NoPort)));
        assert!(matches!(
            Site::from_toml(&text.replace("\"127.0.0.1\"", "")),
            Err(SiteError::NoListen)
        ));
        assert!(matches!(
            Site::from_toml(&text.replace("names = []", "names = [\"a b\"]")),
            Err(SiteError::HostName(_))
        ));
    }
}
