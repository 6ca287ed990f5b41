#!/bin/bash
# A machine that has nothing of Bulkhead but this checkout and its programs, for a newcomer who types
# what a document says.
# usage: DEVICE=/dev/loopN unshare --fork --pid --mount --uts --ipc --net enter.sh PROGRAMS SCRATCH DOCUMENT
set -euo pipefail
: "${DEVICE:?names the disk to import}"
programs=$(realpath "$1") scratch=$(realpath "$2") here=$(realpath "$(dirname "$0")") document=$3

# shellcheck source=tests/scratch/layer.sh
. "$here/../scratch/layer.sh"
layer "$scratch"
# The checkout as it is after `make release`, in the newcomer's home.
home=$root/srv/home
mkdir -p "$home/bulkhead/target/release"
for part in conf docs README.md hyperv-host/README.md; do
    mkdir -p "$home/bulkhead/$(dirname "$part")"
    cp -r "$here/../../$part" "$home/bulkhead/$part"
done
for program in smbd bulkhead hyperv-host payload-guest; do
    if [ -e "$programs/$program" ]; then cp "$programs/$program" "$home/bulkhead/target/release"; fi
done
printf '#!/bin/sh\necho "make $* was done before"\n' >"$root/usr/local/sbin/make"
chmod 755 "$root/usr/local/sbin/make"
cp "$here/type.py" "$root/run/bulkhead-test"
# Devices of its own: what every machine has, and one to import that is nobody's.
mount -t tmpfs tmpfs "$root/dev"
for device in null zero full random urandom tty kvm; do
    if [ -e "/dev/$device" ]; then cp -a "/dev/$device" "$root/dev"; fi
done
cp -a "$DEVICE" "$root/dev/vdb"
mkdir "$root"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
enter_layer
mkdir -p /srv/home
cd /srv/home/bulkhead
export HOME=/srv/home PATH=/usr/local/sbin:$PATH
exec python3 /run/bulkhead-test/type.py "$document"
