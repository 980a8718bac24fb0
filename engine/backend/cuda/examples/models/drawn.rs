//! Qwen3-30B-A3B's shape with drawn weights on the first card, for examples that measure one thing of a whole model.

use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::synthetic;

use crate::shapes::model;

/// With these options, but for where kernels come from.
pub(crate) fn load(device: &Device, options: CudaOptions) -> CudaBackend {
    let pack = Pack {
        shipped: std::env::var_os("POLDER_KERNELS").map(Into::into),
        made: Some(std::env::temp_dir().join("polder-test-kernels")),
    };
    let (spec, format) = model("qwen3-30b-a3b").expect("checked in");
    let weights =
        synthetic::draw(&spec, format, &pack, device, 1).unwrap_or_else(|e| panic!("{e}"));
    let options = CudaOptions { pack, ..options };
    CudaBackend::with_weights(&spec, weights, device, &options).unwrap_or_else(|e| panic!("{e}"))
}
