# Makes the initial file system with dracut, on top of the root file system in /mnt/root and without
# leaving a trace there. dracut's own tpm2-tss module wants tpm2-tools; the libraries are enough.
work=/run/work
mkdir -p $work && mount -t tmpfs work $work && mkdir $work/{up,wk,root}
mount -t overlay overlay -o lowerdir=/mnt/root,upperdir=$work/up,workdir=$work/wk $work/root
r=$work/root
mount -t proc proc $r/proc
mount --bind /dev $r/dev
mount -t tmpfs run $r/run
mkdir -p $r/tmp/new
cp /mnt/repo/*.deb $r/tmp/new/
# In one call: dpkg puts them into the right order itself.
INITRD=No dpkg --root=$r --force-unsafe-io -i $r/tmp/new/*.deb
kernel=$(ls /mnt/root/usr/lib/modules)
# The same as in image/tree: a machine that hangs here starts again too.
conf=/usr/lib/systemd/system.conf.d/50-polder.conf
mkdir -p $r${conf%/*}
printf '[Manager]\nRuntimeWatchdogSec=60\nRebootWatchdogSec=5min\nCrashAction=reboot\nDefaultDeviceTimeoutSec=5min\n' > $r$conf
rules=/usr/lib/udev/rules.d/70-polder-boot-disk.rules
printf '%s' "$BOOT_DISK_RULES" > $r$rules
libs=
# What a boot measures includes that it went through here; the target waits for the TPM with which it is told.
units="/usr/lib/systemd/system/tpm2.target /usr/lib/systemd/system-generators/systemd-tpm2-generator"
for lib in esys.so.0 sys.so.1 rc.so.0 mu.so.0 tcti-device.so.0; do libs="$libs /usr/lib/$MULTIARCH/libtss2-$lib"; done
chroot $r dracut --kver "$kernel" --no-hostonly --reproducible --force --no-early-microcode \
    --modules "base systemd systemd-initrd systemd-udevd systemd-veritysetup systemd-cryptsetup systemd-pcrphase systemd-repart systemd-journald systemd-tmpfiles systemd-sysctl systemd-modules-load kernel-modules rootfs-block fs-lib dm crypt shutdown udev-rules dracut-systemd" \
    --drivers "erofs dm-verity dm-crypt dm-mod overlay loop ext4 vfat nls_cp437 nls_ascii nls_iso8859-1 virtio_blk virtio_pci virtio_scsi virtio_mmio nvme ahci sd_mod usb-storage uas xhci-pci tpm_crb tpm_tis efivarfs iTCO_wdt i6300esb sp5100_tco sbsa_gwdt softdog" \
    --install "$libs $units $conf $rules" --compress "zstd -19 -T1" /polder.img "$kernel"
cp $r/polder.img /mnt/out/initrd.img
