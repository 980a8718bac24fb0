use serde::{Deserialize, Serialize};

/// To the part that looks after the spare, on either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpareRequest {
    /// → [`SpareReply::Status`].
    Status,
    /// On a spare: show a code that a main box can pair with. → [`SpareReply::Code`].
    ShowCode,
    /// No code any more. → [`SpareReply::Done`].
    HideCode,
    /// Forget the other box, and tell it where it can be reached. → [`SpareReply::Done`].
    Unpair,
    /// On a spare: remove the backups of boxes that are not paired with it. → [`SpareReply::Done`].
    RemoveOld,
    /// What the main box's audit trail ended with, as the spare keeps it, newest first. → [`SpareReply::Heads`].
    Heads,
    /// On a spare that takes over: an epoch above all that are known, from now on its own; refused while the main box may still serve.
    /// → [`SpareReply::Epoch`].
    RaiseEpoch,
    /// This epoch is this box's own: for the main box that serves again. → [`SpareReply::Epoch`].
    SetEpoch(u64),
    /// On a spare that stands in: the main box is gone for good. It is forgotten, its certificate opens nothing any more, and it hears so if it ever
    /// comes back. → [`SpareReply::Done`].
    Retire,
}

/// From it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpareReply {
    /// How things are.
    Status(Box<SpareStatus>),
    /// A code, to be typed on the main box.
    Code {
        /// The code.
        code: String,
        /// Seconds for which it is good.
        seconds: u64,
    },
    /// What the trail ended with: number and hash.
    Heads(Vec<(u64, String)>),
    /// The epoch.
    Epoch(u64),
    /// Done.
    Done,
    /// No; one sentence.
    Refused(String),
}

// A code must not reach a log through a stray `{:?}`.
impl std::fmt::Debug for SpareReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::Code { seconds, .. } => {
                write!(f, "Code {{ code: (hidden), seconds: {seconds} }}")
            }
            Self::Heads(heads) => write!(f, "Heads({})", heads.len()),
            Self::Epoch(epoch) => write!(f, "Epoch({epoch})"),
            Self::Done => f.write_str("Done"),
            Self::Refused(why) => write!(f, "Refused({why:?})"),
        }
    }
}

/// A box and its spare at one moment, as one of them sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpareStatus {
    /// This box is the spare; otherwise it has one.
    pub is_spare: bool,
    /// On a spare: where it listens.
    pub port: u16,
    /// On a spare: seconds for which it has listened there.
    pub listening: u64,
    /// This box's own link certificate, short, for two people to compare.
    pub own: String,
    /// The other box; none while there is none.
    pub peer: Option<SparePeer>,
    /// On a spare: seconds for which the code that is shown is still good.
    pub code: Option<u64>,
    /// On a spare: what went wrong when somebody tried to pair with it, newest last.
    pub tries: Vec<String>,
    /// Seconds since the other box was last heard; none where it never was.
    pub silent: Option<i64>,
    /// On the main box: why it cannot be reached now.
    pub trouble: Option<String>,
    /// The epoch of this box.
    pub epoch: u64,
    /// The other one's.
    pub peer_epoch: u64,
    /// On a spare: it may take over.
    pub may_take_over: bool,
    /// On a spare: the last epoch that it began itself to take over.
    pub began: Option<u64>,
    /// On a spare: its main box knows how to go on where a takeover comes to nothing.
    pub may_be_left: bool,
    /// On a spare: its main box stops by itself when it does not hear from it for the lease.
    pub yields: bool,
    /// On a main box: it must hear from the spare before it serves.
    pub must_ask: bool,
    /// Another box serves under a higher epoch.
    pub fenced: bool,
    /// How many keys and members were revoked on the main box, where that is known here.
    pub revoked: Option<u64>,
    /// How many of those the spare has on disk.
    pub confirmed: u64,
    /// How many entries the main box's audit trail had when the spare last heard of it.
    pub head: Option<u64>,
    /// What the spare, or the main box beside it, noticed of a trail that was cut off.
    pub truncated: Option<String>,
    /// Bytes of backups on the spare, bytes that it takes at most, and bytes free on its disk.
    pub room: Option<(u64, u64, u64)>,
    /// When the last backup came to the spare, Unix seconds.
    pub backup: Option<i64>,
    /// When the spare last restored one for a trial, Unix seconds, and what it found: well, or what is wrong.
    pub drill: Option<(i64, Result<String, String>)>,
    /// On a spare: bytes of backups of boxes that are not paired with it any more.
    pub old: u64,
    /// On a former main box: the other one is the main box for good, and this one never is again.
    pub retired: bool,
    /// Former main boxes that this one followed for good: each with since when, Unix seconds.
    pub formers: Vec<(String, i64)>,
    /// Where a list of them lies that could not be read: one that only it knew cannot hear that it is out.
    pub formers_aside: Option<String>,
}

/// The other box.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SparePeer {
    /// What it is called.
    pub name: String,
    /// Its link certificate, short.
    pub fingerprint: String,
    /// On a main box: where the spare is.
    pub address: Option<String>,
    /// Unix seconds.
    pub paired_at: i64,
    /// It is certain that the other one has pinned this one too.
    pub settled: bool,
}

/// Seconds of silence after which a steward should look.
const SILENT: i64 = 5 * 60;

impl SpareStatus {
    /// What a steward has to do something about, one sentence each.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let Some(peer) = &self.peer else { return wrong };
        let who = match self.is_spare {
            true => format!("the main box {}", peer.name),
            false => format!("the spare {}", peer.name),
        };
        if self.silent.is_some_and(|seconds| seconds >= SILENT) {
            let minutes = self.silent.unwrap_or(0) / 60;
            let why = self.trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            wrong.push(format!("Nothing was heard of {who} for {minutes} minutes{why}"));
        } else if self.silent.is_none() && self.trouble.is_some() {
            let why = self.trouble.clone().unwrap_or_default();
            wrong.push(format!("Nothing was ever heard of {who} ({why})"));
        }
        if self.retired {
            wrong.push(format!(
                "{who} is the collective's main box for good: this machine never serves as it again; make it new"
            ));
        } else if self.fenced {
            wrong.push(format!("{who} serves in this box's place: this one must not"));
        }
        if let Some(truncated) = &self.truncated {
            wrong.push(format!(
                "The audit trail does not fit to what the spare keeps of it: {truncated}"
            ));
        }
        if let Some((used, most, free)) = self.room
            && nearly_full(used, most, free)
        {
            wrong.push("The spare's room for backups is nearly used up".to_owned());
        }
        if let Some((_, Err(why))) = &self.drill {
            wrong.push(format!("The spare's last trial restore found that {why}"));
        }
        wrong
    }
}

/// Less than a tenth, or less than a gibibyte, is left.
pub(crate) fn nearly_full(used: u64, most: u64, free: u64) -> bool {
    let left = most.saturating_sub(used).min(free);
    left < most / 10 || left < 1 << 30
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steward_is_told_of_silence_of_a_full_disk_of_a_trail_cut_off_and_of_nothing_else() {
        let peer = Some(SparePeer { name: "ash".into(), ..SparePeer::default() });
        let mut status = SpareStatus { peer, silent: Some(10), ..SpareStatus::default() };
        status.room = Some((1 << 30, 100 << 30, 500 << 30));
        status.drill = Some((1, Ok("well".into())));
        assert_eq!(status.wrong(), Vec::<String>::new());
        status.silent = Some(600);
        status.trouble = Some("connection refused".into());
        status.room = Some((95 << 30, 100 << 30, 500 << 30));
        status.truncated = Some("the last ones were cut off".into());
        status.drill = Some((1, Err("it has no site.toml".into())));
        let wrong = status.wrong().join("\n");
        for said in ["ash for 10 minutes (connection", "nearly used up", "cut off", "no site.toml"]
        {
            assert!(wrong.contains(said), "{wrong}");
        }
        let code = SpareReply::Code { code: "4821-otter-lamp".into(), seconds: 600 };
        assert!(!format!("{code:?}").contains("otter"));
    }
}
