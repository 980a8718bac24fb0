//! What goes wrong with a card, done to it: kernels that no engine has, in a process of their own.
#![allow(dead_code, unreachable_pub, unsafe_code, clippy::unwrap_used)]

use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use polder_backend_cuda::compiler::Compiler;
use polder_backend_cuda::device::{Device, Kernel, Loaded, Pinned, Ptr, Shape, Stream};
use polder_backend_cuda::sources::Module;

/// Compiled where a test asks for them; in no pack.
const FAULTS: Module = Module {
    name: "faults",
    text: r#"
struct Place { unsigned int* at; };
extern "C" __global__ void trap(Place) { asm volatile("trap;"); }
extern "C" __global__ void write_to(Place place) { *(volatile unsigned int*)place.at = 1; }
extern "C" __global__ void wait_for(Place place) { while (*(volatile unsigned int*)place.at == 0) {} }
"#,
};

/// A card with kernels that break it. It is the same to the driver as the one that an engine in this process has.
pub struct Breaker {
    stream: Stream,
    device: Device,
    loaded: Loaded,
    /// Not zero: those that wait go on.
    go: Pinned<u32>,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Place {
    at: Ptr,
}

impl Breaker {
    pub fn new() -> Self {
        let device = Device::open(0).unwrap();
        let cubin = Compiler::find().unwrap().compile(&FAULTS, device.arch()).unwrap().cubin;
        let loaded = device.load(&cubin).unwrap();
        Self { stream: device.stream().unwrap(), go: device.pinned(1).unwrap(), loaded, device }
    }

    fn kernel(&self, name: &std::ffi::CStr) -> Kernel {
        self.loaded.kernel(name).unwrap()
    }

    /// An instruction that stops everything.
    pub fn trap(&self) {
        let place = Place { at: Ptr(0) };
        // SAFETY: it is meant to fail.
        unsafe { self.stream.launch(&self.kernel(c"trap"), &Shape::row(1, 1), &place) }.unwrap();
    }

    /// Writes where nothing is.
    pub fn write_nowhere(&self) {
        let place = Place { at: Ptr(0x100) };
        // SAFETY: it is meant to fail.
        unsafe { self.stream.launch(&self.kernel(c"write_to"), &Shape::row(1, 1), &place) }
            .unwrap();
    }

    /// Takes every multiprocessor until it is let go.
    pub fn hang(&self) {
        let place = Place { at: Ptr(self.go.as_ptr() as u64) };
        let all = Shape::row(2 * self.device.processors(), 1024);
        // SAFETY: the flag lives as long as this.
        unsafe { self.stream.launch(&self.kernel(c"wait_for"), &all, &place) }.unwrap();
    }

    pub fn let_go(&mut self) {
        self.go[0] = 1;
    }
}

/// Set in the process in which a test happens.
const INSIDE: &str = "POLDER_TEST_INSIDE";

/// Runs a test of this name in a process of its own: whatever it does to the card ends with that. Says whether this is that process. There
/// the test goes on; here it has passed there within `limit`.
pub fn inside(name: &str, limit: Duration) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", name]).env(INSIDE, "1");
    let status = ended(&mut command, limit);
    assert!(status.success(), "{name}: {status}");
    false
}

/// How a process ended, which it does within `limit`.
pub fn ended(command: &mut Command, limit: Duration) -> ExitStatus {
    let mut process = command.spawn().unwrap();
    let begun = Instant::now();
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > limit {
            process.kill().unwrap();
            panic!("{command:?} has not ended after {limit:?}: {}", process.wait().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
