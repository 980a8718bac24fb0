//! `polder`.
fn main() {}
