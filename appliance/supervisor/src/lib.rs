//! Makes the site true: plans what has to be done, does it in named steps, and keeps the parts of
//! the box (the gateway and the engines) running.
//!
//! [`run`] is the whole of it: it takes the state folder for itself, starts what the site says,
//! answers on `control.sock`, and ends everything in order when told. How a part is started and
//! stopped is behind [`Parts`]; [`Children`] runs parts as child processes, [`systemd::Units`] as
//! units of the init system. Where models come from is behind [`Shelf`]; [`Weights`] is the real one.
//!
//! The supervisor alone writes `site.toml`, the audit trail and the list of runs.

mod audit;
mod board;
mod children;
mod desk;
mod disk;
mod doorway;
mod erase;
mod fit;
mod foreign;
mod image;
mod keeper;
mod kept;
pub mod lifeline;
mod machine;
mod pace;
mod parts;
mod plan;
mod probe;
pub mod restart;
mod runs;
mod shares;
mod shelf;
mod shell;
mod supervisor;
pub mod systemd;
mod weights;
mod work;
#[cfg(test)]
mod year;

pub use audit::{Trail, TrailError, Verdict, verify};
pub use children::Children;
pub use erase::ending;
pub use fit::fit_restored;
pub use image::{Change, Chore, Helper, ImageAction, Places};
pub use kept::{kept_by, packed_by};
pub use machine::{memory, this_machine};
pub use parts::{Ended, Part, Parts, PartsError, Process};
pub use plan::{Action, Observed, Wanted, plan};
pub use probe::{Health, ask};
pub use shares::memory_shares;
pub use shelf::{Described, ImportEnd, Shelf};
pub use shell::{MOST_HOURS, OPEN_SHELL, ShellOrder};
pub use supervisor::{Ending, Options, Patience, SupervisorError, run};
pub use weights::{Weights, figures};
