use std::os::unix::fs::symlink;

use polder_site::BackupPlace;

use super::*;

const ID: &str = "0a1b2c3d-1111-2222-3333-444455556666";

/// A machine's own words about its disks.
struct Told {
    folder: tempfile::TempDir,
    disks: Disks,
}

impl Told {
    fn nothing() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let disks = Disks {
            udev: at("udev"),
            devices: at("devices"),
            dev: "/dev".into(),
            mounts: folder.path().join("mounts"),
            lent: at("lent"),
        };
        Self { folder, disks }
    }

    /// As udev 257 tells it of a stick in a machine; `more` is what is on it.
    fn device(&self, number: &str, name: &str, more: &str) {
        let known = format!(
            "I:1234567\nE:ID_BUS=usb\nE:ID_TYPE=disk\nE:ID_MODEL=Cruzer_Blade\n{more}\nG:systemd\n"
        );
        fs::write(self.disks.udev.join(format!("b{number}")), known).unwrap();
        let about = self.disks.devices.join(number);
        fs::create_dir_all(&about).unwrap();
        fs::write(about.join("size"), "131072\n").unwrap();
        fs::write(about.join("uevent"), format!("MAJOR=8\nDEVNAME={name}\n")).unwrap();
        fs::write(about.join("ro"), "0\n").unwrap();
    }

    fn with(number: &str, name: &str, more: &str) -> Self {
        let told = Self::nothing();
        told.device(number, name, more);
        told
    }

    fn only(&self) -> polder_control::PluggedDisk {
        let mut found = self.disks.on_usb();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }
}

fn file_system(kind: &str, label: &str, id: &str) -> String {
    format!(
        "E:ID_FS_USAGE=filesystem\nE:ID_FS_TYPE={kind}\nE:ID_FS_LABEL_ENC={label}\nE:ID_FS_UUID={id}"
    )
}

#[test]
fn a_disk_is_listed_by_its_name_and_size_and_is_found_by_what_it_is() {
    let told = Told::with("8:17", "sdb1", &file_system("ext4", "My\\x20safe\\x2f1", ID));
    let listed = told.only();
    assert_eq!(listed.place.as_deref(), Some(&*format!("disk:My safe_1@{ID}")));
    assert_eq!((listed.label.as_str(), listed.name.as_str()), ("My safe_1", "Cruzer Blade"));
    assert_eq!((listed.bytes, listed.free, listed.wrong), (64 << 20, None, None));
    let Ok(BackupPlace::Disk { label, id }) = listed.place.unwrap().parse() else { panic!() };
    let disk = told.disks.find("another name", id.as_ref()).unwrap();
    assert_eq!(disk.device, Path::new("/dev/sdb1"));
    assert_eq!(told.disks.find(&label, None).unwrap(), disk);
    assert!(matches!(told.disks.find("x", None), Err(DiskError::Away(_))));
    assert_eq!(disk.read_at(), Path::new("/run/media/My\\x20safe\\x2f1"));
    // Mounted somewhere, it has room.
    let mounts = "40 22 8:17 / /tmp rw - ext4 /dev/sdb1 rw\n";
    fs::write(&told.disks.mounts, mounts).unwrap();
    assert!(told.only().free.is_some());
    // A copy of it is plugged in beside it.
    told.device("8:33", "sdc1", &file_system("ext4", "copy", ID));
    let two = told.disks.find("SAFE", id.as_ref()).unwrap_err().to_string();
    assert!(two.starts_with("two disks that are plugged in are called SAFE"), "{two}");
}

#[test]
fn why_a_disk_takes_no_backups_is_a_sentence_that_says_what_to_do() {
    let wrong = |more: &str| Told::with("8:16", "sdb", more).only().wrong.unwrap_or_default();
    assert_eq!(wrong(&file_system("exfat", "SAFE", "1C2E-44AF")), "");
    let ntfs = wrong(&file_system("ntfs", "SAFE", "01D9A2B3C4D5E6F7"));
    assert!(ntfs.starts_with("the disk SAFE has the file system ntfs, which"), "{ntfs}");
    assert!(ntfs.contains("format it as exFAT"), "{ntfs}");
    let empty = wrong("");
    assert!(empty.starts_with("the disk Cruzer Blade has no file system that this box knows"));
    let locked = wrong("E:ID_FS_USAGE=crypto\nE:ID_FS_TYPE=crypto_LUKS\nE:ID_FS_UUID=1C2E-44AF");
    assert!(locked.contains("no file system that this box knows"), "{locked}");
    let told = Told::with("8:16", "sdb", &file_system("vfat", "", "1C2E-44AF"));
    fs::write(told.disks.devices.join("8:16/ro"), "1\n").unwrap();
    assert!(told.only().wrong.unwrap().starts_with("the disk 1C2E-44AF is write-protected"));
}

#[test]
fn the_boxs_own_disk_the_firmwares_part_and_what_is_no_disk_are_not_listed() {
    let own = format!("{}\nE:ID_PART_ENTRY_NAME=polder-var", file_system("ext4", "", ID));
    let told = Told::with("8:1", "sda1", &own);
    // A disk whose parts are listed themselves, as computers format one.
    told.device("8:16", "sdb", "E:ID_PART_TABLE_TYPE=gpt");
    let firmware = "E:ID_PART_ENTRY_TYPE=c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
    told.device(
        "8:17",
        "sdb1",
        &format!("{}\n{firmware}", file_system("vfat", "EFI", "67E3-17ED")),
    );
    // A reader without a card.
    told.device("8:48", "sdd", "");
    fs::write(told.disks.devices.join("8:48/size"), "0\n").unwrap();
    told.device("11:0", "sr0", "E:ID_TYPE=cd");
    fs::write(told.disks.udev.join("b11:0"), "E:ID_BUS=usb\nE:ID_TYPE=cd\n").unwrap();
    fs::write(told.disks.udev.join("b7:0"), [0xff, 0xfe, b'\n']).unwrap();
    fs::write(told.disks.udev.join("c189:1"), "E:ID_BUS=usb\n").unwrap();
    assert_eq!(told.disks.on_usb(), []);
    let id = ID.parse().unwrap();
    let own = told.disks.find("", Some(&id)).unwrap().takes_backups();
    assert!(matches!(own, Err(DiskError::System(_))));
    // Nor is one inside the machine.
    let inside =
        "E:ID_BUS=ata\nE:ID_FS_USAGE=filesystem\nE:ID_FS_TYPE=ext4\nE:ID_FS_UUID=67E3-17ED\n";
    fs::write(told.disks.udev.join("b8:17"), inside).unwrap();
    let disk = told.disks.find("", Some(&"67E3-17ED".parse().unwrap())).unwrap();
    assert!(matches!(disk.takes_backups(), Err(DiskError::NotUsb(_))));
}

#[test]
fn a_disk_is_mounted_for_writing_so_that_nothing_on_it_is_a_program() {
    let how = |kind: &str| {
        let told = Told::with("8:17", "sdb1", &file_system(kind, "SAFE", "1C2E-44AF"));
        judge(&told.disks.find("SAFE", None).unwrap(), (640, 641)).unwrap()
    };
    assert_eq!(how("ext4"), "rw,nosuid,nodev,noexec,nosymfollow");
    assert_eq!(how("exfat"), "rw,nosuid,nodev,noexec,uid=640,gid=641,umask=0077");
}

#[test]
fn what_is_lent_is_known_by_where_it_is_mounted() {
    let told = Told::with("8:17", "sdb1", &file_system("ext4", "SAFE", ID));
    assert_eq!(told.disks.lent_now(), None);
    let at = told.disks.lent.join(MOUNT);
    let line = format!("41 22 8:17 / {} rw,nosuid - ext4 /dev/sdb1 rw\n", at.display());
    fs::write(&told.disks.mounts, line).unwrap();
    assert_eq!(told.disks.lent_now(), Some(ID.parse().unwrap()));
}

#[test]
fn a_disk_that_is_not_there_is_said_and_left_for_the_box_to_read() {
    let told = Told::nothing();
    let id: FileSystemId = ID.parse().unwrap();
    let why = told.disks.lend(&id, told.folder.path()).unwrap_err().to_string();
    assert!(why.starts_with(&format!("the disk {ID} is not plugged in; plug it in")), "{why}");
    assert_eq!(told.disks.why_not(), Some(why));
    told.disks.take_back(&id).unwrap();
}

#[test]
fn the_folder_for_backups_is_the_boxs_own_and_a_link_leads_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let own = fs::metadata(folder.path()).unwrap();
    let make = |owner| make_folder("the disk SAFE", folder.path(), owner);
    make((own.uid(), own.gid())).unwrap();
    make((own.uid(), own.gid())).unwrap();
    let made = folder.path().join(FOLDER);
    assert_eq!(fs::metadata(&made).unwrap().mode() & 0o777, 0o700);
    fs::remove_dir(&made).unwrap();
    symlink("/etc", &made).unwrap();
    assert!(matches!(make((own.uid(), own.gid())), Err(DiskError::Owner { .. })));
}

proptest::proptest! {
    /// A stick can be called anything, and so can what udev writes of it.
    #[test]
    fn no_label_makes_a_place_that_a_site_does_not_take(label in ".{0,60}", id in "[0-9a-fA-F-]{0,40}") {
        let label: String = label.chars().filter(|c| *c != '\n' && *c != '\r').collect();
        let told = Told::with("8:17", "sdb1", &file_system("vfat", &label, &id));
        let listed = told.only();
        if let Some(place) = listed.place {
            let read = place.parse::<BackupPlace>().unwrap();
            proptest::prop_assert_eq!(read.to_string(), place);
        }
    }
}
