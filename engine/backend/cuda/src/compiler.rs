//! NVIDIA's run-time compiler: CUDA C++ in, machine code out.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};

use crate::arch::Arch;
use crate::sources::{HEADERS, Module, OPTIONS};

/// Where the compiler's library lies, if not where the system looks.
pub const FOLDER: &str = "POLDER_NVRTC";

/// The compiler is not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "NVIDIA's run-time compiler (libnvrtc) is not on this machine: install the package nvidia-cuda-nvrtc-cu12 from PyPI and set {FOLDER} to the folder of its libraries, or use a pack of kernels"
)]
pub struct NoCompiler;

/// Kernels that do not compile.
#[derive(Debug, thiserror::Error)]
#[error("{module} does not compile for {arch}:\n{log}")]
pub struct CompileError {
    /// Which file.
    pub module: &'static str,
    /// For what.
    pub arch: Arch,
    /// What the compiler says.
    pub log: String,
}

/// Machine code, and what the compiler said about it.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// An ELF file that the driver loads.
    pub cubin: Vec<u8>,
    /// Its kernels.
    pub kernels: Vec<Resources>,
}

/// What one kernel takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Its name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory that it always takes; what a launch adds is not known here.
    pub shared: u32,
    /// Bytes of a thread's stack.
    pub stack: u32,
    /// Bytes that did not fit into registers: written and read again.
    pub spills: u32,
}

/// The compiler, found.
#[derive(Debug, Clone, Copy)]
pub struct Compiler {
    version: (i32, i32),
}

impl Compiler {
    /// Looks in the folder that [`FOLDER`] names, else where the system looks.
    pub fn find() -> Result<Self, NoCompiler> {
        static FOUND: OnceLock<Option<(i32, i32)>> = OnceLock::new();
        let version = FOUND.get_or_init(|| {
            if let Some(folder) = std::env::var_os(FOLDER) {
                open_in(&PathBuf::from(folder));
            }
            // SAFETY: these look for a library and call what takes two places for numbers.
            unsafe {
                if !sys::is_culib_present() {
                    return None;
                }
                let (mut major, mut minor) = (0, 0);
                sys::nvrtcVersion(&mut major, &mut minor).result().ok()?;
                Some((major, minor))
            }
        });
        version.map(|version| Self { version }).ok_or(NoCompiler)
    }

    /// `13.0`.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Compiles one module for one kind of card.
    pub fn compile(&self, module: &Module, arch: Arch) -> Result<Compiled, CompileError> {
        let failed = |log: String| CompileError { module: module.name, arch, log };
        let program = Program::new(module).map_err(|e| failed(format!("{e:?}")))?;
        let mut options = vec![arch.option()];
        options.extend(OPTIONS.iter().map(|option| (*option).to_owned()));
        // SAFETY: the program is alive until `program` is dropped.
        let compiled = unsafe { result::compile_program(program.0, &options) };
        let log = program.log();
        compiled.map_err(|_| failed(log.clone()))?;
        let cubin = program.cubin().map_err(|e| failed(format!("{e:?}\n{log}")))?;
        Ok(Compiled { cubin, kernels: resources(&log) })
    }
}

/// Loads the compiler's libraries from a folder, so that later looks by name find them. The second one loads the first by
/// name, and would not find it otherwise. What is not there is not loaded; the look by name then fails.
fn open_in(folder: &std::path::Path) {
    for start in ["libnvrtc-builtins.so", "libnvrtc.so"] {
        let files =
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let named = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start))
        };
        for path in files.filter(named) {
            // SAFETY: NVIDIA's library, whose start-up code only sets itself up. It stays until the process ends.
            match unsafe { libloading::Library::new(&path) } {
                Ok(library) => std::mem::forget(library),
                Err(error) => log::warn!(path:% = path.display(), error:% = error; "not a library"),
            }
        }
    }
}

/// A program in the compiler.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(module: &Module) -> Result<Self, result::NvrtcError> {
        let c = |text: &str| CString::new(text).expect("sources without a zero byte");
        let (text, name) = (c(module.text), c(&format!("{}.cu", module.name)));
        let texts: Vec<CString> = HEADERS.iter().map(|header| c(header.text)).collect();
        let names: Vec<CString> =
            HEADERS.iter().map(|header| c(&format!("{}.cuh", header.name))).collect();
        let pointers = |all: &[CString]| all.iter().map(|one| one.as_ptr()).collect::<Vec<_>>();
        let mut program = std::ptr::null_mut();
        // SAFETY: every text lives until the call is over, and the compiler keeps copies.
        unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                i32::try_from(texts.len()).expect("a handful of headers"),
                pointers(&texts).as_ptr(),
                pointers(&names).as_ptr(),
            )
            .result()?;
        }
        Ok(Self(program))
    }

    fn log(&self) -> String {
        // SAFETY: the program is alive.
        let bytes = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = bytes.into_iter().map(|c: c_char| c as u8).collect();
        let text = CStr::from_bytes_until_nul(&bytes).map(CStr::to_bytes).unwrap_or(&bytes);
        String::from_utf8_lossy(text).into_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>, result::NvrtcError> {
        let mut size = 0;
        // SAFETY: the program is alive, and the second call writes as many bytes as the first one says.
        unsafe {
            sys::nvrtcGetCUBINSize(self.0, &mut size).result()?;
            let mut cubin = vec![0_u8; size];
            sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()).result()?;
            Ok(cubin)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Reads what the assembler says of each kernel.
fn resources(log: &str) -> Vec<Resources> {
    let mut all: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some(name) = line.split("Compiling entry function '").nth(1) {
            let kernel = name.split('\'').next().unwrap_or_default().to_owned();
            all.push(Resources { kernel, ..Resources::default() });
            continue;
        }
        let Some(last) = all.last_mut() else { continue };
        // "16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads"; "Used 40 registers, ..., 1024 bytes smem, ..."
        let mut before = "0";
        let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        for (at, word) in words.iter().enumerate() {
            let number = || before.parse::<u32>().unwrap_or_default();
            match (*word, words.get(at + 1).copied()) {
                ("registers", _) => last.registers = number(),
                ("bytes", Some("stack")) => last.stack = number(),
                ("bytes", Some("spill")) => last.spills += number(),
                ("bytes", Some("smem")) => last.shared = number(),
                _ => {}
            }
            before = word;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_words_are_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'norm' for 'sm_90a'\n\
            ptxas info    : Function properties for norm\n\
            \x20   16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem\n\
            ptxas info    : Compiling entry function 'embed' for 'sm_90a'\n\
            ptxas info    : Used 20 registers, used 0 barriers\n";
        let norm =
            Resources { kernel: "norm".into(), registers: 40, shared: 1024, stack: 16, spills: 12 };
        let embed = Resources { kernel: "embed".into(), registers: 20, ..Resources::default() };
        assert_eq!(resources(log), [norm, embed]);
    }
}
