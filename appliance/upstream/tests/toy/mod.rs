//! An image with a toy server alone in it, made without any tool for images. Also for the story of a container on the image of the box.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use polder_site::ImageDigest;
use sha2::{Digest, Sha256};

/// The toy server, compiled once.
pub(crate) fn toy() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("toy");
    let source = folder.path().join("toy.c");
    std::fs::write(&source, include_str!("toy.c")).unwrap();
    let done = Command::new("cc")
        .args(["-D_GNU_SOURCE", "-static", "-Os", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(source)
        .status()
        .unwrap();
    assert!(done.success(), "the toy server does not compile");
    std::fs::read(program).unwrap()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(name: &str, mode: u32, bytes: &[u8], tar: &mut tar::Builder<Vec<u8>>) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, bytes).unwrap();
}

/// An image with this program alone in it: its layer, its configuration and its manifest.
pub(crate) fn image(program: &[u8]) -> (Vec<u8>, String, String) {
    let mut layer = tar::Builder::new(Vec::new());
    entry("toy", 0o755, program, &mut layer);
    // As in images of others: somebody else's, with rights that nobody has here, and a folder that its owner may not write to.
    entry("su", 0o4755, b"x", &mut layer);
    let mut shut = tar::Header::new_gnu();
    shut.set_entry_type(tar::EntryType::Directory);
    shut.set_mode(0o555);
    shut.set_uid(1000);
    shut.set_size(0);
    layer.append_data(&mut shut, "shut", &b""[..]).unwrap();
    entry("shut/file", 0o444, b"y", &mut layer);
    let layer = layer.into_inner().unwrap();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = format!(
        "{{\"architecture\":\"{arch}\",\"os\":\"linux\",\"config\":{{\"Entrypoint\":[\"/toy\"],\"User\":\"1000\"}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{}\"]}}}}",
        hex(&layer)
    );
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:{}\",\"size\":{}}},\"layers\":[{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:{}\",\"size\":{}}}]}}",
        hex(config.as_bytes()),
        config.len(),
        hex(&layer),
        layer.len()
    );
    (layer, config, manifest)
}

/// An OCI archive of such an image; the layer can be spoilt after its digest was written down.
pub(crate) fn archive(path: &Path, program: &[u8], spoil: bool) -> ImageDigest {
    let (layer, config, manifest) = image(program);
    let digest = hex(manifest.as_bytes());
    let index = format!(
        "{{\"schemaVersion\":2,\"manifests\":[{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:{digest}\",\"size\":{}}}]}}",
        manifest.len()
    );
    let mut whole = tar::Builder::new(Vec::new());
    entry("oci-layout", 0o644, b"{\"imageLayoutVersion\":\"1.0.0\"}", &mut whole);
    entry("index.json", 0o644, index.as_bytes(), &mut whole);
    let (config_at, layer_at) = (hex(config.as_bytes()), hex(&layer));
    let mut kept = layer.clone();
    if spoil {
        kept[1000] ^= 1;
    }
    for (at, bytes) in
        [(&config_at, config.as_bytes()), (&layer_at, &kept), (&digest, manifest.as_bytes())]
    {
        entry(&format!("blobs/sha256/{at}"), 0o644, bytes, &mut whole);
    }
    std::fs::File::create(path).unwrap().write_all(&whole.into_inner().unwrap()).unwrap();
    format!("sha256:{digest}").parse().unwrap()
}
