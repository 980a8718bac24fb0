//! What this box is told to be: one document, `site.toml`, validated on the way in, written
//! atomically, every version kept.
//!
//! The supervisor alone writes it; everyone else reads. See [`Site`] for the document, [`Store`]
//! for the file and its history, [`SiteChange`] for everything that may change.

mod apps;
mod budget;
mod change;
mod document;
mod names;
mod store;
mod unknown;
mod updates;
mod uplinks;
mod verifier;

pub use apps::{App, Audience, Upstream, UpstreamError};
pub use budget::{Budget, BudgetError};
pub use change::{Difference, SiteChange};
pub use document::{
    Conversations, Door, EngineKind, EngineSlot, Keeping, Metering, Sharing, Site, SiteError,
    UsageVisibility,
};
pub use names::{AppName, BoxName, EngineName, NameError, RecipeName, UplinkName};
pub use store::{Store, StoreError, Version, write_durably};
pub use unknown::UnknownKey;
pub use updates::{UpdateUrl, UpdateUrlError, Updates};
pub use uplinks::{
    InterfaceName, InterfaceNameError, Target, TargetError, TargetKind, Uplink, Uplinks,
    UplinksError,
};
pub use verifier::{Verifier, VerifierMode, VerifierUrl, VerifierUrlError};
