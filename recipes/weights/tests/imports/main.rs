//! Imports as a steward sees them: from a disk, a server, a repository, wheels; cut, damaged, full.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]
mod common;
mod cuts;
mod folder;
mod hub;
mod keeping;
mod registry;
mod server;
mod web;
mod wheel;
