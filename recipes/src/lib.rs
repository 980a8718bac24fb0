//! Pinned models and known machines.
