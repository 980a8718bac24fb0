//! Continuous batching over a back end.
