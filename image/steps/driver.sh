# Builds NVIDIA's open modules for the very kernel of the root in /mnt/root, in a layer over it that is thrown
# away, and lays out in /mnt/out/tree what of the driver goes onto a box.
work=/run/work
mkdir -p $work && mount -t tmpfs work $work && mkdir $work/{up,wk,root,parts}
mount -t overlay overlay -o lowerdir=/mnt/root,upperdir=$work/up,workdir=$work/wk $work/root
r=$work/root p=$work/parts out=/mnt/out/tree
kernel=$(ls /mnt/root/usr/lib/modules)

# Debian's packages and NVIDIA's own have the same things in different places.
if [ -e /mnt/parts/driver.run ]; then
    rmdir $p && sh /mnt/parts/driver.run --extract-only --target $p
    modules=$p/kernel-open firmware=$p/firmware libraries=$p programs=$p list=$p/supported-gpus/supported-gpus.json
    version=$(sed -n 's/.*NV_VERSION_STRING=\\"\([0-9.]*\)\\".*/\1/p' $p/kernel-open/Kbuild)
    install -D -m 0644 $p/LICENSE $out/usr/share/doc/nvidia-driver/copyright
else
    for deb in /mnt/parts/*.deb; do dpkg-deb -x "$deb" $p; done
    modules=$(echo $p/usr/src/nvidia-current-open-*) version=${modules##*-}
    firmware=$p/usr/lib/firmware/nvidia/$version libraries=$p/usr/lib/$MULTIARCH/nvidia/current programs=$p/usr/bin
    cp $p/usr/lib/nvidia/current/nvidia-smi $programs/
    list=$p/supported-gpus.json && zcat $p/usr/share/doc/nvidia-driver/supported-gpus.json.gz > $list
    (cd $p/usr/share/doc && find . -name copyright -exec install -D -m 0644 {} $out/usr/share/doc/{} \;)
fi

# Compilers and headers are taken apart, not installed: nothing of theirs has to run here before they do.
for deb in /mnt/tools/*.deb; do dpkg-deb -x "$deb" $r; done
mount -t proc proc $r/proc
mount --bind /dev $r/dev
mount -t tmpfs run $r/run
mkdir $r/run/keys && mount --bind /mnt/keys $r/run/keys
src=/usr/src/nvidia
cp -r $modules $r$src
# Stable kernels gave this function one argument more, which drivers of before do not know.
if [[ $(grep -A 1 'int .*pci_resize_resource(' $r/usr/src/linux-headers-*/include/linux/pci.h) == *exclude_bars* ]]; then
    sed -i 's/pci_resize_resource(pci_dev, NV_GPU_BAR1, requested_size)/pci_resize_resource(pci_dev, NV_GPU_BAR1, requested_size, 0)/' $r$src/nvidia/nv-pci.c
fi
# What computes; showing pictures is left to the kernel's own drivers.
computing="nvidia nvidia-uvm"
chroot $r env PATH=/usr/sbin:/usr/bin make -C $src -j"$(nproc)" modules NV_KERNEL_MODULES="$computing" \
    KERNEL_UNAME="$kernel" KBUILD_BUILD_TIMESTAMP="@$SOURCE_DATE_EPOCH" KBUILD_BUILD_USER=polder KBUILD_BUILD_HOST=polder
for module in $computing; do
    chroot $r strip --strip-debug $src/$module.ko
    # A kernel that was started by Secure Boot takes only modules that are signed with a key of the machine's.
    if [ -n "$SIGNED" ]; then
        chroot $r sh -c 'exec /usr/lib/linux-kbuild-*/scripts/sign-file sha256 /run/keys/secure-boot.key /run/keys/secure-boot.crt "$1"' \
            sign $src/$module.ko
    fi
    xz --check=crc32 -T1 < $r$src/$module.ko > $work/$module.ko.xz
    install -D -m 0644 $work/$module.ko.xz $out/usr/lib/modules/$kernel/updates/$module.ko.xz
done

for file in $firmware/*.bin; do
    install -D -m 0644 $file $out/usr/lib/firmware/nvidia/$version/${file##*/}
done
for library in cuda nvidia-ml nvidia-ptxjitcompiler; do
    name=lib$library.so
    install -D -m 0644 $libraries/$name.$version $out/usr/lib/$MULTIARCH/$name.$version
    ln -s $name.$version $out/usr/lib/$MULTIARCH/$name.1
    ln -s $name.1 $out/usr/lib/$MULTIARCH/$name
done
for program in nvidia-smi nvidia-modprobe; do install -D -m 0755 $programs/$program $out/usr/bin/$program; done
# By this a box knows what it has.
install -D -m 0644 /dev/null $out/usr/lib/polder/driver
echo "NVIDIA $version" > $out/usr/lib/polder/driver

echo "$version" > /mnt/out/version
cp $list /mnt/out/supported-gpus.json
mkfs.erofs --quiet -zzstd,level=3 -C65536 -T"$SOURCE_DATE_EPOCH" --all-time $work/packed.erofs $out
stat -c %s $work/packed.erofs > /mnt/out/size
