use serde::{Deserialize, Serialize};

/// Whether a box that has a pair serves the collective. Anything but [`Stand::Serves`] and [`Stand::Own`] is a closed door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stand {
    /// It does.
    Serves,
    /// A spare at rest: what it serves is its own.
    Own,
    /// It comes back, and asks its spare whether that one serves now.
    Asks,
    /// Its spare cannot be asked. A steward may say at the machine that it does not serve.
    Waits,
    /// The other box serves, or is about to.
    Fenced,
    /// The state was handed to the other box.
    Handed,
    /// The other box is the collective's main box for good. This one never serves as it again.
    Retired,
}

impl Stand {
    /// Whether the door is open.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Serves | Self::Own)
    }
}

/// Why the door of a box that runs is closed to everybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// How it stands to the other box.
    pub stand: Stand,
    /// What that one is called, where it is known.
    pub other: String,
}

impl Closed {
    /// For whoever knocks: what is so, and what to do.
    pub fn sentence(&self) -> String {
        let other = match self.other.as_str() {
            "" => "the other box".to_owned(),
            name => name.to_owned(),
        };
        match self.stand {
            Stand::Fenced => format!(
                "the spare serves now: {other} stands in for this box, at the same names and with the same keys, and this machine answers nobody until it is given back; a steward does that there, on the page Takeover"
            ),
            Stand::Asks => format!(
                "this box has just started and asks {other} whether it serves in its place; try again in a moment"
            ),
            Stand::Waits => format!(
                "this box was away and cannot ask its spare {other} whether that one serves now, so it serves nothing; see that {other} is on and can be reached, or, if it certainly does not serve, say so at this machine with `polder spare serve-anyway`"
            ),
            Stand::Handed => format!(
                "this box has given back to {other}, which is about to serve; try again in a minute"
            ),
            Stand::Retired => format!(
                "this machine is out for good: its stewards have said that it is lost, and the collective goes on with {other}, at the same names and with the same keys; it never serves as that collective again, and to use it for something else it has to be made new"
            ),
            Stand::Serves | Stand::Own => "the door is open".to_owned(),
        }
    }

    /// Seconds after which trying again makes sense.
    pub fn retry_after(&self) -> u64 {
        match self.stand {
            Stand::Asks => 2,
            _ => 30,
        }
    }
}

/// What somebody wants done about who of the two serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TakeoverWish {
    /// On a spare: serve in the main box's place. With its name, a steward says that it is dead.
    TakeOver {
        /// The main box's name, as it was typed.
        dead: Option<String>,
    },
    /// On a spare that serves: give back to the main box.
    GiveBack,
    /// On the main box: go on with what its spare has handed over.
    TakeBack,
    /// On the main box: send its models to the spare.
    Send,
    /// On a spare that serves: it is the main box, for good. With the sentence that says that the other one is gone, see
    /// [`TakeoverWish::gone_for_good`]; none only to look at the plan.
    BecomeMain {
        /// The sentence, as it was typed.
        gone: Option<String>,
    },
}

impl TakeoverWish {
    /// What a steward types to say that the main box never comes back.
    pub fn gone_for_good(main: &str) -> String {
        format!("{main} is gone for good")
    }
}

/// How a pair stands, for pages and the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeoverStatus {
    /// Whether this box is the spare of the other.
    pub is_spare: bool,
    /// What the other one is called.
    pub other: String,
    /// How this box stands.
    pub stand: Stand,
    /// The highest term that it knows.
    pub term: u64,
    /// On a main box: it stops when it does not hear from its spare for the lease.
    pub yields: bool,
    /// What may be known before a takeover, or why there can be none. On a spare that serves: before it becomes the main box for good.
    pub outlook: Result<Vec<String>, String>,
    /// On a spare that serves: since when the main box is there again, so that it can be given back to; none while it is away.
    pub main_is_there: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_door_says_who_serves_and_what_to_do() {
        let said = |stand| Closed { stand, other: "elm".to_owned() }.sentence();
        assert!(said(Stand::Fenced).contains("the spare serves now: elm"));
        assert!(said(Stand::Waits).contains("serve-anyway"));
        for stand in [Stand::Asks, Stand::Waits, Stand::Fenced, Stand::Handed, Stand::Retired] {
            assert!(!stand.is_open());
            let nameless = Closed { stand, other: String::new() }.sentence();
            assert!(nameless.contains("the other box"), "{nameless}");
        }
        assert!(Stand::Serves.is_open() && Stand::Own.is_open());
    }
}
