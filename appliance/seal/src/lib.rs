//! Keeps the disk of a box shut, for the steward who decides what opens it: sealed to its machine, opened with a
//! recovery key, or made to forget. On the image this is the one part that runs as root, for one question at a time.
//!
//! [`answer`] is the root side: one [`Ask`] comes in on a socket that only the user `polder` can open, one [`Answer`]
//! goes out. [`forget`] is what is left of a reset after the start. What is decided is pure, in `decide`.

mod ask;
mod decide;
mod forget;
mod programs;
mod root;

pub use ask::{Answer, Ask, LOCKED, Reset, SAFE_MODE, SOCKET};
pub use forget::{forget, was_reset};
pub use root::{Places, SealError, answer};
