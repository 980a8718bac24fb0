use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polder_image::Room;
use polder_stories::{free_port, need, scaled};

/// How long the slowest thing may take that a machine does: emulated, on cores that others use too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(400);
const PLAIN_DISK: &[&str] =
    &["-drive", "file=/mnt/vm/disk.qcow2,format=qcow2,if=none,id=disk,cache=unsafe,discard=unmap"];
/// A disk that can be looked into and changed while the machine is off.
const ONE_FILE: &[&str] =
    &["-drive", "file=/mnt/vm/disk.raw,format=raw,if=none,id=disk,cache=unsafe,discard=unmap"];
/// What is written to the disk is written down too.
const LOGGED_DISK: &[&str] = &[
    "-blockdev",
    "driver=qcow2,node-name=lower,file.driver=file,file.filename=/mnt/vm/disk.qcow2,file.cache.no-flush=on",
    "-blockdev",
    "driver=file,node-name=log,filename=/mnt/vm/writes.log,cache.no-flush=on",
    "-blockdev",
    "driver=blklogwrites,node-name=disk,file=lower,log=log,log-sector-size=512",
];

fn patience() -> Duration {
    scaled(PATIENCE)
}

/// Between two looks at the serial line.
const LOOK: Duration = Duration::from_millis(200);

/// A machine with a screen, a serial line, a disk, and a network that leads nowhere but to this test.
pub(crate) struct Machine {
    qemu: Child,
    chip: Option<Child>,
    folder: PathBuf,
    keys: UnixStream,
    /// On this machine's loopback: the box's port 443.
    pub(crate) port: u16,
    /// The same for its port 22.
    pub(crate) shell: u16,
    on: Instant,
}

/// What is plugged in, and stays when the machine is off.
pub(crate) struct Disks {
    folder: tempfile::TempDir,
    image: PathBuf,
    /// A box as it was kept, which the disk goes on from.
    kept: Option<PathBuf>,
    kind: Kind,
    models: bool,
    stick: bool,
    /// A chip that keeps secrets, and firmware that starts only what is signed, in set-up mode.
    guarded: bool,
    /// Where the stick with the image is, if it is in.
    image_stick: Option<Port>,
}

/// Where a stick is, seen from the firmware.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Port {
    /// Looked at before the disk.
    First,
    /// Looked at when the disk does not start.
    Last,
}

/// What the machine is, and which image it starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A workstation; the image without a driver.
    Plain,
    /// The same; the image with NVIDIA's driver.
    Driver,
    /// A machine with an ARM processor, which no test has ever run on but in emulation.
    Aarch64,
}

impl Kind {
    /// The image's disk.
    pub(crate) fn image(self) -> PathBuf {
        let name = match self {
            Self::Plain => "POLDER_VM_DISK",
            Self::Driver => "POLDER_VM_DISK_DRIVER",
            Self::Aarch64 => "POLDER_VM_DISK_AARCH64",
        };
        need(name).canonicalize().unwrap()
    }

    /// The room with the emulator in it.
    pub(crate) fn room(self) -> Room {
        let name =
            if self == Self::Aarch64 { "POLDER_VM_TESTER_AARCH64" } else { "POLDER_VM_TESTER" };
        Room::at(&need(name))
    }

    /// The emulator, the board, and a processor without what is slow to emulate.
    fn emulator(self) -> [&'static str; 5] {
        match self {
            Self::Plain | Self::Driver => ["qemu-system-x86_64", "-M", "q35", "-cpu", "max"],
            Self::Aarch64 => {
                ["qemu-system-aarch64", "-M", "virt,gic-version=3", "-cpu", "cortex-a76"]
            }
        }
    }

    /// The firmware, and the variables that it keeps.
    fn firmware(self) -> [&'static str; 2] {
        match self {
            Self::Plain | Self::Driver => {
                ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"]
            }
            Self::Aarch64 => {
                ["/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"]
            }
        }
    }
}

impl Disks {
    /// A machine that never ran, with the image on its disk as the installer writes it: with a boot menu of
    /// its own.
    pub(crate) fn fresh() -> Self {
        Self::of(Kind::Plain)
    }

    /// The same, in a machine of this kind.
    pub(crate) fn of(kind: Kind) -> Self {
        let disks = Self::without(kind);
        let box_ = disks.box_of_the_image();
        disks.lay_over(&format!("/mnt/image/{}", box_.file_name().unwrap().display()), "raw");
        disks
    }

    /// A machine with an empty disk, and a stick with the image on it.
    pub(crate) fn empty_with_the_image_on_a_stick() -> Self {
        let disks = Self::without(Kind::Plain);
        disks.run(&["qemu-img", "create", "-q", "-f", "qcow2", "/mnt/vm/disk.qcow2", "12G"]);
        disks.run(&["cp", "--sparse=always", &disks.image_there(), "/mnt/vm/image.raw"]);
        Self { image_stick: Some(Port::First), ..disks }
    }

    /// What a box from the image says of its driver.
    pub(crate) fn about_the_driver(&self) -> &'static str {
        if self.kind == Kind::Driver {
            "driver NVIDIA 550"
        } else {
            "this image has no NVIDIA driver"
        }
    }

    fn without(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = kind.image();
        let disks = Self {
            folder,
            image,
            kind,
            kept: None,
            models: false,
            stick: false,
            guarded: false,
            image_stick: None,
        };
        disks.run(&["cp", kind.firmware()[1], "/mnt/vm/firmware.fd"]);
        disks
    }

    fn image_there(&self) -> String {
        format!("/mnt/image/{}", self.image.file_name().unwrap().display())
    }

    /// Beside the image, made once for each: boxes that are kept go on from it.
    fn box_of_the_image(&self) -> PathBuf {
        let made = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
        let box_ = self.image.with_extension("box");
        if made(&box_) < made(&self.image) {
            let partial = self.image.with_extension("box.partial");
            let there = format!("/mnt/image/{}", partial.file_name().unwrap().display());
            self.run(&["cp", "--sparse=always", &self.image_there(), &there]);
            let menu = include_str!("../../image/tree/usr/share/polder/box/loader.conf");
            self.put(menu, &there, "/loader/loader.conf");
            let version = self.image.file_name().unwrap().to_string_lossy();
            let version = version.split('_').nth(1).unwrap();
            let installer = format!("::/EFI/Linux/install_{version}.efi");
            self.run(&["mdel", "-i", &format!("{there}@@1M"), &installer]);
            fs::rename(&partial, &box_).unwrap();
        }
        box_
    }

    /// Saves a seed on the stick, as somebody does who opened seed.html there.
    pub(crate) fn with_seed(self, text: &str) -> Self {
        self.put(text, "/mnt/vm/image.raw", "/polder-seed.toml");
        self
    }

    /// Writes a file to the boot partition of a disk that is off.
    fn put(&self, text: &str, disk: &str, to: &str) {
        fs::write(self.place("put"), text).unwrap();
        let partition = format!("{disk}@@1M");
        self.run(&["mcopy", "-o", "-i", &partition, "/mnt/vm/put", &format!("::{to}")]);
    }

    /// Whether no byte of the stick was changed.
    pub(crate) fn the_stick_is_the_image(&self) -> bool {
        self.status(&["cmp", "/mnt/vm/image.raw", &self.image_there()]) == Some(0)
    }

    /// Puts the stick into another port, or takes it out.
    pub(crate) fn move_the_stick(&mut self, port: Option<Port>) {
        self.image_stick = port;
    }

    /// The disk of a box that was kept in this folder; what is kept stays as it is.
    pub(crate) fn of_kept(kept: &Path) -> Self {
        let mut disks = Self::fresh();
        disks.kept = Some(kept.to_owned());
        disks.lay_over("/mnt/kept/disk.qcow2", "qcow2");
        disks.run(&["cp", "/mnt/kept/firmware.fd", "/mnt/vm/firmware.fd"]);
        disks
    }

    /// Keeps this machine, which is off, in a new folder.
    pub(crate) fn keep(&self, kept: &Path) {
        fs::create_dir_all(kept).unwrap();
        for file in ["disk.qcow2", "firmware.fd"] {
            fs::copy(self.folder.path().join(file), kept.join(file)).unwrap();
        }
    }

    /// A machine with this disk, whatever is on it.
    pub(crate) fn of_disk(disk: &Path) -> Self {
        let mut disks = Self::fresh();
        disks.kept = Some(disk.parent().unwrap().to_owned());
        let name = disk.file_name().unwrap().to_string_lossy();
        disks.lay_over(&format!("/mnt/kept/{name}"), "raw");
        disks
    }

    /// Makes the disk one file of its own, `base.raw`, which stays as it is from then on.
    pub(crate) fn flatten(&mut self) {
        let [from, to] = ["/mnt/vm/disk.qcow2", "/mnt/vm/base.raw"];
        self.run(&["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", from, to]);
        self.lay_over(to, "raw");
    }

    /// A file of this machine.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a tool says that has to do its work.
    pub(crate) fn answer(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// How a tool ended.
    pub(crate) fn status(&self, arguments: &[&str]) -> Option<i32> {
        self.command().args(arguments).output().unwrap().status.code()
    }

    fn lay_over(&self, backing: &str, format: &str) {
        let create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", backing];
        self.run(&[create.as_slice(), &["/mnt/vm/disk.qcow2", "12G"]].concat());
    }

    /// Also a stick with these files on it.
    pub(crate) fn with_stick(mut self, files: &[PathBuf]) -> Self {
        self.write_stick("stick", files);
        self.stick = true;
        self
    }

    fn write_stick(&self, name: &str, files: &[PathBuf]) {
        let stick = tempfile::tempdir().unwrap();
        for file in files {
            fs::copy(file, stick.path().join(file.file_name().unwrap())).unwrap();
        }
        let disk = format!("/mnt/vm/{name}.raw");
        let make = ["mkfs.ext4", "-q", "-F", "-L", "STICK", "-d", "/mnt/stick", &disk, "700M"];
        let mut command =
            self.room().command(&[("vm", self.folder.path()), ("stick", stick.path())]);
        assert!(command.args(make).status().unwrap().success());
    }

    /// Plugs another stick with these files into a machine of these disks that is on.
    pub(crate) fn plug_in(&self, machine: &Machine, name: &str, files: &[PathBuf]) {
        self.write_stick(name, files);
        machine.order(&format!("drive_add 0 if=none,id={name},file=/mnt/vm/{name}.raw,format=raw"));
        machine.order(&format!("device_add usb-storage,id={name},drive={name},removable=on"));
    }

    /// Makes files that are USB disks, with the tools of the room, in its folder.
    pub(crate) fn make_usb(&self, script: &str) {
        self.run(&["sh", "-euc", &format!("cd /mnt/vm; {script}")]);
    }

    /// Also a USB disk with the trial model's file on it.
    pub(crate) fn with_models(mut self) -> Self {
        let folder = need("POLDER_SMOLLM2_FOLDER").canonicalize().unwrap();
        let make =
            ["mkfs.ext4", "-q", "-L", "MODELS", "-d", "/mnt/models", "/mnt/vm/models.raw", "256M"];
        let mut command = self.room().command(&[("vm", self.folder.path()), ("models", &folder)]);
        assert!(command.args(make).status().unwrap().success());
        self.models = true;
        self
    }

    /// In a machine that can tell one system from another: with a TPM, and with Secure Boot waiting for its keys.
    /// The disk is one file, which can be looked into and changed while the machine is off.
    pub(crate) fn guarded(kind: Kind) -> Self {
        let disks = Self { guarded: true, ..Self::of(kind) };
        let box_ = disks.box_of_the_image();
        let name = box_.file_name().unwrap().display();
        let copy = format!("cp --sparse=always /mnt/image/{name} /mnt/vm/disk.raw");
        disks.run(&[
            "sh",
            "-c",
            &format!("{copy} && truncate -s 12G /mnt/vm/disk.raw && mkdir /mnt/vm/tpm"),
        ]);
        disks
    }

    /// Puts another version into the second slot, and its boot entry in the place of the first one's.
    pub(crate) fn put_in_version(&self, version: &str) {
        let next = self.image.with_file_name(format!("polder_{version}_x86_64.raw"));
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let (old, new) = (name(&self.image), name(&next));
        let version = |name: &str| name.split('_').nth(1).unwrap().to_owned();
        let entry = |name: &str| format!("::/EFI/Linux/polder_{}.efi", version(name));
        let script = r#"
            disk=/mnt/vm/disk.raw
            # The command line has the root's hash, whose halves are the UUIDs of its partitions.
            hash=$(grep -aoE 'roothash=[0-9a-f]{64}' "/mnt/next/$1.efi" | head -1 | cut -d= -f2)
            uuid() { sed -E 's/(.{8})(.{4})(.{4})(.{4})(.{12})/\1-\2-\3-\4-\5/'; }
            sfdisk -q --part-uuid $disk 4 "$(echo $hash | cut -c33-64 | uuid)"
            sfdisk -q --part-uuid $disk 5 "$(echo $hash | cut -c1-32 | uuid)"
            start() { sfdisk -l -o Device,Start $disk | awk -v p="disk.raw$1" '$1 ~ p"$" {print $2}'; }
            dd if="/mnt/next/$1.verity" of=$disk bs=1M oflag=seek_bytes seek=$(($(start 4) * 512)) conv=notrunc status=none
            dd if="/mnt/next/$1.root" of=$disk bs=1M oflag=seek_bytes seek=$(($(start 5) * 512)) conv=notrunc status=none
            mdel -i $disk@@1M "$2"
            mcopy -i $disk@@1M "/mnt/next/$1.efi" "$3"
        "#;
        let stem = new.trim_end_matches(".raw").to_owned();
        let mut command =
            self.room().command(&[("vm", self.folder.path()), ("next", next.parent().unwrap())]);
        command.args(["sh", "-euc", script, "put", &stem, &entry(&old), &entry(&new)]);
        assert!(command.status().unwrap().success());
    }

    /// Takes the signature off the boot entry of this version.
    pub(crate) fn take_the_signature_off(&self, version: &str) {
        let entry = format!("::/EFI/Linux/polder_{version}.efi");
        self.run(&["mcopy", "-o", "-i", "/mnt/vm/disk.raw@@1M", &entry, "/mnt/vm/entry.efi"]);
        let path = self.folder.path().join("entry.efi");
        let mut bytes = fs::read(&path).unwrap();
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        // The fifth of the directories in a PE file's optional header says where the signature is.
        let at = number(0x3c) + 24 + 112 + 4 * 8;
        assert!(number(at) > 0 && number(at + 4) > 0, "it is signed");
        bytes[at..at + 8].fill(0);
        fs::write(&path, bytes).unwrap();
        self.run(&["mcopy", "-o", "-i", "/mnt/vm/disk.raw@@1M", "/mnt/vm/entry.efi", &entry]);
    }

    /// Changes one byte where the root file system begins: behind the boot partition (1 GiB from the first MiB
    /// on) and the hashes (64 MiB), in what erofs keeps of itself.
    pub(crate) fn flip_a_byte_of_the_system(&self) {
        let at = (1 + 1024 + 64) * (1 << 20) + 1024;
        let disk = "/mnt/vm/disk.qcow2";
        self.run(&["qemu-io", "-f", "qcow2", "-c", &format!("write -q -P 0 {at} 1"), disk]);
    }

    /// The names of the partitions on the disk, in its order; of a machine that is off.
    pub(crate) fn partitions(&self) -> Vec<String> {
        let copy = ["if=/mnt/vm/disk.qcow2", "of=/mnt/vm/table.raw", "bs=1M", "count=1"];
        self.run(&[&["qemu-img", "dd", "-f", "qcow2", "-O", "raw"], &copy[..]].concat());
        let table = fs::read(self.folder.path().join("table.raw")).unwrap();
        // UEFI 2.10, 5.3.3: entries of 128 bytes from the third sector on, with names of 36 characters from byte
        // 56 on; an entry without a type is none.
        let entries = table[1024..1024 + 128 * 128].chunks_exact(128);
        let name = |entry: &[u8]| {
            let pairs =
                entry[56..].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            String::from_utf16(&pairs.take_while(|c| *c != 0).collect::<Vec<_>>()).unwrap()
        };
        entries.filter(|entry| entry[..16] != [0; 16]).map(name).collect()
    }

    fn room(&self) -> Room {
        self.kind.room()
    }

    fn command(&self) -> Command {
        let none = self.folder.path().to_owned();
        let kept = self.kept.as_ref().unwrap_or(&none);
        self.room().command(&[
            ("vm", self.folder.path()),
            ("image", self.image.parent().unwrap()),
            ("kept", kept),
        ])
    }

    fn run(&self, arguments: &[&str]) {
        let status = self.command().args(arguments).status().unwrap();
        assert!(status.success(), "{arguments:?}: {status}");
    }

    /// Presses the machine's button. One that starts again by itself goes off instead.
    pub(crate) fn switch_on(&self) -> Machine {
        self.switch_on_with(&[])
    }

    /// The same, with more words for QEMU.
    pub(crate) fn switch_on_with(&self, more: &[&str]) -> Machine {
        self.start(self.disk(), &[&["-no-reboot"], more].concat(), &[])
    }

    fn disk(&self) -> &'static [&'static str] {
        if self.guarded { ONE_FILE } else { PLAIN_DISK }
    }

    /// The same, and has the machine start these services too, which a board can hand to an unmodified system:
    /// pairs of a name and the unit's text.
    pub(crate) fn switch_on_with_services(&self, services: &[(&str, &str)]) -> Machine {
        self.start(self.disk(), &["-no-reboot"], services)
    }

    /// Services, and more words for QEMU.
    pub(crate) fn switch_on_with_services_and(
        &self,
        services: &[(&str, &str)],
        more: &[&str],
    ) -> Machine {
        self.start(self.disk(), &[&["-no-reboot"], more].concat(), services)
    }

    /// The same with every write and flush of its disk written down in `writes.log`.
    pub(crate) fn switch_on_with_a_log_of_writes(&self) -> Machine {
        fs::write(self.place("writes.log"), "").unwrap();
        self.start(LOGGED_DISK, &["-no-reboot"], &[])
    }

    /// Presses the button of a machine that may start again by itself, as often as it likes.
    pub(crate) fn switch_on_for_good(&self) -> Machine {
        self.start(PLAIN_DISK, &[], &[])
    }

    /// The chip's other half, which keeps its secrets in a file.
    fn chip(&self) -> Child {
        let socket = self.folder.path().join("tpm.sock");
        let _ = fs::remove_file(&socket);
        let mut command = self.room().command(&[("vm", self.folder.path())]);
        command.args(["swtpm", "socket", "--tpm2", "--tpmstate", "dir=/mnt/vm/tpm"]);
        command.args(["--ctrl", "type=unixio,path=/mnt/vm/tpm.sock"]);
        command.args(["--terminate", "--flags", "startup-clear"]);
        let chip = command.stdin(Stdio::null()).spawn().unwrap();
        while !socket.exists() {
            std::thread::sleep(LOOK);
        }
        chip
    }

    fn start(&self, disk: &[&str], more: &[&str], services: &[(&str, &str)]) -> Machine {
        let (port, shell) = (free_port(), free_port());
        let folder = self.folder.path().to_owned();
        // Two places in its network take connections: somebody to ask whether an uplink works.
        let forward = format!(
            "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:443,hostfwd=tcp:127.0.0.1:{shell}-:22,guestfwd=tcp:10.0.2.100:7-cmd:cat,guestfwd=tcp:10.0.2.100:8-cmd:cat"
        );
        let mut command = self.command();
        command.args(self.kind.emulator()).args(["-accel", "tcg,thread=multi"]);
        if self.guarded {
            command.args(["-machine", "smm=on"]);
        }
        command.args([
            "-smp",
            "2",
            "-m",
            "3072",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ]);
        // The watchdog that a real board has.
        command.args(["-device", "i6300esb", "-action", "watchdog=reset"]);
        command.args(["-uuid", "b0c5e1f2-4a3d-4c7e-9a1b-2d3e4f506172"]);
        let code = if self.guarded {
            "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
        } else {
            self.kind.firmware()[0]
        };
        command.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={code}"));
        command.args(["-drive", "if=pflash,format=raw,file=/mnt/vm/firmware.fd"]);
        command.args(disk);
        command.args(["-device", "nvme,drive=disk,serial=BOX0001,bootindex=1"]);
        command.args(["-device", "qemu-xhci", "-device", "virtio-rng-pci"]);
        command.args([
            "-netdev",
            &forward,
            "-device",
            "virtio-net-pci,netdev=net,id=first,romfile=",
        ]);
        command.args(["-chardev", "socket,id=serial,path=/mnt/vm/serial.sock,server=on,wait=off"]);
        command.args([
            "-serial",
            "chardev:serial",
            "-monitor",
            "unix:/mnt/vm/monitor.sock,server,nowait",
        ]);
        if self.models {
            command.args([
                "-drive",
                "file=/mnt/vm/models.raw,format=raw,if=none,id=models,readonly=on",
            ]);
            command.args(["-device", "usb-storage,drive=models,removable=on"]);
        }
        if self.stick {
            command.args(["-drive", "file=/mnt/vm/stick.raw,format=raw,if=none,id=stick"]);
            command.args(["-device", "usb-storage,id=stick,drive=stick,removable=on"]);
        }
        if let Some(port) = self.image_stick {
            let order = if port == Port::First { 0 } else { 2 };
            let image = "file=/mnt/vm/image.raw,format=raw,if=none,id=image,cache=unsafe";
            let stick = format!("usb-storage,drive=image,serial=STICK1,bootindex={order}");
            command.args(["-drive", image, "-device", &stick]);
        }
        for (name, text) in services {
            let wanted = format!("multi-user.target~{name}=[Unit]\nWants={name}.service\n");
            for (file, told) in [
                (format!("{name}.service"), format!("extra-unit.{name}.service={text}")),
                (format!("{name}.wanted"), format!("unit-dropin.{wanted}")),
            ] {
                fs::write(folder.join(&file), format!("io.systemd.credential:systemd.{told}"))
                    .unwrap();
                command.arg("-smbios").arg(format!("type=11,path=/mnt/vm/{file}"));
            }
        }
        let chip = self.guarded.then(|| self.chip());
        if self.guarded {
            command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
            command.args(["-chardev", "socket,id=tpm,path=/mnt/vm/tpm.sock"]);
            command.args([
                "-tpmdev",
                "emulator,id=tpm,chardev=tpm",
                "-device",
                "tpm-crb,tpmdev=tpm",
            ]);
        }
        // What an earlier start said is not what this one says.
        for file in ["serial.log", "serial.sock"] {
            let _ = fs::remove_file(folder.join(file));
        }
        // Last: it may be plugged into what the machine has.
        command.args(more);
        let log = fs::File::create(folder.join("qemu.log")).unwrap();
        let qemu =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let keys = serial_line(&folder.join("serial.sock"), &folder.join("serial.log"));
        Machine { qemu: qemu.unwrap(), chip, folder, keys, port, shell, on: Instant::now() }
    }
}

impl Machine {
    /// How long it has been on.
    pub(crate) fn age(&self) -> Duration {
        self.on.elapsed()
    }

    /// All that the serial line said since the machine went on, without what only a terminal understands.
    pub(crate) fn serial(&self) -> String {
        plain(&fs::read(self.folder.join("serial.log")).unwrap_or_default())
    }

    /// Waits until the serial line says something, and returns the rest of that line.
    pub(crate) fn says(&mut self, words: &str) -> String {
        let begun = Instant::now();
        loop {
            let said = self.serial();
            if let Some(at) = said.rfind(words) {
                let rest = &said[at + words.len()..];
                // A line that is not over yet may be half a line.
                if let Some((line, _)) = rest.split_once('\n') {
                    return line.trim().to_owned();
                }
            }
            if let Some(status) = self.qemu.try_wait().unwrap() {
                panic!("the machine is off ({status}) before it said {words:?}:\n{}", self.told());
            }
            assert!(begun.elapsed() < patience(), "waited for {words:?}:\n{}", self.told());
            std::thread::sleep(LOOK);
        }
    }

    /// How often the serial line said something.
    pub(crate) fn said(&self, words: &str) -> usize {
        self.serial().matches(words).count()
    }

    /// Waits until the serial line says something after the `since`-th time that it said `mark`, over several starts.
    pub(crate) fn says_after(&mut self, mark: &str, since: usize, words: &str) -> String {
        let begun = Instant::now();
        loop {
            let said = self.serial();
            let at = said.match_indices(mark).nth(since).map(|(at, _)| at);
            if let Some(rest) = at.map(|at| &said[at..])
                && let Some(found) = rest.find(words)
                && let Some((line, _)) = rest[found + words.len()..].split_once('\n')
            {
                return line.trim().to_owned();
            }
            if let Some(status) = self.qemu.try_wait().unwrap() {
                panic!("the machine is off ({status}) before it said {words:?}:\n{}", self.told());
            }
            assert!(begun.elapsed() < 4 * PATIENCE, "waited for {words:?}:\n{}", self.told());
            std::thread::sleep(LOOK);
        }
    }

    /// Whether the serial line says something in this time.
    pub(crate) fn says_within(&self, words: &str, time: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < time {
            if self.serial().contains(words) {
                return true;
            }
            std::thread::sleep(LOOK);
        }
        false
    }

    /// Waits until the machine is off.
    pub(crate) fn goes_off(&mut self) {
        self.goes_off_within(patience());
    }

    /// The same, within a time.
    pub(crate) fn goes_off_within(&mut self, time: Duration) {
        let begun = Instant::now();
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < time, "it does not turn off:\n{}", self.told());
            std::thread::sleep(LOOK);
        }
    }

    /// Presses a key on the serial line.
    pub(crate) fn press(&self, key: &str) {
        (&self.keys).write_all(key.as_bytes()).unwrap();
        // QEMU takes it when it comes round to it.
        std::thread::sleep(Duration::from_millis(500));
    }

    /// Presses the power button, for a moment.
    pub(crate) fn power_button(&self) {
        self.order("system_powerdown");
    }

    /// Plugs a file of its folder in as a USB disk with this name; `more` is about the file.
    pub(crate) fn plug(&self, file: &str, name: &str, more: &str) {
        self.order(&format!(
            "drive_add 0 if=none,id={name},file=/mnt/vm/{file}.raw,format=raw{more}"
        ));
        self.order(&format!("device_add usb-storage,id={name},drive={name},removable=on"));
    }

    /// Pulls a stick out.
    pub(crate) fn pull_out(&self, name: &str) {
        self.order(&format!("device_del {name}"));
    }

    /// Has QEMU do something.
    pub(crate) fn order(&self, what: &str) {
        self.ask_qemu(what).unwrap();
    }

    /// What QEMU says to that within half a second.
    fn ask_qemu(&self, what: &str) -> std::io::Result<String> {
        let mut monitor = UnixStream::connect(self.folder.join("monitor.sock"))?;
        monitor.write_all(format!("{what}\n").as_bytes())?;
        std::thread::sleep(Duration::from_millis(500));
        monitor.set_nonblocking(true)?;
        let mut said = Vec::new();
        // It ends with "nothing more for now", never by itself.
        let _ = monitor.read_to_end(&mut said);
        Ok(plain(&said))
    }

    /// The certificate's fingerprint, as the machine's own screen shows it.
    pub(crate) fn fingerprint(&self) -> String {
        let said = self.serial();
        let (_, rest) = said.rsplit_once("Certificate fingerprint (SHA-256):").unwrap();
        rest.split_whitespace().take(2).collect()
    }

    fn told(&self) -> String {
        let qemu = fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
        let serial = self.serial();
        let from = serial.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
        // Where a machine says nothing at all, its processors tell where it stands.
        let processors = self.ask_qemu("info registers -a").unwrap_or_default();
        format!("{qemu}\n{processors}\n{}", &serial[from..])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The chip ends with the machine that it is in.
        for child in [Some(&mut self.qemu), self.chip.as_mut()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The cable of a machine that was just switched on. What comes through it is written down at this end: QEMU's own log has a
/// letter twice that it could not send at once, and a socket is full after some 277 letters that nobody has read yet.
fn serial_line(socket: &Path, log: &Path) -> UnixStream {
    let begun = Instant::now();
    let line = loop {
        match UnixStream::connect(socket) {
            Ok(line) => break line,
            Err(error) => assert!(begun.elapsed() < patience(), "{}: {error}", socket.display()),
        }
        std::thread::sleep(LOOK);
    };
    let mut heard = line.try_clone().unwrap();
    let mut log = fs::File::create(log).unwrap();
    std::thread::spawn(move || std::io::copy(&mut heard, &mut log));
    line
}

/// Text without the sequences that move a cursor or give colours.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::new();
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\x1b' => {
                if characters.next_if_eq(&'[').is_some() {
                    while characters.next_if(|c| !c.is_ascii_alphabetic()).is_some() {}
                }
                characters.next();
                // A page that is painted anew begins a line.
                plain.push('\n');
            }
            '\r' => {}
            c => plain.push(c),
        }
    }
    plain
}
