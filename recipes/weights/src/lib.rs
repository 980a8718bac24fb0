//! Content-addressed store of model weights: import, verify, collect.
