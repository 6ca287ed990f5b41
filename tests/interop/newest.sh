#!/bin/sh
# Puts Debian's newest suite (sid) with the tests of Samba and of libiscsi into a folder, from the mirror that apt uses here.
# Starts no service, and changes nothing outside of the folder.
#
#   newest.sh FOLDER
set -eu
folder=$1
if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
    echo "newest: not made: that needs root and debootstrap (apt-get install debootstrap)" >&2
    exit 1
fi
if [ ! -x "$folder/usr/bin/smbtorture" ]; then
    mirror=$("$(dirname "$0")/../mirror.sh")
    mkdir -p "$folder"
    debootstrap --variant=minbase sid "$folder" "$mirror"
    printf '#!/bin/sh\nexit 101\n' > "$folder/usr/sbin/policy-rc.d"
    chmod 755 "$folder/usr/sbin/policy-rc.d"
    DEBIAN_FRONTEND=noninteractive chroot "$folder" \
        apt-get install -q -y --no-install-recommends samba-testsuite iptables python3 libsmb2-6 libiscsi-bin
fi
if [ ! -x "$folder/usr/bin/iscsi-test-cu" ]; then
    DEBIAN_FRONTEND=noninteractive chroot "$folder" apt-get install -q -y --no-install-recommends libiscsi-bin
fi
# Its server, for those who want it beside smbd.
if [ ! -x "$folder/usr/sbin/smbd" ]; then
    DEBIAN_FRONTEND=noninteractive chroot "$folder" \
        apt-get install -q -y --no-install-recommends samba samba-vfs-modules
fi
# Random numbers, and nothing else of this machine.
for device in null zero urandom random; do
    [ -e "$folder/dev/$device" ] || cp -a "/dev/$device" "$folder/dev/$device"
done
