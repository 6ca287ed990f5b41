#!/bin/bash
# Becomes the service manager of a small system of its own: the machine's files, with /etc, /srv,
# /var/lib, /run and /tmp that are gone afterwards.
# usage: unshare --fork --pid --mount --cgroup --uts --ipc --net enter.sh FOLDER-OF-PROGRAMS REPORT
set -euo pipefail
programs=$(realpath "$1") report=$(realpath "$2") here=$(realpath "$(dirname "$0")")

mount --make-rprivate /
layer=$(mktemp -d)
mount -t tmpfs tmpfs "$layer"
mkdir "$layer"/{up,work,bin}
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$layer/up,workdir=$layer/work" /etc
mount -t tmpfs tmpfs /srv
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/systemd
cp "$programs"/{smbd,bulkhead} "$layer/bin"
cp "$here/scenario.sh" "$layer/bin/scenario"
mount --bind "$layer/bin" /usr/local/sbin

# As the head of the unit says.
useradd --system --home-dir /var/lib/bulkhead --shell /usr/sbin/nologin bulkhead
install -d -o bulkhead -g bulkhead -m 0700 /etc/bulkhead
install -d -o bulkhead -g bulkhead /srv/vms
cat >/etc/bulkhead/smbd.toml <<'T'
[server]
listen = ["0.0.0.0:445"]
state_dir = "/var/lib/bulkhead"
[[user]]
name = "admin"
password = "Passw0rd!"
[[share]]
name = "vms"
path = "/srv/vms"
users = ["admin"]
continuously_available = true
T
chown bulkhead /etc/bulkhead/smbd.toml
chmod 600 /etc/bulkhead/smbd.toml
units=/etc/systemd/system
sed 's#/usr/bin/smbd#/usr/local/sbin/smbd#' "$here/../../packaging/smbd.service" >$units/bulkhead-smbd.service
cp "$here/../../packaging/smbd.socket" $units/bulkhead-smbd.socket
mkdir $units/bulkhead-smbd.service.d
cat >$units/bulkhead-smbd.service.d/log.conf <<T
[Service]
StandardOutput=append:$report
StandardError=append:$report
T
cat >$units/scenario.service <<T
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
TimeoutStartSec=180
StandardOutput=append:$report
StandardError=append:$report
ExecStart=/usr/local/sbin/scenario
ExecStopPost=/bin/systemctl exit --force 0
T

ip link set lo up
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
umount -l /sys/fs/cgroup 2>/dev/null || true
mount -t sysfs sysfs /sys 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
case $report in /tmp/*) ;; *) mount -t tmpfs tmpfs /tmp ;; esac
export container=lxc
exec /lib/systemd/systemd --system --unit=scenario.service --log-target=console --show-status=false
