//! What fits on a box, how many people at once, how fast, and what it costs, for `polder plan`, the
//! wizard and the dashboard.
//!
//! [`plan`] is pure: a box, a recipe, a number of members and [`Assumptions`] give an [`Estimate`]
//! whose every number carries its unit, the formula with the actual numbers put in, and how it is
//! known. [`Estimate::render_table`] is for people; the `serde` form is for programs.

mod assumptions;
mod cost;
mod count;
mod estimate;
mod fits;
mod guide;
mod memory;
mod quantity;
mod request;
mod shares;
mod speed;
mod table;
mod text;

pub use assumptions::Assumptions;
pub use cost::Cost;
pub use count::{KvShape, MoeLayers, Weights, distinct_experts};
pub use estimate::{Estimate, plan};
pub use fits::{ModelFit, what_fits};
pub use guide::Note;
pub use memory::{Fit, KvPerToken, Memory, SessionRow, Verdict};
pub use quantity::{Quantity, Span, Unit};
pub use request::{PlanError, PlanRequest};
pub use shares::{Lodger, Room, ShareError, shares};
pub use speed::{DecodeRow, PrefillRow, StepRow, step_seconds};
