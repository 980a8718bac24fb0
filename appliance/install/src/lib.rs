//! Puts Polder from a stick onto a disk inside the machine, for somebody who has a screen, a serial line or a
//! browser and no shell.
//!
//! [`survey`] makes disks of what the system lists, [`plan`] says what has to be done with one, [`press`] what
//! a key does and [`paint`] what is shown: all pure. [`Installer`] does it, once for all faces; [`run`] is the
//! face of the machine itself, [`Face`] that in a browser.

mod boot;
mod copy;
mod disks;
mod error;
mod installer;
mod keys;
mod machine;
mod paint;
mod plan;
mod run;
mod unattended;
mod web;
mod work;

pub use disks::{Disk, Refusal, SurveyError, size, survey};
pub use error::InstallError;
pub use installer::Installer;
pub use keys::{Act, Mode, press};
pub use machine::{disk, disks, least, source};
pub use paint::{View, Web, paint};
pub use plan::{Action, RootHash, Source, plan};
pub use run::run;
pub use unattended::{Unattended, unattended};
pub use web::{Face, PORT, WebError};
