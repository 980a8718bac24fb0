//! Weight files to a model specification and mapped tensors.
