//! Stories on the real image in a virtual machine: one file per thing that happens to a machine. They need
//! root, and what `make test-vm` prepares: POLDER_VM_DISK (the image's disk), POLDER_VM_TESTER (the room
//! with QEMU in it), POLDER_VM_KEPT (where boxes are kept that stories go on from), POLDER_SMOLLM2_FOLDER. Stories that are ignored are slow or need another image:
//! `make test-vm-all` prepares that and runs them too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod aarch64;
mod battery;
mod claimed;
mod driver;
mod erased;
mod first_boot;
mod forgotten;
mod guarded;
mod indoors;
mod install;
mod machine;
mod power;
mod power_cut;
mod sealed;
mod shell;
mod troubled;
mod updates;
mod uplinks;
mod usb_backup;
