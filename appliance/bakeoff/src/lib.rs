//! Two engines, the owner's own model and mix, one machine: do they answer alike, and which is faster?
//!
//! [`mix`] is what is asked, [`words`] the prompts, [`parity`] whether answers agree, [`figures`] what was measured, [`verdict`] which
//! to keep: decisions without I/O. [`endpoint`] speaks the API that both sides speak, [`measure`] asks many at once.

pub mod card;
pub mod endpoint;
pub mod figures;
pub mod measure;
pub mod mix;
pub mod parity;
pub mod verdict;
pub mod words;
