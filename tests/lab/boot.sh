#!/bin/bash
# boot.sh FOLDER [SOURCE PLACE]...: becomes systemd, over a throwaway overlay of / with some folders in it.
#
# Runs as process 1 of new namespaces (pid, mount, cgroup, uts, ipc), see machine.py: nothing that is
# mounted here is to be seen outside, and all of it goes with the last process. A place that ends in
# ":ro" is read-only.
set -eu

folder=$1
shift
root=$folder/root
mkdir -p "$root" "$folder/above"
read -r pid _ </proc/self/stat # as it is outside: this /proc is still the host's
echo "$pid" >"$folder/pid"

mount --make-rprivate /
mount -t tmpfs -o mode=755 above "$folder/above"
mkdir "$folder/above/upper" "$folder/above/work"
mount -t overlay root -o "lowerdir=/,upperdir=$folder/above/upper,workdir=$folder/above/work" "$root"

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
for name in sys sysrq-trigger; do # the kernel is the host's
    [ -e "$root/proc/$name" ] || continue
    mount --bind "$root/proc/$name" "$root/proc/$name"
    mount -o remount,bind,ro "$root/proc/$name"
done
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
while read -r name major minor; do
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done <<<$'null 1 3\nzero 1 5\nfull 1 7\nrandom 1 8\nurandom 1 9\ntty 5 0'
ln -s /proc/self/fd "$root/dev/fd"
ln -s pts/ptmx "$root/dev/ptmx" # PrivateDevices= copies it
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5,nosuid,noexec devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev shm "$root/dev/shm"
mount -t tmpfs -o mode=755,nosuid,nodev run "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmp "$root/tmp"

while [ $# -gt 0 ]; do
    place=$root${2%:ro}
    mkdir -p "$place"
    mount --bind "$1" "$place"
    [ "$2" = "${2%:ro}" ] || mount -o remount,bind,ro "$place"
    shift 2
done

# No unit of the host's administrator; and of systemd's own, what has to do with hardware is left out.
units=$root/etc/systemd/system
rm -rf "$units" "$root/etc/fstab"
mkdir "$units"
for unit in systemd-{udevd,udev-trigger,timesyncd,pstore,modules-load,hwdb-update,binfmt,remount-fs,networkd,resolved,logind}.service \
    systemd-{udevd-control,udevd-kernel,journald-audit,networkd}.socket dbus.socket proc-sys-fs-binfmt_misc.automount \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-{debug,tracing}.mount sys-fs-fuse-connections.mount; do
    ln -s /dev/null "$units/$unit"
done
cat >"$units/lab.target" <<'END'
[Unit]
Requires=sysinit.target
After=sysinit.target sockets.target
Wants=sockets.target
END
: >"$root/etc/machine-id" # systemd gives it a new one

mkdir "$root/.before"
cd "$root"
pivot_root . .before
umount -l /.before
rmdir /.before
mount --make-rshared / # systemd in a container leaves it as it is, and LoadCredential= needs it
systemd=/usr/lib/systemd/systemd
[ -x "$systemd" ] || systemd=/lib/systemd/systemd
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb \
    setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-syslog,-wake_alarm,-sys_boot,-mac_admin,-mac_override,-audit_control,-audit_write,-audit_read \
    "$systemd" --system --unit=lab.target --show-status=no --log-target=journal
