//! The wizard: a typed state machine from claim to first member, and its pages.
