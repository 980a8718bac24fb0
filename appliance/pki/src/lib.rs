//! The box's own certificate authority and the certificate it serves, kept and renewed without
//! anybody's help, for the gateway.
//!
//! A collective has no certificate authority that knows `polder.local`, so the box makes one at its
//! first start and members install its certificate once. Because an installed authority is a
//! dangerous thing, this one may speak for nothing but the box's own names and addresses: the limit
//! is written into its certificate as a critical extension, so that even its stolen key cannot
//! impersonate a bank.
//!
//! [`Keeper`] is everything the gateway needs. Decisions (is another certificate due? is another
//! authority?) are pure functions over plain facts in [`mod@decide`]; files and keys are in thin
//! shells around them.

mod addresses;
mod authority;
mod clock;
pub mod decide;
mod examine;
pub mod files;
mod keeper;
mod leaf;
mod names;
mod public;

pub use addresses::machine_addresses;
pub use authority::Ca;
pub use clock::Clock;
pub use examine::examine;
pub use keeper::{Keeper, Refreshed};
pub use names::Names;
pub use public::PublicChain;

use std::io;
use std::path::PathBuf;

/// Something went wrong with keys or certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read.
    #[error("could not read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("could not write {}; is the disk full?", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The authority's file is not what we wrote. It is never replaced silently: members trust it.
    #[error(
        "{} is damaged ({why}); restore it from a backup, or move it away to get a new certificate authority, which every member must then install",
        path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// In what way.
        why: String,
    },
    /// A key or certificate could not be made.
    #[error("could not make a certificate")]
    Make(#[from] rcgen::Error),
    /// The TLS library does not take the key that was just made.
    #[error("the TLS library refused the box's certificate")]
    Tls(#[from] rustls::Error),
}
