# Makes the boot entry (kernel, initial file system and the root's hash in one file) and the disk.
cd /mnt/out
hash=$(cat /mnt/sealed/roothash)
uuid() { sed -E 's/(.{8})(.{4})(.{4})(.{4})(.{12})/\1-\2-\3-\4-\5/'; }
root_part=$(cut -c1-32 <<< "$hash" | uuid)
verity_part=$(cut -c33-64 <<< "$hash" | uuid)
measured=()
if [ -n "$SIGNED" ]; then
    # What is sealed to these values opens while /var is looked for, and no more once the box is up.
    measured=(--pcr-private-key=/mnt/keys/pcr.key --pcr-public-key=/mnt/keys/pcr.pub
        --phases=enter-initrd:leave-initrd --pcr-banks=sha256,sha384)
fi
# The root's partition is found by its hash, so that each boot entry finds its own slot, and on the disk that
# the boot loader came from: a stick and a disk installed from it have the same system. A machine that hangs,
# panics, finds a wrong byte or cannot even begin starts again; the boot loader then counts.
cmdline="roothash=$hash systemd.verity_root_data=/dev/polder/by-partuuid/$root_part systemd.verity_root_hash=/dev/polder/by-partuuid/$verity_part rootfstype=erofs ro systemd.machine_id=firmware rd.shell=0 rd.emergency=reboot panic=30 loglevel=4 console=$SERIAL,115200 console=tty0"
# The installer has a boot entry of its own, on sticks only: nothing of the disk that it starts from is changed, and its
# /var is gone when the machine goes off. A wrong byte on a stick is a sentence on its screen.
live="polder.live fstab=no luks.crypttab=no systemd.mount-extra=tmpfs:/var:tmpfs:mode=0755,nosuid,nodev,size=25% systemd.mount-extra=/dev/polder/polder-esp:/efi:vfat:ro,umask=0077,nofail systemd.gpt_auto=0 rd.systemd.gpt_auto=0 systemd.mask=systemd-repart.service rd.systemd.mask=systemd-repart.service"
entry() {
    ukify build --linux=/mnt/sealed/vmlinuz --initrd=/mnt/initrd/initrd.img \
        --stub=/usr/lib/systemd/boot/efi/linux$EFI.efi.stub --efi-arch=$EFI \
        --uname="$(cat /mnt/sealed/kernel)" "$@"
}
entry --os-release=@/mnt/sealed/os-release \
    --cmdline="$cmdline systemd.gpt_auto=1 rd.systemd.gpt_auto=1 systemd.verity_root_options=panic-on-corruption" \
    "${measured[@]}" --output=polder_$VERSION.efi
# Not measured: what is sealed to a machine does not open for it.
sed "s/^PRETTY_NAME=.*/PRETTY_NAME=\"Put Polder $VERSION on a disk in this machine\"/" /mnt/sealed/os-release > /run/os-release
entry --os-release=@/run/os-release --cmdline="$cmdline $live" --output=/run/install_$VERSION.efi

esp=/run/esp
mkdir -p $esp/EFI/{BOOT,Linux,systemd} $esp/loader
# For Secure Boot. systemd's own signer puts the time of day into what it signs.
sign() {
    [ -n "$SIGNED" ] || return 0
    osslsigncode sign -h sha256 -certs /mnt/keys/secure-boot.crt -key /mnt/keys/secure-boot.key \
        -time "$SOURCE_DATE_EPOCH" -in "$1" -out "$1.signed"
    mv "$1.signed" "$1"
}
sign polder_$VERSION.efi
sign /run/install_$VERSION.efi
loader=/run/loader.efi
cp /usr/lib/systemd/boot/efi/systemd-boot$EFI.efi $loader
sign $loader
cp $loader $esp/EFI/BOOT/BOOT${EFI^^}.EFI
cp $loader $esp/EFI/systemd/systemd-boot$EFI.efi
# What the installer writes to a box has a loader.conf of its own.
cp /mnt/tree/usr/share/polder/stick/loader.conf $esp/loader/loader.conf
cp /mnt/tree/usr/share/polder/stick/*.html $esp/
printf 'type1\n' > $esp/loader/entries.srel
cp polder_$VERSION.efi /run/install_$VERSION.efi $esp/EFI/Linux/
if [ -n "$SIGNED" ]; then
    # A machine in set-up mode can take our keys for its own: a virtual one does so by itself, on a real one
    # somebody chooses it in the boot menu, because cards with firmware of their own may need other keys too.
    printf 'secure-boot-enroll if-safe\n' >> $esp/loader/loader.conf
    mkdir /run/enrol && mount -t tmpfs enrol /run/enrol
    SYSTEMD_RELAX_ESP_CHECKS=1 bootctl install --esp-path=/run/enrol --no-variables --random-seed=no \
        --make-entry-directory=no --secure-boot-auto-enroll=yes \
        --certificate=/mnt/keys/secure-boot.crt --private-key=/mnt/keys/secure-boot.key
    mkdir $esp/loader/keys
    cp -r /run/enrol/loader/keys/auto $esp/loader/keys
fi
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
