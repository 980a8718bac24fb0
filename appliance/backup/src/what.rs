use std::path::{Component, Path};

/// What becomes of a file of the state folder in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is copied as it is.
    Copied,
    /// It is copied by the database's own means, while others write to it.
    Database,
    /// It is not copied; why.
    Left(&'static str),
}

/// What becomes of a file, by its path in the state folder. What this version does not know is copied: a newer part of the box may hold it dear.
pub fn fate(path: &Path) -> Fate {
    let names: Vec<&str> = path
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str().unwrap_or("?"),
            _ => "..",
        })
        .collect();
    let half = |name: &str| [".partial", ".new", ".tmp"].iter().any(|end| name.ends_with(end));
    match names[..] {
        [] | ["..", ..] => Fate::Left("it is not in the state folder"),
        ["polder.db"] => Fate::Database,
        ["polder.db-wal" | "polder.db-shm" | "polder.db-journal"] => {
            Fate::Left("the copy of the database has it")
        }
        ["weights", "manifests", name] if !half(name) => Fate::Copied,
        ["weights", ..] => Fate::Left("models are fetched again, by their digests"),
        ["kv", ..] => Fate::Left("what models read only saves reading it again"),
        ["packed", ..] => Fate::Left("it is made anew from a model"),
        ["containers", ..] => Fate::Left("an image is brought in again, by its digest"),
        ["seed.port"] => Fate::Left("it is about this machine's ports"),
        ["run", ..] | ["safe-mode"] => Fate::Left("it is about the moment"),
        ["runs.json" | "runs.unreadable.json"] => Fate::Left("what was going on is over by then"),
        ["update", ..] => Fate::Left("it is about this machine's disk"),
        ["end.json" | "ended.json"] => Fate::Left("it is about the end of a box"),
        ["shell", ..] => Fate::Left("a shell that was opened here is not open elsewhere"),
        ["spare", ..] => Fate::Left("it is about two machines and the link between them"),
        ["backup" | "drill" | "restore", ..] => Fate::Left("it is about backups"),
        [first, ..] if first.starts_with("before-restore-") => {
            Fate::Left("it was put aside by a restore")
        }
        [.., last] if half(last) => Fate::Left("it is not whole yet"),
        ["lost+found", ..] => Fate::Left("it is the file system's"),
        _ => Fate::Copied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_and_what_is_left_is_as_written_down() {
        const PATHS: &[&str] = &[
            "site.toml",
            "site.new",
            "HISTORY/000001.toml",
            "HISTORY/000002.new",
            "polder.db",
            "polder.db-wal",
            "polder.db-shm",
            "gone.jsonl",
            "audit/trail.jsonl",
            "pki/authority-1.pem",
            "pki/leaf.pem",
            "pki/ca.pem",
            "pki/identity/keys.json",
            "pki/identity/secret.json",
            "seed.toml",
            "seed.port",
            "end.json",
            "ended.json",
            "weights/manifests/tiny.toml",
            "weights/manifests/tiny.toml.new",
            "weights/blobs/sha256/00ff",
            "weights/models/tiny/model.gguf",
            "weights/lock",
            "kv/fast/blocks",
            "packed/fast/weights.bin",
            "upstreams/secrets.json",
            "uplinks/owed.json",
            "containers/overlay/l/x",
            "run/control.sock",
            "safe-mode",
            "runs.json",
            "update/record.json",
            "shell/open.json",
            "spare/identity.pem",
            "spare/stores/3f2a-9c01-77de-b402/config",
            "backup/key",
            "backup/stage/site.toml",
            "drill/polder.db",
            "restore/incoming/site.toml",
            "before-restore-20261126T200000Z/site.toml",
            "lost+found/x",
            "of-a-newer-version/precious",
            "../etc/passwd",
        ];
        let shown: String =
            PATHS.iter().map(|path| format!("{path}: {:?}\n", fate(Path::new(path)))).collect();
        assert_eq!(shown, include_str!("what.golden.txt"));
    }

    proptest::proptest! {
        #[test]
        fn no_weight_no_conversation_and_no_key_of_the_backup_is_ever_copied(name in "[a-z./]{0,20}") {
            for folder in ["weights/blobs", "kv", "backup", "run"] {
                let path = Path::new(folder).join(name.trim_start_matches('/'));
                let copied = !matches!(fate(&path), Fate::Left(_));
                proptest::prop_assert!(!copied, "{}", path.display());
            }
        }
    }
}
