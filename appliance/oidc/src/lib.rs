//! OpenID Connect, both ways, for the door: people sign in on the box with what the collective has already, and on other apps
//! with what they have on the box.
//!
//! *In*: [`Services`] knows the collective's own service, [`Service::begin`] says where a browser is sent, [`Ways`] remembers
//! it, and [`Service::finish`] hears who came back; [`Standing`] is what their groups say. *Out*: [`judge`] reads what an app
//! asks for, [`redeem`] and [`refresh`] what it wants tokens for, and [`Keys`] sign who somebody is.
//!
//! Nothing here knows of members, pages or the database. What is said to **block** asks over the network or makes a key.

mod asked;
mod groups;
mod keys;
mod service;
mod token;
mod ways;
mod web;

use std::path::PathBuf;

pub use asked::{AppFacts, Asked, Redirect, RedirectError, Wanted, Wrong, judge};
pub use groups::Standing;
pub use keys::Keys;
pub use service::{Answer, Known, Service, Services, Way};
pub use token::{
    Credentials, Given, Person, TokenAsked, TokenRefused, credentials, description, redeem,
    refresh, userinfo,
};
pub use ways::{MOST_FROM_ONE, Ways};

/// Somebody could not be signed in, or signed for. Each is one sentence fit for a page.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// Nobody answered.
    #[error("{name} does not answer ({why}); sign in with your password, or try again later")]
    Away {
        /// What people call the service.
        name: String,
        /// Why, without any secret.
        why: String,
    },
    /// Whoever answered is no such service.
    #[error(
        "{name} does not describe itself as a service that people can sign in with ({why}); a steward must look at its address"
    )]
    NoService {
        /// What people call the service.
        name: String,
        /// Why.
        why: String,
    },
    /// Whoever answered is another service.
    #[error(
        "at the address of {name} is a service that calls itself something else; a steward must write its address exactly as it does"
    )]
    Elsewhere {
        /// What people call the service.
        name: String,
    },
    /// The certificate that the site names.
    #[error(
        "the certificate of the authority in sign_in.root cannot be read; a steward must paste it anew"
    )]
    Root,
    /// A way that nobody began, or somebody else, or too long ago, or that was gone already.
    #[error(
        "this sign-in was begun in another browser, or too long ago, or is over already; begin again"
    )]
    Lost,
    /// The answer came from another service than the one that was asked.
    #[error(
        "the answer does not come from {name}, so that nobody was signed in; begin again, and tell a steward if it happens again"
    )]
    MixedUp {
        /// What people call the service.
        name: String,
    },
    /// It said no.
    #[error("{name} did not let you in: {why}")]
    Denied {
        /// What people call the service.
        name: String,
        /// What it said.
        why: String,
    },
    /// It did not take the code.
    #[error(
        "{name} did not take what your browser brought back ({why}); begin again, and if it happens again, a steward must look at the client's number and secret"
    )]
    NotRedeemed {
        /// What people call the service.
        name: String,
        /// What it said.
        why: String,
    },
    /// What it says of somebody is not proven.
    #[error("what {name} says of you is not proven: {why}")]
    NotProven {
        /// What people call the service.
        name: String,
        /// Why, in words.
        why: &'static str,
    },
    /// The keys could not be kept.
    #[error(transparent)]
    Files(#[from] polder_pki::PkiError),
    /// A key could not be made or used.
    #[error("the key in {} cannot be made or used: {why}; restart the box", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}
