use serde::{Deserialize, Serialize};

/// What will be done, in order: the same text in the wizard, the dashboard, the command line and
/// the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// One line: what all of this is for.
    pub title: String,
    /// The steps, in order. Empty when the box already is as asked.
    pub steps: Vec<Step>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Stable, machine-readable: `import-model`, `start-engine`.
    pub id: String,
    /// What a person reads: `Import SmolLM2 135M (94 MiB)`.
    pub title: String,
}

/// The id of a step that waits until somebody confirms, with [`Request::Confirm`](crate::Request::Confirm).
pub const CONFIRM: &str = "confirm";

impl Run {
    /// Whether it waits for somebody to confirm, and how many seconds are left.
    pub fn waits_for_confirmation(&self) -> Option<u64> {
        let running = |state: &StepState| match state {
            StepState::Running(progress) => Some(progress.clone()),
            _ => None,
        };
        let steps = self.plan.steps.iter().zip(&self.steps);
        let mut waiting = steps.filter(|(step, _)| step.id == CONFIRM);
        let progress = waiting.find_map(|(_, state)| running(state))?;
        Some(progress.and_then(|progress| progress.eta_seconds).unwrap_or_default())
    }
}

/// One line for the whole, then one numbered line per step.
impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.title)?;
        for (number, step) in self.steps.iter().enumerate() {
            write!(f, "\n  {}. {}", number + 1, step.title)?;
        }
        if self.steps.is_empty() {
            f.write_str("\n  nothing to do")?;
        }
        Ok(())
    }
}

/// Names one applied plan. Unique within the life of the state folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

/// A plan being applied, or one that was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its name.
    pub id: RunId,
    /// What is done.
    pub plan: Plan,
    /// One entry per step of the plan.
    pub steps: Vec<StepState>,
    /// The whole.
    pub state: RunState,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Steps are being done.
    Running,
    /// Every step is done.
    Done,
    /// A step failed; the sentence says what, why and what to do next.
    Failed(String),
    /// A steward stopped it. What was fetched stays, so that doing it again resumes.
    Cancelled,
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Not begun.
    Waiting,
    /// Begun; with figures where there are any.
    Running(Option<Progress>),
    /// Done.
    Done,
    /// Failed; one sentence.
    Failed(String),
}

/// Figures of a running step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done just now: `fetching`, `checking`, `loading`.
    pub phase: String,
    /// How much is done.
    pub done: u64,
    /// Of how much, where that is known.
    pub total: Option<u64>,
    /// Of what.
    pub unit: Unit,
    /// Per second, over the last few seconds.
    pub rate: Option<f64>,
    /// Seconds left at that rate.
    pub eta_seconds: Option<u64>,
}

/// What [`Progress`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things.
    Items,
}

impl Progress {
    /// Done as a fraction from 0 to 1, where the total is known.
    pub fn fraction(&self) -> Option<f64> {
        let total = self.total?;
        (total > 0).then(|| (self.done as f64 / total as f64).clamp(0.0, 1.0))
    }
}
