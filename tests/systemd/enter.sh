#!/bin/bash
# Becomes the service manager of a small system of its own: all of the machine's files, with a layer
# above them that takes whatever is changed and is gone afterwards. A service manager that starts
# cleans /tmp, makes folders and sets the kernel's parameters; none of that may reach the machine.
# usage: unshare --fork --pid --mount --cgroup --uts --ipc --net enter.sh FOLDER-OF-PROGRAMS REPORT
set -euo pipefail
programs=$(realpath "$1") report=$(realpath "$2") here=$(realpath "$(dirname "$0")")

# shellcheck source=tests/scratch/layer.sh
. "$here/../scratch/layer.sh"
# The layer's place lies beside the report, in the folder that the caller removes.
layer "$(dirname "$report")"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mkdir "$root/var/lib/systemd"
: >"$root/run/bulkhead-test/report"
mount --bind "$report" "$root/run/bulkhead-test/report"
cp "$programs"/{smbd,bulkhead} "$root/usr/local/sbin"
cp "$here/scenario.sh" "$root/usr/local/sbin/scenario"
cp "$here"/../../packaging/smbd.{service,socket} "$root/run/bulkhead-test"
enter_layer
report=/run/bulkhead-test/report
# Nothing of the machine's own boot belongs here.
rm -rf /lib/systemd/system/sysinit.target.wants /etc/systemd/system/*.wants

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
sed 's#/usr/bin/smbd#/usr/local/sbin/smbd#' /run/bulkhead-test/smbd.service >$units/bulkhead-smbd.service
cp /run/bulkhead-test/smbd.socket $units/bulkhead-smbd.socket
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

export container=lxc
exec /lib/systemd/systemd --system --unit=scenario.service --log-target=console --show-status=false
