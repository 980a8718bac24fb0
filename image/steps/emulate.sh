# While the step that follows lasts, this machine also runs programs for $EMULATE, in the pinned emulator of
# this room: nothing is left registered. The kernel opens the emulator now (F), so that it needs to be in no root.
binfmt=/proc/sys/fs/binfmt_misc
mount -t binfmt_misc binfmt $binfmt
mine=polder-$EMULATE-$$
# What the package says of it, under a name of our own, with the credentials of the program that is run (C): sudo-like programs work.
sed "s/^:[^:]*:/:$mine:/; s/:[A-Z]*\$/:POCF/" /usr/share/qemu/binfmt.d/qemu-$EMULATE.conf > $binfmt/register
trap 'echo -1 > $binfmt/$mine' EXIT
