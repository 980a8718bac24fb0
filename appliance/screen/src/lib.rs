//! What a box shows on the machine's own screen and serial line: where it is, the code to claim it with, what
//! is wrong, and a few keys, for people who have neither a network nor a shell.
//!
//! [`paint`] makes text of what is known, [`press`] says what a key does; both are pure. [`run`] looks at
//! the box now and then, paints every terminal, and reads their keys. [`Terminal`] and [`fold`] are for the
//! installer too.

mod keys;
mod paint;
mod run;
mod terminal;

pub use keys::{Act, Here, Mode, press};
pub use paint::{Facts, Shown, fold, paint};
pub use run::{ScreenError, run};
pub use terminal::Terminal;
