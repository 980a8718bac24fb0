//! Which of two paired boxes serves a collective, and how one takes over from the other and gives back.
//!
//! - [`Term`] is what a box knows of who serves, in `STATE/spare/term.json`: no restore replaces it.
//! - [`stand`] says from it, and from what was heard since, whether this box may serve: pure.
//! - [`allowed`] says whether a spare may take over: pure.
//! - [`next_of`] says what becomes of a takeover that was cut off after its term began: pure.
//! - [`takeover`], [`give_back`] and [`receive`] are the plans that people see: pure.
//! - [`hand`] is what a spare answers over the link: what it gives back, and which weights it has.
//! - [`choose`] says with which models a box goes on, [`adapt`] what stays of a machine when another box's state comes to it: pure.

mod adapt;
mod begun;
mod hand;
mod moment;
mod plan;
mod stand;
mod term;

pub use adapt::{Choice, adapt, choose, models};
pub use begun::{Begun, LONGEST_PAUSE, Next, listens, next_of};
pub use hand::hand;
pub use moment::Moment;
pub use plan::{Action, Facts, ForGood, become_main, give_back, receive, send, takeover};
pub use polder_control::Stand;
pub use stand::{Heard, LEASE, Permission, Silence, allowed, lease, stand};
pub use term::{Given, MOST_TERMS, Side, Term, TermError};
