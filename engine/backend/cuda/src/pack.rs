//! Where machine code is kept: one file for each module and kind of card, whose name says all that it depends on and what is in it.
//!
//! `basics.sm_90a.0123456789abcdef.nvrtc13.0.fedcba9876543210.cubin`: the module, the kind of card, the source's hash, the compiler, and the
//! first bytes of the content's SHA-256. A file that was damaged or that belongs to another version is simply not the one that is looked for.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use sha2::{Digest, Sha256};

use crate::arch::Arch;
use crate::compiler::{CompileError, Compiler, NoCompiler, Resources};
use crate::device::{Device, Failure, Loaded};
use crate::sources::{MODULES, Module, short_hex};

/// Why kernels could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not kept, and nothing to make them with.
    #[error("there are no kernels for {arch} in {}, and none can be made: {source}", shown(.folders))]
    Missing {
        /// For what.
        arch: Arch,
        /// Where it was looked.
        folders: Vec<PathBuf>,
        /// Why none can be made.
        source: NoCompiler,
    },
    /// No kernels were written for such a card.
    #[error("there are no kernels for {0}")]
    Unknown(Arch),
    /// They do not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The driver takes none of them.
    #[error(
        "the driver does not take the kernels ({0}): before 580 it takes only what NVIDIA's compiler 12 made"
    )]
    Refused(Failure),
    /// The card fails.
    #[error(transparent)]
    Device(#[from] Failure),
}

fn shown(folders: &[PathBuf]) -> String {
    let all: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    if all.is_empty() { "any folder".to_owned() } else { all.join(" and ") }
}

/// Where machine code is looked for, and where it is put.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pack {
    /// What came with the program; only read.
    pub shipped: Option<PathBuf>,
    /// What this machine made itself.
    pub made: Option<PathBuf>,
}

impl Pack {
    /// The kinds of cards that it has everything for.
    pub fn kinds(&self) -> Vec<Arch> {
        let folders: Vec<&PathBuf> = [&self.shipped, &self.made].into_iter().flatten().collect();
        let has = |arch: &Arch| folders.iter().any(|folder| lacking(folder, *arch).is_empty());
        Arch::ALL.into_iter().filter(has).collect()
    }

    /// A module for a card: kept, else compiled and kept.
    pub fn cubin(&self, module: &Module, arch: Arch) -> Result<Vec<u8>, KernelError> {
        if !arch.is_known() {
            return Err(KernelError::Unknown(arch));
        }
        let folders: Vec<PathBuf> =
            [&self.shipped, &self.made].into_iter().flatten().cloned().collect();
        if let Some(cubin) = folders.iter().find_map(|folder| find(folder, module, arch)) {
            return Ok(cubin);
        }
        let compiler =
            Compiler::find().map_err(|source| KernelError::Missing { arch, folders, source })?;
        let compiled = compiler.compile(module, arch)?;
        if let Some(folder) = &self.made {
            // A start without a place to keep it is slower, and no worse.
            if let Err(error) = keep(folder, module, arch, &compiler, &compiled.cubin) {
                log::warn!(folder:% = folder.display(), error:% = error; "kernels could not be kept");
            }
        }
        Ok(compiled.cubin)
    }

    /// A module on a card. Machine code of a compiler that is newer than the driver may be refused: then it is made anew.
    pub fn load(&self, module: &Module, device: &Device) -> Result<Loaded, KernelError> {
        let refused = match device.load(&self.cubin(module, device.arch())?) {
            Ok(loaded) => return Ok(loaded),
            Err(full) if full.out_of_memory => return Err(full.into()),
            Err(refused) => refused,
        };
        log::warn!(module = module.name; "kernels that were kept are refused, and made anew: {refused}");
        let Ok(compiler) = Compiler::find() else { return Err(KernelError::Refused(refused)) };
        device.load(&compiler.compile(module, device.arch())?.cubin).map_err(KernelError::Refused)
    }
}

/// The modules that a folder does not have for a kind of card, whole and of this version.
pub fn lacking(folder: &Path, arch: Arch) -> Vec<&'static str> {
    let lacks = |module: &&Module| find(folder, module, arch).is_none();
    MODULES.iter().filter(lacks).map(|module| module.name).collect()
}

/// What one file of a pack takes.
#[derive(Debug, Clone)]
pub struct Built {
    /// The module.
    pub module: &'static str,
    /// For what.
    pub arch: Arch,
    /// Bytes of machine code.
    pub bytes: usize,
    /// Its kernels.
    pub kernels: Vec<Resources>,
}

/// Why a pack was not made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Nothing to make it with.
    #[error(transparent)]
    NoCompiler(#[from] NoCompiler),
    /// A kernel does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// It cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Compiles everything for these kinds of cards into a folder, on all cores; `done` hears of each file.
pub fn build(
    arches: &[Arch],
    folder: &Path,
    mut done: impl FnMut(&Built),
) -> Result<(), BuildError> {
    let compiler = Compiler::find()?;
    let all: Vec<(Arch, &Module)> =
        arches.iter().flat_map(|arch| MODULES.iter().map(|module| (*arch, module))).collect();
    let next = AtomicUsize::new(0);
    let (tell, told) = channel();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(all.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (tell, next, all, compiler) = (tell.clone(), &next, &all, &compiler);
            scope.spawn(move || {
                while let Some((arch, module)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Nobody listens any more after the first failure.
                    if tell.send(make(compiler, module, *arch, folder)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(tell);
        for built in told {
            done(&built?);
        }
        Ok(())
    })
}

fn make(
    compiler: &Compiler,
    module: &'static Module,
    arch: Arch,
    folder: &Path,
) -> Result<Built, BuildError> {
    let compiled = compiler.compile(module, arch)?;
    keep(folder, module, arch, compiler, &compiled.cubin)
        .map_err(|source| BuildError::Write { path: folder.to_owned(), source })?;
    let bytes = compiled.cubin.len();
    Ok(Built { module: module.name, arch, bytes, kernels: compiled.kernels })
}

/// What the name of a file says before its compiler.
fn start(module: &Module, arch: Arch) -> String {
    format!("{}.{arch}.{}.", module.name, module.hash())
}

fn find(folder: &Path, module: &Module, arch: Arch) -> Option<Vec<u8>> {
    let start = start(module, arch);
    let entries = fs::read_dir(folder).ok()?.flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(content) = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(".cubin"))
        else {
            continue;
        };
        let Ok(cubin) = fs::read(entry.path()) else { continue };
        let hash = short_hex(&Sha256::digest(&cubin));
        if content.rsplit('.').next() == Some(hash.as_str()) {
            return Some(cubin);
        }
        log::warn!(file:% = entry.path().display(); "kernels are damaged: looked for elsewhere, or made anew");
    }
    None
}

fn keep(
    folder: &Path,
    module: &Module,
    arch: Arch,
    compiler: &Compiler,
    cubin: &[u8],
) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let (start, version) = (start(module, arch), compiler.version());
    let hash = short_hex(&Sha256::digest(cubin));
    let path = folder.join(format!("{start}nvrtc{version}.{hash}.cubin"));
    // Under another name until it is whole: two engines may start at once.
    let part = folder.join(format!(".{hash}.{}", std::process::id()));
    let mut file = fs::File::create(&part)?;
    file.write_all(cubin)?;
    file.sync_all()?;
    fs::rename(&part, &path)
}
