//! Does what a plan says: the thin shell around `systemd-repart`, dm-verity, mounts and files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use polder_control::{Progress, StepState};
use rustix::fs::{Advice, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::Deserialize;

use crate::boot::{self, BootFile, From, Side, Written};
use crate::copy::{CopyError, Pace, copy, read_through};
use crate::disks::Disk;
use crate::error::InstallError;
use crate::machine;
use crate::plan::{Action, Source, numbers};

/// The stick's boot partition, which the live entry mounts.
pub(crate) const STICK: &str = "/efi";
/// The boot menu of a box: none.
const LOADER_CONF: &str = "/usr/share/polder/box/loader.conf";
/// Our own folder while this runs.
const FOLDER: &str = "/run/polder/install";
/// systemd's own tool, which has no other place.
const VERITYSETUP: &str = "/usr/lib/systemd/systemd-veritysetup";
/// What it makes of the disk's partitions while they are read back.
const CHECKED: &str = "polder-check";

/// One disk, and how far it is.
pub(crate) struct Work<'a> {
    source: &'a Source,
    disk: &'a Disk,
    /// Carried to the box.
    seed: Option<&'a str>,
    nodes: Option<Nodes>,
    files: Vec<BootFile>,
    written: Vec<Written>,
}

/// The disk's new partitions.
struct Nodes {
    boot: PathBuf,
    verity: PathBuf,
    root: PathBuf,
}

/// Does these actions; `tell` hears how each step is.
pub(crate) fn work(
    source: &Source,
    disk: &Disk,
    seed: Option<&str>,
    actions: &[Action],
    tell: &mut dyn FnMut(usize, StepState),
) -> Result<(), InstallError> {
    let mut work = Work { source, disk, seed, nodes: None, files: Vec::new(), written: Vec::new() };
    for (index, action) in actions.iter().enumerate() {
        tell(index, StepState::Running(None));
        let mut progress = |progress| tell(index, StepState::Running(Some(progress)));
        match work.one(*action, &mut progress) {
            Ok(()) => tell(index, StepState::Done),
            Err(error) => {
                let error = work.explained(error);
                tell(index, StepState::Failed(error.to_string()));
                return Err(error);
            }
        }
    }
    Ok(())
}

impl Work<'_> {
    fn one(&mut self, action: Action, tell: &mut dyn FnMut(Progress)) -> Result<(), InstallError> {
        match action {
            Action::Look => self.look(),
            Action::Partitions => self.partitions(),
            Action::System => self.system(tell),
            Action::Check => self.check(tell),
            Action::BootFiles => self.boot_files(),
            Action::Finish => self.finish(),
        }
    }

    /// The name may be another disk's by now.
    fn look(&self) -> Result<(), InstallError> {
        let now = machine::disk(&self.disk.name, self.source.needs)?;
        if let Some(why) = now.refusal {
            return Err(InstallError::Refused { disk: now.name, why });
        }
        let same = |disk: &Disk| (disk.serial.clone(), disk.model.clone(), disk.size);
        if same(&now) != same(self.disk) {
            return Err(InstallError::OtherDisk(now.name));
        }
        // The kernel's own word that nobody has it.
        let exclusive = OFlags::EXCL.bits().cast_signed();
        File::options()
            .read(true)
            .write(true)
            .custom_flags(exclusive)
            .open(&self.disk.path)
            .map(drop)
            .map_err(|source| self.write_error(source))
    }

    fn partitions(&mut self) -> Result<(), InstallError> {
        let folder = Path::new(FOLDER).join("repart.d");
        for (name, text) in numbers(&self.source.root_hash) {
            let path = folder.join(name);
            let parent = path.parent().unwrap_or(&folder);
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, text))
                .map_err(|source| self.write_error(source))?;
        }
        // The seed: every disk gets numbers of its own, so that the boot partition of the stick and that of the
        // box are told apart. /var is made by the box at its first start, where its keys are.
        let output = Command::new("systemd-repart")
            .arg(format!("--definitions={}", machine::DEFINITIONS))
            .arg(format!("--definitions={}", folder.display()))
            .args(["--exclude-partitions=var", "--empty=force", "--seed=random"])
            .args(["--dry-run=no", "--no-pager", "--json=short"])
            .arg(&self.disk.path)
            .output()
            .map_err(|source| self.write_error(source))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let said = said.lines().last().unwrap_or("it said nothing").to_owned();
            return Err(InstallError::Partitions { disk: self.disk.name.clone(), said });
        }
        let nodes = nodes(&String::from_utf8_lossy(&output.stdout), self.source);
        self.nodes = Some(nodes.ok_or_else(|| InstallError::Partitions {
            disk: self.disk.name.clone(),
            said: "its list of partitions cannot be read".to_owned(),
        })?);
        // Their devices are there when udev has seen them.
        let _ = Command::new("udevadm").args(["settle", "--timeout=30"]).status();
        Ok(())
    }

    fn system(&mut self, tell: &mut dyn FnMut(Progress)) -> Result<(), InstallError> {
        let uuid = self.source.root_hash.verity_partition();
        let hashes = PathBuf::from(format!("/dev/polder/by-partuuid/{uuid}"));
        let from_hashes = open_stick(&hashes)?;
        // Read through its hashes: a stick that has gone bad is noticed here.
        let root = Path::new(machine::ROOT);
        let from_root = open_stick(root)?;
        let length = length(&from_hashes) + length(&from_root);
        let mut pace = Pace::new("writing", length, Instant::now());
        let nodes = self.nodes();
        for (from, at, to) in
            [(from_hashes, hashes.as_path(), &nodes.verity), (from_root, root, &nodes.root)]
        {
            let mut from = from;
            let mut to =
                File::options().write(true).open(to).map_err(|source| self.write_error(source))?;
            copy(&mut from, &mut to, &mut pace, tell).map_err(|error| match error {
                CopyError::Read(source) => InstallError::Stick { path: at.to_owned(), source },
                CopyError::Write(source) => self.write_error(source),
            })?;
            to.sync_all().map_err(|source| self.write_error(source))?;
        }
        Ok(())
    }

    /// The kernel checks every block against the hash that the running system was started with.
    fn check(&self, tell: &mut dyn FnMut(Progress)) -> Result<(), InstallError> {
        let differs = || InstallError::Differs {
            disk: self.disk.name.clone(),
            what: format!("the system of Polder {}", self.source.version),
        };
        let nodes = self.nodes();
        let _ = Command::new(VERITYSETUP).args(["detach", CHECKED]).output();
        let attached = Command::new(VERITYSETUP)
            .args(["attach", CHECKED])
            .args([&nodes.root, &nodes.verity])
            .arg(self.source.root_hash.as_str())
            .output();
        match attached {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                log::warn!("{}", String::from_utf8_lossy(&output.stderr).trim());
                return Err(differs());
            }
            Err(source) => return Err(self.write_error(source)),
        }
        let read = File::open(Path::new("/dev/mapper").join(CHECKED)).and_then(|mut file| {
            let mut pace = Pace::new("checking", self.source.root_bytes, Instant::now());
            read_through(&mut file, &mut pace, tell)
        });
        let _ = Command::new(VERITYSETUP).args(["detach", CHECKED]).output();
        read.map_err(|error| {
            log::warn!("reading back: {error}");
            differs()
        })
    }

    fn boot_files(&mut self) -> Result<(), InstallError> {
        let stick = Path::new(STICK);
        let error = |source| InstallError::Stick { path: stick.to_owned(), source };
        self.files = boot::boot_files(stick, &self.source.version).map_err(error)?;
        self.files.push(BootFile {
            name: "loader/loader.conf".into(),
            from: From::File(LOADER_CONF.into()),
        });
        if let Some(seed) = self.seed {
            self.files.push(BootFile {
                name: polder_seed::FILE.into(),
                from: From::Text(seed.to_owned()),
            });
        }
        let mounted = self.mount(MountFlags::empty())?;
        self.written = boot::write(&self.files, &mounted.at).map_err(|side| match side {
            Side::Stick(path, source) => InstallError::Stick { path, source },
            Side::Disk(source) => self.write_error(source),
        })?;
        mounted.end().map_err(|source| self.write_error(source))
    }

    fn finish(&mut self) -> Result<(), InstallError> {
        let boot = File::open(&self.nodes().boot).map_err(|source| self.write_error(source))?;
        // What is in memory says nothing about the disk.
        rustix::fs::fadvise(&boot, 0, None, Advice::DontNeed)
            .map_err(|error| self.write_error(error.into()))?;
        drop(boot);
        let mounted = self.mount(MountFlags::RDONLY)?;
        let different = boot::first_different(&self.written, &mounted.at);
        mounted.end().map_err(|source| self.write_error(source))?;
        let differs = |what: String| InstallError::Differs { disk: self.disk.name.clone(), what };
        match different {
            Ok(None) => {}
            Ok(Some(name)) => return Err(differs(name.display().to_string())),
            Err(error) => return Err(differs(error.to_string())),
        }
        let mounted = self.mount(MountFlags::empty())?;
        boot::finish(&self.files, &mounted.at).map_err(|source| self.write_error(source))?;
        mounted.end().map_err(|source| self.write_error(source))
    }

    fn mount(&self, flags: MountFlags) -> Result<Mounted, InstallError> {
        Mounted::boot(&self.nodes().boot, flags).map_err(|source| self.write_error(source))
    }

    fn nodes(&self) -> &Nodes {
        self.nodes.as_ref().expect("partitions are made before they are used")
    }

    fn write_error(&self, source: io::Error) -> InstallError {
        InstallError::Write { disk: self.disk.name.clone(), source }
    }

    /// Whatever failed: a disk that is not there any more is why.
    fn explained(&self, error: InstallError) -> InstallError {
        let there = Path::new("/sys/class/block").join(&self.disk.name).exists();
        let stick = matches!(error, InstallError::Stick { .. });
        if there || stick { error } else { InstallError::Vanished(self.disk.name.clone()) }
    }
}

/// A boot partition that is mounted until this goes.
struct Mounted {
    at: PathBuf,
    over: bool,
}

impl Mounted {
    fn boot(partition: &Path, flags: MountFlags) -> io::Result<Self> {
        let at = Path::new(FOLDER).join("boot");
        fs::create_dir_all(&at)?;
        let flags = flags | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(partition, &at, "vfat", flags, c"umask=0077")?;
        Ok(Self { at, over: false })
    }

    /// Everything is on the disk after this.
    fn end(mut self) -> io::Result<()> {
        self.over = true;
        let folder = File::open(&self.at)?;
        rustix::fs::syncfs(&folder)?;
        drop(folder);
        Ok(unmount(&self.at, UnmountFlags::empty())?)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.over {
            let _ = unmount(&self.at, UnmountFlags::DETACH);
        }
    }
}

/// Whether firmware finds something to start from in this boot partition.
pub(crate) fn starts(partition: &Path) -> io::Result<bool> {
    let mounted = Mounted::boot(partition, MountFlags::RDONLY)?;
    let found = boot::has_starter(&mounted.at);
    mounted.end()?;
    found
}

fn open_stick(path: &Path) -> Result<File, InstallError> {
    File::open(path).map_err(|source| InstallError::Stick { path: path.to_owned(), source })
}

/// Of a block device.
fn length(file: &File) -> u64 {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    let end = file.seek(SeekFrom::End(0)).unwrap_or(0);
    let _ = file.seek(SeekFrom::Start(0));
    end
}

/// The new partitions in what systemd-repart lists as JSON.
fn nodes(json: &str, source: &Source) -> Option<Nodes> {
    #[derive(Deserialize)]
    struct Line {
        r#type: String,
        uuid: String,
        node: PathBuf,
    }
    let lines: Vec<Line> = serde_json::from_str(json.trim()).ok()?;
    let find = |right: &dyn Fn(&Line) -> bool| {
        lines.iter().find(|line| right(line)).map(|line| line.node.clone())
    };
    Some(Nodes {
        boot: find(&|line| line.r#type == "esp")?,
        verity: find(&|line| line.uuid == source.root_hash.verity_partition())?,
        root: find(&|line| line.uuid == source.root_hash.root_partition())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::RootHash;

    #[test]
    fn the_new_partitions_are_found_in_what_systemd_repart_says() {
        let line = format!("roothash={}{}", "a".repeat(32), "b".repeat(32));
        let source = Source {
            version: "0.1.0".into(),
            root_hash: RootHash::of_command_line(&line).unwrap(),
            root_bytes: 1,
            needs: 1,
        };
        // Of systemd 257.
        let json = r#"[{"type":"esp","label":"polder-esp","uuid":"b7d204cb-77e5-45c6-93ff-b5a241f0d54d","partno":0,
            "file":"/usr/lib/repart.d/10-esp.conf","node":"/dev/nvme0n1p1","offset":1048576,"raw_size":1073741824,
            "activity":"create","drop-in_files":[]},
            {"type":"root-x86-64-verity","label":"polder_0.1.0","uuid":"bbbbbbbb-bbbb-bbbb-bbbb-bbbbbbbbbbbb",
            "node":"/dev/nvme0n1p2"},
            {"type":"root-x86-64","uuid":"aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa","node":"/dev/nvme0n1p3"},
            {"type":"root-x86-64","uuid":"8b5d1a68-8c92-4c62-824b-86c58d2ec2da","node":"/dev/nvme0n1p5"}]"#;
        let found = nodes(json, &source).unwrap();
        assert_eq!(found.boot, Path::new("/dev/nvme0n1p1"));
        assert_eq!(found.verity, Path::new("/dev/nvme0n1p2"));
        assert_eq!(found.root, Path::new("/dev/nvme0n1p3"));
        assert!(nodes("[]", &source).is_none());
    }
}
