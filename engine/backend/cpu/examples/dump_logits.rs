//! Writes all logits of the ten golden texts as raw f32, for `goldens/make.py --compare`.
//!
//! Arguments: the GGUF, `f32` or `stored`, the file to write.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use polder_backend_cpu::Precision;

#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, precision, target] = arguments.as_slice() else {
        eprintln!("usage: dump_logits MODEL.gguf f32|stored FILE");
        std::process::exit(2);
    };
    let precision = match precision.as_str() {
        "f32" => Precision::F32,
        _ => Precision::Stored,
    };
    let model = Arc::new(polder_model::Model::open(model).expect("a readable model"));
    let mut backend = common::load(&model, precision);
    let mut file = std::io::BufWriter::new(
        std::fs::File::create(Path::new(target)).expect("a file that can be written"),
    );
    for text in common::golden_texts() {
        for row in common::teacher_force(&mut backend, &text.tokens, 64, &common::blocks(0, 16)) {
            let bytes: Vec<u8> = row.iter().flat_map(|l| l.to_le_bytes()).collect();
            file.write_all(&bytes).expect("room on the disk");
        }
    }
}
