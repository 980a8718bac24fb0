# Makes the boot entry (kernel, initial file system and the root's hash in one file) and the disk.
cd /mnt/out
hash=$(cat /mnt/sealed/roothash)
uuid() { sed -E 's/(.{8})(.{4})(.{4})(.{4})(.{12})/\1-\2-\3-\4-\5/'; }
root_part=$(cut -c1-32 <<< "$hash" | uuid)
verity_part=$(cut -c33-64 <<< "$hash" | uuid)
# The root's partition is found by its hash, so that each boot entry finds its own slot. A machine that hangs,
# panics, finds a wrong byte or cannot even begin starts again; the boot loader then counts.
ukify build --linux=/mnt/sealed/vmlinuz --initrd=/mnt/initrd/initrd.img \
    --stub=/usr/lib/systemd/boot/efi/linux$EFI.efi.stub --efi-arch=$EFI \
    --os-release=@/mnt/sealed/os-release --uname="$(cat /mnt/sealed/kernel)" \
    --cmdline="roothash=$hash rootfstype=erofs ro systemd.gpt_auto=1 rd.systemd.gpt_auto=1 systemd.machine_id=firmware systemd.verity_root_options=panic-on-corruption rd.shell=0 rd.emergency=reboot panic=30 loglevel=4 console=$SERIAL,115200 console=tty0" \
    --output=polder_$VERSION.efi

esp=/run/esp
mkdir -p $esp/EFI/{BOOT,Linux,systemd} $esp/loader
loader=/usr/lib/systemd/boot/efi/systemd-boot$EFI.efi
cp $loader $esp/EFI/BOOT/BOOT${EFI^^}.EFI
cp $loader $esp/EFI/systemd/systemd-boot$EFI.efi
printf 'timeout 0\nconsole-mode keep\neditor no\n' > $esp/loader/loader.conf
printf 'type1\n' > $esp/loader/entries.srel
cp polder_$VERSION.efi $esp/EFI/Linux/polder_$VERSION.efi
find $esp -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +

parts=/run/repart
mkdir -p $parts
cat > $parts/10-esp.conf <<X
[Partition]
Type=esp
Label=polder-esp
Format=vfat
CopyFiles=$esp:/
SizeMinBytes=$ESP_SIZE
SizeMaxBytes=$ESP_SIZE
X
cat > $parts/20-verity.conf <<X
[Partition]
Type=$VERITY_TYPE
Label=polder_$VERSION
UUID=$verity_part
CopyBlocks=/mnt/sealed/root.verity
ReadOnly=yes
SizeMinBytes=$VERITY_SIZE
SizeMaxBytes=$VERITY_SIZE
X
cat > $parts/21-root.conf <<X
[Partition]
Type=$ROOT_TYPE
Label=polder_$VERSION
UUID=$root_part
CopyBlocks=/mnt/sealed/root.erofs
ReadOnly=yes
SizeMinBytes=$ROOT_SIZE
SizeMaxBytes=$ROOT_SIZE
X
# Without these mkfs.vfat takes the time of day as the volume's number.
export SYSTEMD_REPART_MKFS_OPTIONS_VFAT="--invariant -i 0x504c4452"
systemd-repart --offline=yes --empty=create --size=auto --seed="$SEED" --definitions=$parts --dry-run=no --no-pager polder_$VERSION.raw
