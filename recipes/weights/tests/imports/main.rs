//! Imports as a steward sees them: from a disk, a server, a repository, wheels; cut, damaged, full.

mod common;
mod cuts;
mod folder;
mod hub;
mod keeping;
mod server;
mod web;
mod wheel;
