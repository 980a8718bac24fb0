//! Who may use the box: members, invites, sessions, API keys, usage, in polder.db.
