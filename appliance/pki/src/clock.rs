use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// There from when systemd's keeper of the time has heard it, until the machine is turned off.
const HEARD: &str = "/run/systemd/timesync/synchronized";

/// What a machine says the time is, and how far that is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Unix seconds.
    pub now: i64,
    /// Somebody who knows has told this machine the time since it started. Without, its battery may be empty, and the time
    /// may be one that has long been.
    pub told: bool,
}

impl Clock {
    /// This machine's. Where another program than systemd's keeps the time, nobody is known to have told it: what is
    /// made then is a little more careful, and works as well.
    pub fn here() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Self { now, told: Path::new(HEARD).exists() }
    }
}

/// A time that is known to be right.
impl From<i64> for Clock {
    fn from(now: i64) -> Self {
        Self { now, told: true }
    }
}
