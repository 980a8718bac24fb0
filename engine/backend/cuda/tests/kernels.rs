//! Every kernel, compiled for every kind of card, without one.
#![allow(clippy::unwrap_used, reason = "a test may")]

use polder_backend_cuda::arch::Arch;
use polder_backend_cuda::compiler::FOLDER;
use polder_backend_cuda::pack::{Pack, build};
use polder_backend_cuda::sources::MODULES;

/// Kinds of cards that the kernels have run on.
const RUN_ON: [u32; 1] = [90];

#[test]
fn every_kernel_compiles_for_every_kind_of_card_and_none_spills_on_hopper() {
    let folder = tempfile::tempdir().unwrap();
    let mut spilled = Vec::new();
    let mut cubins = 0;
    let built = build(&Arch::ALL, folder.path(), |built| {
        let label = match RUN_ON.contains(&built.arch.number) {
            true => "",
            false => "  compiled, never run",
        };
        println!("{} {}: {} bytes{label}", built.arch, built.module, built.bytes);
        for k in &built.kernels {
            println!(
                "    {:<40} {:>3} registers {:>6} shared {:>4} stack {:>4} spilled",
                k.kernel, k.registers, k.shared, k.stack, k.spills
            );
            if built.arch.number == 90 && k.spills > 0 {
                spilled.push(format!("{} of {}: {} bytes", k.kernel, built.module, k.spills));
            }
        }
        assert!(!built.kernels.is_empty(), "the compiler says nothing of {}", built.module);
        cubins += 1;
    });
    built.unwrap_or_else(|e| panic!("{e}\n(`make test` installs the compiler and sets {FOLDER})"));
    assert_eq!(cubins, MODULES.len() * Arch::ALL.len());
    assert!(spilled.is_empty(), "kernels that do not fit into registers: {spilled:#?}");

    // What was built is what an engine finds, and only whole.
    let pack = Pack { shipped: Some(folder.path().to_owned()), made: None };
    let hopper = Arch { number: 90 };
    let cubin = pack.cubin(&MODULES[0], hopper).unwrap();
    assert_eq!(&cubin[..4], b"\x7fELF");
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    assert_eq!(pack.cubin(&MODULES[0], hopper).unwrap(), cubin, "made anew, not the damaged one");
}
