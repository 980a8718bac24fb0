//! Files of the tree that a machine's firmware and boot loader read before anything of ours can complain.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::path::Path;

#[test]
fn a_stick_starts_the_installer_and_a_box_starts_itself() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("tree/usr/share/polder");
    for (menu, entry) in [("stick", "install_*.efi"), ("box", "polder_*.efi")] {
        let text = std::fs::read_to_string(tree.join(menu).join("loader.conf")).unwrap();
        let default = text.lines().find_map(|line| line.strip_prefix("default "));
        assert_eq!(default, Some(entry), "{menu}");
        assert!(text.lines().any(|line| line == "editor no"), "{menu}");
    }
}
