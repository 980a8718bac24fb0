//! Servers elsewhere and in containers: whom a question is put to, what it may cost, and how it is asked.
//!
//! [`whom_to_ask`] decides, as a pure function; [`Price`] says what an answer may cost and did; [`Wire`] carries a question over TLS
//! and brings back a [`Metered`] answer, which counts what it used; [`StandIn`] answers at an engine's socket for a server
//! that is not ours; [`container`] runs such a server under podman, of one of the [`images`] that are on the box.

mod cards;
mod choose;
pub mod container;
mod fault;
pub mod images;
mod meter;
mod paid;
mod price;
mod question;
mod removal;
mod secrets;
mod servers;
mod stand_in;
mod terms;
mod told;
mod unpacked;
mod usage;
mod wire;

pub use choose::{Candidate, Here, Leave, Situation, Way, WhyNot, whom_to_ask};
pub use fault::{Answered, Fault, answered};
pub use meter::{Ended, Meter, Metered};
pub use paid::{BEFORE_IT, LONGEST_ANSWER, USUAL_ANSWER};
pub use price::{Price, prompt_estimate};
pub use question::{Asked, QuestionFault, speaks};
pub use removal::{open_up, remove_tree};
pub use secrets::{Holder, Secrets, SecretsError, login};
pub use servers::{Packed, Run, ServerFault, ServerRecipe};
pub use stand_in::{AWAY, StandIn, StandInError};
pub use terms::{Term, terms, terms_of_removal};
pub use usage::{MOST_TOKENS, Usage};
pub use wire::{ELSEWHERE, Place, Wire, WireBody, WireError, fetch_authority, hops};
