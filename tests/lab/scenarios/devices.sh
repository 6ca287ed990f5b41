# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# A Linux guest with a balloon and a watchdog, by the drivers that Debian's kernel has for them.
#
#   lab VM
#   └─ /dev/kvm: two hyperv-hosts, tests/lab/devices-start
#      └─ guest: Debian's kernel, initramfs (tests/lab/devices-guest-init)
#
# Memory that the guest frees is the host's; its balloon is filled, moved with its data, and emptied; its
# watchdog is fed, moved, starved, and resets it, which it finds out.

prepare() {
    needs hyperv-host bulkhead
    limit=${BULKHEAD_LAB_SECONDS:-1200}
    root "$work/guest" virtio_pci virtio_blk virtio_balloon i6300esb
    install -m 755 "$here/devices-guest-init" "$work/guest/init"
    pack "$work/guest" "$work/guest.cpio.gz"

    root "$work/host" virtio_pci virtio_blk crc32c_generic ext4 kvm_amd
    local name
    for name in hyperv-host bulkhead; do program "$work/host" "$bin/$name"; done
    mkdir -p "$work/host/boot"
    cp "$kernel" "$work/host/boot/vmlinuz"
    cp "$work/guest.cpio.gz" "$work/host/boot/initrd"
    install -m 755 "$here/devices-start" "$work/host/opt/start"
}
