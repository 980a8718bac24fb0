use std::path::PathBuf;

/// Something about members could not be done. Each message is one sentence fit for a page.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    /// The file could not be opened or made.
    #[error("could not open the members' database {}: {why}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A newer polder wrote it.
    #[error(
        "the members' database has layout {found}, this version of polder knows layouts up to {known}; start the version that wrote it"
    )]
    Newer {
        /// What the file says.
        found: i64,
        /// What we know.
        known: i64,
    },
    /// No space.
    #[error("the disk is full, so nothing was saved; free some space and try again")]
    DiskFull,
    /// SQLite failed.
    #[error("the members' database failed: {0}; nothing was saved")]
    Database(rusqlite::Error),
    /// The system has no random numbers.
    #[error("the system gave no random numbers, so no secret could be made: {0}")]
    Random(String),
    /// A field is not usable; the sentence says why.
    #[error("{0}")]
    Field(String),
    /// Somebody has that name.
    #[error("there is a member named {0:?} already; choose another name")]
    NameTaken(String),
    /// The box would have nobody to look after it.
    #[error("this is the last steward; make somebody else a steward first")]
    LastSteward,
    /// One steward alone would change another.
    #[error(
        "{0} is a steward, whom one steward alone does not change; propose it on the page Stewards, and another one agrees"
    )]
    NeedsTwo(String),
    /// No member has that id.
    #[error("there is no such member; perhaps they were removed meanwhile")]
    NoMember,
    /// No key of theirs has that id.
    #[error("there is no such key; perhaps it was revoked meanwhile")]
    NoKey,
    /// The invite was used, withdrawn, or is too old, or never was.
    #[error("this invite was used, withdrawn or is too old; ask a steward for a new one")]
    InviteGone,
    /// Not the member's password.
    #[error("that is not your present password")]
    WrongPassword,
    /// The box has a steward.
    #[error("this box has a steward already; sign in instead")]
    Claimed,
    /// The setup session is over.
    #[error("this setup session is over; sign in, or open setup again from the console")]
    SetupOver,
    /// Too many people sign in at once.
    #[error("too many people are signing in at this moment; try again in a few seconds")]
    Busy,
}

impl From<rusqlite::Error> for MembersError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::DiskFull,
            _ => Self::Database(error),
        }
    }
}

/// A claim was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ClaimRefused {
    /// The code is not the one shown, or was used, or is too old: deliberately one answer.
    #[error(
        "that code is not good: it is mistyped, used, or too old; look at the console again, or have it show a new one"
    )]
    Wrong,
    /// Too many tries.
    #[error("too many tries; wait {seconds} seconds")]
    TooMany {
        /// How long to wait.
        seconds: u64,
    },
    /// It could not be looked up.
    #[error(transparent)]
    Failed(#[from] MembersError),
}

/// A sign-in was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SignInRefused {
    /// No such name, wrong password or disabled: deliberately one answer.
    #[error("name and password do not belong together, or the member is disabled")]
    Wrong,
    /// Too many tries.
    #[error("too many tries; wait {seconds} seconds")]
    TooMany {
        /// How long to wait.
        seconds: u64,
    },
    /// It could not be looked up.
    #[error(transparent)]
    Failed(#[from] MembersError),
}

/// A key was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// Not a key of this box, or revoked: one answer.
    #[error(
        "this API key is not known here or was revoked; make a new one on your page of the box"
    )]
    Unknown,
    /// Too old.
    #[error("this API key has expired; make a new one on your page of the box")]
    Expired,
}

/// A request is over one of its key's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// Requests per minute.
    #[error("this key's limit of {limit} requests per minute is reached; wait {seconds} seconds")]
    Requests {
        /// The limit.
        limit: u32,
        /// How long to wait.
        seconds: u64,
    },
    /// Tokens per minute.
    #[error("this key's limit of {limit} tokens per minute is reached; wait {seconds} seconds")]
    Tokens {
        /// The limit.
        limit: u32,
        /// How long to wait.
        seconds: u64,
    },
    /// Requests at once.
    #[error("this key's limit of {limit} requests at once is reached; wait for one to finish")]
    Concurrency {
        /// The limit.
        limit: u32,
    },
    /// Tokens, if what runs now uses as much as it may.
    #[error(
        "the requests of this key that run now may use up its limit of {limit} tokens; wait for one of them to end"
    )]
    Reserved {
        /// The limit per minute or per month.
        limit: u64,
    },
    /// Tokens this month.
    #[error("this key's quota of {limit} tokens this month is used up; it begins anew next month")]
    Month {
        /// The quota.
        limit: u64,
        /// Seconds until next month begins (UTC).
        seconds: u64,
    },
}

impl LimitReached {
    /// For `Retry-After`, in seconds.
    pub fn retry_after(&self) -> u64 {
        match self {
            Self::Requests { seconds, .. }
            | Self::Tokens { seconds, .. }
            | Self::Month { seconds, .. } => *seconds,
            Self::Concurrency { .. } | Self::Reserved { .. } => 1,
        }
    }
}

/// What was asked for with recovery sheets was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryRefused {
    /// The sheets are mistyped, or not two of those in force.
    #[error(transparent)]
    Sheets(polder_recovery::RecoveryError),
    /// Too many tries.
    #[error("too many tries; wait {seconds} seconds")]
    TooMany {
        /// How long to wait.
        seconds: u64,
    },
    /// It could not be looked up, or what else was typed is not good.
    #[error(transparent)]
    Failed(#[from] MembersError),
}
