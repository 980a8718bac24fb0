//! The disk forgets everything: the image's own tool makes the encrypted volume anew, as `polder-reset.service` has it do, on a disk that is
//! a file. No key of before opens anything then, also where the power went in the middle, twice. (The whole machine does so in
//! `forgotten.rs`; there nobody looks into the disk.)

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polder_stories::scaled;
use tempfile::TempDir;

use crate::machine::{Kind, PATIENCE};

/// Enters the image's packed system: the packed root, a folder that is at /mnt there, the command.
const ENTER: &str = r#"
image=$1 folder=$2; shift 2
mount --make-rprivate /
modprobe -q erofs 2>/dev/null || true
mount -t erofs -o ro,loop "$image" "$folder/root"
cd "$folder/root"
mount -t proc proc proc
mount -t sysfs -o ro sys sys
mount --rbind /dev dev
mount -t tmpfs run run
mount -t tmpfs tmp tmp
mount --bind "$folder/var" var
mount --bind "$folder" mnt
exec chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin "$@"
"#;
/// In front of the data of a LUKS2 volume, keys included.
const HEADER: usize = 16 << 20;
const SECTOR: usize = 512;
const MAGIC: &[u8] = b"LUKS\xba\xbe";

/// A disk with nothing but what is precious.
struct Disk {
    folder: TempDir,
}

/// What stands in front of a volume, and what it opens with the empty passphrase.
struct Header {
    /// All of it, as it lies on the disk.
    bytes: Vec<u8>,
    uuid: String,
    volume_key: Vec<u8>,
}

impl Disk {
    fn new() -> Self {
        let disk = Self { folder: tempfile::tempdir().unwrap() };
        for folder in ["root", "var", "var/tmp", "wanted"] {
            fs::create_dir(disk.place(folder)).unwrap();
        }
        // Of the image's list only this one: the others would make the disk larger than a test should write.
        let copied = disk.inside(&["cp", "/usr/lib/repart.d/40-var.conf", "/mnt/wanted/"]).status();
        assert!(copied.unwrap().success());
        File::create(disk.place("disk.raw")).unwrap().set_len(1100 << 20).unwrap();
        disk
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command of the image's. Whoever kills it kills all that it started.
    fn inside(&self, command: &[&str]) -> Command {
        let mut inside = Command::new("unshare");
        inside.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
            "sh",
            "-euc",
            ENTER,
            "in",
        ]);
        inside.arg(Kind::Plain.image().with_extension("root")).arg(self.folder.path());
        inside.args(command).stdin(Stdio::null());
        inside
    }

    /// The tool as the image's services call it. Without a device mapper it encrypts by itself.
    fn repart(&self, how: &str) -> Child {
        // What it works on beside the disk is as large as the volume, and a start would remove it.
        fs::remove_dir_all(self.place("var/tmp")).unwrap();
        fs::create_dir(self.place("var/tmp")).unwrap();
        let log = File::options().append(true).create(true).open(self.place("log")).unwrap();
        let mut repart = self.inside(&[
            "systemd-repart",
            "--dry-run=no",
            how,
            "--offline=yes",
            "--definitions=/mnt/wanted",
            "--no-pager",
            "/mnt/disk.raw",
        ]);
        repart.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place("log")).unwrap_or_default()
    }

    fn makes(&self, how: &str) {
        assert!(self.repart(how).wait().unwrap().success(), "{}", self.log());
    }

    /// A reset, and the power goes when the first page of the volume is so.
    fn reset_cut(&self, volume: u64, so: impl Fn(&[u8]) -> bool) {
        let disk = File::open(self.place("disk.raw")).unwrap();
        let mut reset = self.repart("--factory-reset=yes");
        let (begun, mut page) = (Instant::now(), [0; 4096]);
        loop {
            disk.read_exact_at(&mut page, volume).unwrap();
            if so(&page) {
                break;
            }
            assert!(reset.try_wait().unwrap().is_none(), "it is over:\n{}", self.log());
            assert!(begun.elapsed() < scaled(PATIENCE), "{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        reset.kill().unwrap();
        reset.wait().unwrap();
        assert_eq!(self.volume(), None, "the power went when all was done:\n{}", self.log());
    }

    /// Where what is precious begins, if the disk's table has it.
    fn volume(&self) -> Option<u64> {
        let mut table = vec![0; 128 * 128];
        let disk = File::open(self.place("disk.raw")).unwrap();
        // UEFI 2.10, 5.3.3: entries of 128 bytes from the third sector on; where they begin, in sectors, from byte 32 on, and names from
        // byte 56 on.
        disk.read_exact_at(&mut table, 2 * SECTOR as u64).unwrap();
        let name: Vec<u8> = "polder-var".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let entry = table.chunks_exact(128).find(|entry| entry[56..].starts_with(&name))?;
        Some(u64::from_le_bytes(entry[32..40].try_into().unwrap()) * SECTOR as u64)
    }

    fn header(&self) -> Header {
        let volume = self.volume().expect("the disk has a volume");
        let mut bytes = vec![0; HEADER];
        File::open(self.place("disk.raw")).unwrap().read_exact_at(&mut bytes, volume).unwrap();
        assert!(bytes.starts_with(MAGIC));
        fs::write(self.place("var.luks"), &bytes).unwrap();
        let ask = "cd /mnt/vm; rm -f key; : > empty; cryptsetup luksDump --batch-mode --dump-volume-key \
                   --volume-key-file key --key-file empty var.luks >&2; cryptsetup luksUUID var.luks";
        let mut command = Kind::Plain.room().command(&[("vm", self.folder.path())]);
        let output = command.args(["sh", "-euc", ask]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let uuid = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Header { bytes, uuid, volume_key: fs::read(self.place("key")).unwrap() }
    }

    /// Whether one of these sectors is anywhere on the disk.
    fn has(&self, sectors: &[&[u8]]) -> bool {
        let start = |sector: &[u8]| u128::from_le_bytes(sector[..16].try_into().unwrap());
        let wanted: HashSet<u128> = sectors.iter().map(|sector| start(sector)).collect();
        let disk = File::open(self.place("disk.raw")).unwrap();
        let (size, mut piece) = (disk.metadata().unwrap().len(), vec![0; 1 << 20]);
        (0..size / piece.len() as u64).any(|number| {
            disk.read_exact_at(&mut piece, number * (1 << 20)).unwrap();
            piece.chunks_exact(SECTOR).any(|sector| wanted.contains(&start(sector)))
        })
    }
}

impl Header {
    /// The sectors of its key slots: the volume's key, spread so that one lost sector loses it.
    fn slots(&self) -> Vec<&[u8]> {
        // The binary header is one page; what follows it is JSON up to a zero.
        let text = self.bytes[4096..].split(|byte| *byte == 0).next().unwrap();
        let about: serde_json::Value = serde_json::from_slice(text).unwrap();
        let number = |area: &serde_json::Value, name: &str| -> usize {
            area[name].as_str().unwrap().parse().unwrap()
        };
        let slots = about["keyslots"].as_object().unwrap().values().flat_map(|slot| {
            let (offset, size) = (number(&slot["area"], "offset"), number(&slot["area"], "size"));
            self.bytes[offset..offset + size].chunks_exact(SECTOR)
        });
        slots.filter(|sector| sector.iter().any(|byte| *byte != 0)).collect()
    }

    fn names(&self, uuid: &str) -> bool {
        self.bytes.windows(uuid.len()).any(|window| window == uuid.as_bytes())
    }
}

fn is_of(page: &[u8], uuid: &str) -> bool {
    page.windows(uuid.len()).any(|window| window == uuid.as_bytes())
}

#[test]
fn indoors_after_a_full_reset_no_key_of_before_is_on_the_disk_also_when_the_power_went_twice() {
    let disk = Disk::new();
    disk.makes("--empty=allow");
    let (volume, before) = (disk.volume().unwrap(), disk.header());
    assert!(before.slots().len() > 100 && disk.has(&before.slots()), "its keys are on the disk");
    assert!(before.names(&before.uuid) && before.volume_key.len() == 64);

    // First when nothing of it is left, then when another one begins to be there.
    disk.reset_cut(volume, |page| !is_of(page, &before.uuid));
    assert!(!disk.has(&before.slots()), "a key slot is left after the first cut:\n{}", disk.log());
    disk.reset_cut(volume, |page| page.starts_with(MAGIC));
    // The wish may be taken away by then: the start that follows is an ordinary one.
    disk.makes("--factory-reset=no");

    let after = disk.header();
    assert_eq!(disk.volume(), Some(volume));
    assert!(after.uuid != before.uuid && !after.names(&before.uuid), "the old header is there");
    assert!(after.volume_key.len() == 64 && after.volume_key != before.volume_key);
    assert!(!disk.has(&before.slots()), "a key slot of before is left:\n{}", disk.log());
    assert!(disk.has(&after.slots()));
    let bytes = fs::metadata(disk.place("disk.raw")).unwrap().len();
    println!("reset: no key of before in {} MiB, after two cuts", bytes >> 20);
}
