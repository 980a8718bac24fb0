use std::path::PathBuf;

use polder_backend_cuda::arch::Arch;
use polder_backend_cuda::pack;

use crate::console::say;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Kernels {
    /// Compile every kernel into a folder: what an image carries, so that no box has to compile. Needs no card.
    #[command(
        after_help = "Examples:\n  polder engine kernels build --out kernels\n  polder engine kernels build --arch sm_90a --arch sm_103a --out kernels\n\nIt needs NVIDIA's run-time compiler (PyPI: nvidia-cuda-nvrtc). Where the system does not find it, set POLDER_NVRTC to the folder of its libraries."
    )]
    Build {
        /// For which kind of card; may be given again. All kinds that Polder knows, if not given.
        #[arg(long, value_name = "ARCH")]
        arch: Vec<Arch>,
        /// The folder; made if it is not there.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

impl Kernels {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Self::Build { arch, out } = self;
        let arches = if arch.is_empty() { Arch::ALL.to_vec() } else { arch };
        let (mut files, mut bytes) = (0, 0);
        pack::build(&arches, &out, |built| {
            (files, bytes) = (files + 1, bytes + built.bytes);
            say(format_args!(
                "{} for {}: {} kernels",
                built.module,
                built.arch,
                built.kernels.len()
            ));
        })?;
        say(format_args!("{files} files, {} KiB, in {}", bytes >> 10, out.display()));
        Ok(())
    }
}
