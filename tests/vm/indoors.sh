# The image's own system without a machine around it: its init, units and programs in namespaces of this machine, on a disposable layer over
# its packed root. Arguments: the packed root, a folder that keeps what is written to /var.
set -eu
image=$1 folder=$2
mount --make-rprivate /
modprobe -q erofs 2>/dev/null || true
mkdir -p "$folder/lower" "$folder/upper" "$folder/work" "$folder/root" "$folder/var"
mount -t erofs -o ro,loop "$image" "$folder/lower"
mount -t overlay overlay -o "lowerdir=$folder/lower,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
cd "$folder/root"
# It has no disk, and its serial cable is a pseudo-terminal.
: > etc/fstab
: > etc/crypttab
mkdir -p etc/systemd/system/polder-ups@.service.d etc/systemd/system/polder-screen.service.d
printf '[Service]\nDeviceAllow=char-pts rw\n' > etc/systemd/system/polder-ups@.service.d/cable.conf
printf '[Unit]\nConditionPathExists=/dev/tty1\n' > etc/systemd/system/polder-screen.service.d/none.conf
mount -t proc proc proc
mount -t sysfs -o ro sys sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=755 dev dev
for node in null zero full random urandom tty; do
    : > dev/$node
    mount --bind /dev/$node dev/$node
done
# What its last hook says; the machine's own log is not its affair.
: > dev/kmsg
mount --bind "$folder/kmsg" dev/kmsg
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 pts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=755 run run
mount -t tmpfs tmp tmp
mount --bind "$folder/var" var
mkdir -p var/lib var/tmp var/log var/cache
ln -sfn ../run var/run
ip link set lo up
# Two cables whose other ends are pulled out and plugged in elsewhere.
for n in 1 2; do
    ip link add up$n type veth peer name far$n
    ip addr add 10.9.$n.2/24 dev up$n
    ip link set up$n up
done
pivot_root . mnt
# What is mounted later reaches the parts' own views, as a machine's init has it; in a room it leaves that to whoever made the room.
exec /usr/bin/env -i container=other PATH=/usr/sbin:/usr/bin /usr/bin/sh -c 'umount -l /mnt; mount --make-rshared /; exec /usr/lib/systemd/systemd --system --unit=multi-user.target'
