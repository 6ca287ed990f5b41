# shellcheck shell=bash
# All of the machine's files, with a layer above them that takes whatever is changed and is gone
# afterwards. Sourced by who runs in mount, process and network namespaces of its own:
#
#   layer FOLDER     makes it, with its place in FOLDER, and leaves its root in $root
#   enter_layer      goes there for good
#
# /dev is the machine's; /tmp, /srv, /run and /var/lib are empty.

layer() {
    local place folder
    mount --make-rprivate /
    place=$(mktemp -d -p "$1")
    mount -t tmpfs tmpfs "$place"
    mkdir "$place"/{up,work,root}
    root=$place/root
    mount -t overlay overlay -o "lowerdir=/,upperdir=$place/up,workdir=$place/work" "$root"
    # The layer holds what lies on the file system of /; programs may lie on another.
    if mountpoint -q /usr; then mount --bind -o ro /usr "$root/usr"; fi
    mount --rbind /dev "$root/dev"
    mkdir -p "$root"/{proc,sys,run,mnt}
    mount -t proc proc "$root/proc"
    # The kernel's parameters are the machine's, but for those of the network, which is ours.
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro sysfs "$root/sys"
    for folder in run srv tmp var/lib; do mount -t tmpfs tmpfs "$root/$folder"; done
    mkdir "$root/run/bulkhead-test"
    mount -t tmpfs tmpfs "$root/usr/local/sbin"
    ip link set lo up
}

enter_layer() {
    cd "$root" || return
    pivot_root . mnt
    umount -l /mnt
    cd / || return
}
