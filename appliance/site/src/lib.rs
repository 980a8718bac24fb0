//! What this box is told to be: one document, `site.toml`, validated on the way in, written
//! atomically, every version kept.
//!
//! The supervisor alone writes it; everyone else reads. See [`Site`] for the document, [`Store`]
//! for the file and its history, [`SiteChange`] for everything that may change.

mod alerts;
mod amount;
mod apps;
mod backup;
mod budget;
mod certificate;
mod change;
mod document;
mod dynamic_dns;
mod foreign;
mod money;
mod names;
mod ports;
mod power;
mod sign_in;
mod spare;
mod store;
mod succession;
mod unknown;
mod updates;
mod uplinks;
mod upstreams;
mod verifier;

pub use alerts::{Alerts, AlertsFrom, MailAddress, MailError, MailHost, MailSecurity, MailServer};
pub use amount::{Amount, AmountError};
pub use apps::{App, Audience, Upstream, UpstreamError};
pub use backup::{Backup, BackupPlace, BackupPlaceError, FileSystemId, Retention, plain_label};
pub use budget::{Budget, BudgetError};
pub use certificate::{
    CertificateError, DirectoryUrl, DnsHook, DnsUpdate, HostPort, Proof, PublicCertificate,
    PublicName,
};
pub use change::{Difference, SiteChange};
pub use document::{
    Conversations, Door, EngineKind, EngineSlot, Keeping, Metering, Sharing, Site, SiteError,
    UsageVisibility,
};
pub use dynamic_dns::{DnsName, DnsZone, DynamicDns, DynamicDnsError, HookUrl};
pub use foreign::{Container, ForeignFault, ImageDigest, ImageName, Served};
pub use money::{Currency, CurrencyError, Money};
pub use names::{
    AppName, BoxName, EngineName, ModelAlias, NameError, RecipeName, UplinkName, UpstreamName,
};
pub use ports::{AddressFault, OwnAddress, PortAddress, Ports, ports_of};
pub use power::{PowerPlan, UpsAddress, UpsAddressError, UpsLine, UpsLineError, UpsRole};
pub use sign_in::{IssuerUrl, SignIn, SignInError};
pub use spare::{Spare, SpareRole};
pub use store::{Store, StoreError, Version, write_durably};
pub use succession::{Stage, Succession, SuccessionError, SuccessionStep, TrialHours};
pub use unknown::UnknownKey;
pub use updates::{UpdateUrl, UpdateUrlError, Updates};
pub use uplinks::{
    InterfaceName, InterfaceNameError, Target, TargetError, TargetKind, Uplink, Uplinks,
    UplinksError,
};
pub use upstreams::{
    UpstreamFault, UpstreamKind, UpstreamModel, UpstreamServer, UpstreamUrl, Upstreams,
};
pub use verifier::{Verifier, VerifierMode, VerifierUrl, VerifierUrlError};
