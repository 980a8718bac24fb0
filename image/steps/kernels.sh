# Compiles the engine's kernels for the kinds of cards in $KINDS, with NVIDIA's compiler from the packages in /mnt/wheels, and
# lays out in /mnt/out/tree what goes onto a box: machine code, and whose it is in part.
work=/run/work out=/mnt/out/tree
for wheel in /mnt/wheels/*.whl; do python3 -m zipfile -e "$wheel" $work; done

kernels=$out/usr/lib/polder/kernels
arches=$(printf -- '--arch %s ' $KINDS)
# shellcheck disable=SC2086 # words
POLDER_NVRTC=$(echo $work/nvidia/*/lib) "/mnt/maker/$MAKER" engine kernels build $arches --out $kernels
chmod 0644 $kernels/*.cubin

# What it puts into the machine code comes from its own library.
licence=$(find $work/*.dist-info -iname 'licen[sc]e*.txt' | sort | head -n 1)
install -D -m 0644 "$licence" $out/usr/share/doc/nvidia-cuda-nvrtc/copyright

echo "$KINDS" > /mnt/out/kinds
mkfs.erofs --quiet -zzstd,level=3 -C65536 -T"$SOURCE_DATE_EPOCH" --all-time $work/packed.erofs $out
stat -c %s $work/packed.erofs > /mnt/out/size
