# Makes the read-only root: the packages in /mnt/root, the files of the tree in /mnt/tree, the program
# in /mnt/program; nothing that a machine would write itself. Then packs it and seals it with hashes.
work=/run/work
mkdir -p $work && mount -t tmpfs work $work && mkdir $work/{up,wk,root}
mount -t overlay overlay -o lowerdir=/mnt/root,upperdir=$work/up,workdir=$work/wk $work/root
r=$work/root

# Of modes only what git keeps: whoever made a folder may have kept it to himself.
for tree in /mnt/tree /mnt/beside /mnt/also; do
    [ ! -d $tree ] || cp -r --preserve=links --no-target-directory $tree $work/files
done
chmod -R u=rwX,go=rX $work/files
cp -r --preserve=mode,links --no-target-directory $work/files $r
install -D -m 0755 /mnt/program/polder $r/usr/lib/polder/polder
ln -sf ../lib/polder/polder $r/usr/bin/polder
if [ -d /mnt/driver ]; then
    cp -r --preserve=mode,links --no-target-directory /mnt/driver/tree $r
    cp -r --preserve=mode,links --no-target-directory /mnt/kernels/tree $r
    # The program in the image was maybe not made from the sources that the kernels were.
    chroot $r /usr/lib/polder/polder engine kernels check /usr/lib/polder/kernels $KINDS
    depmod --basedir $r "$(ls $r/usr/lib/modules)"
fi

# The keys whose updates the box will take; none in an image that nobody signed.
mkdir -p $r/usr/lib/polder/keys/update
find /mnt/keys -name '*.pub' -exec install -m 0644 -t $r/usr/lib/polder/keys/update {} +

# The boot menu shows the pretty name.
sed -i '/^IMAGE_/d; /^PRETTY_NAME=/d' $r/usr/lib/os-release
printf 'PRETTY_NAME="Polder %s"\nIMAGE_ID=polder\nIMAGE_VERSION=%s\n' "$VERSION" "$VERSION" >> $r/usr/lib/os-release
echo polder > $r/etc/hostname
: > $r/etc/machine-id
ln -sf ../run/systemd/resolve/stub-resolv.conf $r/etc/resolv.conf

chroot $r systemd-sysusers
# What is on a box's disk belongs to this number, whatever the version.
[ "$(chroot $r id -u polder):$(chroot $r id -g polder)" = 640:640 ]
# Only what our presets name is switched on.
rm -rf $r/etc/systemd/system/*.wants $r/etc/systemd/system/*.requires
find $r/etc/systemd/system -maxdepth 1 -type l ! -lname /dev/null -delete
chroot $r systemctl preset-all 2>&1
chroot $r systemctl set-default multi-user.target

# NUT is told by Polder what to do, and the hook at the machine's end is ours.
rm -f $r/usr/lib/systemd/system-shutdown/nutshutdown

# Nothing of package management, of the build, or of one machine's life.
rm -rf $r/etc/apt $r/var/cache $r/var/log $r/var/lib/apt $r/var/backups $r/etc/ssh/ssh_host_* $r/usr/share/factory/var
mkdir -p $r/usr/lib/sysimage && mv $r/var/lib/dpkg $r/usr/lib/sysimage/dpkg
find $r/etc -name '*-' -type f -delete
rm -f $r/etc/.pwd.lock $r/boot/System.map* $r/initrd.img* $r/vmlinuz*
cp $r/boot/vmlinuz-* /mnt/out/vmlinuz
rm -rf $r/boot $r/var $r/tmp $r/run
mkdir -p $r/boot $r/efi $r/run $r/tmp $r/var/{lib/private,cache,log,tmp,spool}
chmod 1777 $r/tmp $r/var/tmp
ln -s ../run $r/var/run
ln -s ../run/lock $r/var/lock
cp $r/usr/lib/os-release /mnt/out/os-release
ls $r/usr/lib/modules > /mnt/out/kernel

mkfs.erofs --quiet -zzstd,level=3 -C65536 -T"$SOURCE_DATE_EPOCH" --all-time -U"$ROOT_UUID" \
    /mnt/out/root.erofs $r
veritysetup format /mnt/out/root.erofs /mnt/out/root.verity --salt="$SALT" --uuid="$VERITY_UUID" |
    sed -n 's/^Root hash:[[:space:]]*//p' > /mnt/out/roothash
test -s /mnt/out/roothash
