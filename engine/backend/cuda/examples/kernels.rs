//! Compiles every kernel into a folder for some kinds of cards: `kernels FOLDER sm_90a...`. What `polder engine kernels build` does,
//! for who builds this crate alone.
#![allow(clippy::unwrap_used, reason = "what fails ends it")]

use std::path::Path;

use polder_backend_cuda::arch::Arch;
use polder_backend_cuda::pack::build;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap();
    let arches: Vec<Arch> = arguments.map(|arch| arch.parse().unwrap()).collect();
    build(&arches, Path::new(&folder), |built| {
        println!("{} {}: {} bytes", built.arch, built.module, built.bytes)
    })
    .unwrap_or_else(|e| panic!("{e}"));
}
