# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# A Linux guest on a true /dev/kvm, with its disk on an SMB 3 share, moved while it works.
#
#   lab VM
#   └─ /dev/kvm: smbd, two hyperv-hosts, the program `lab`   (tests/src/bin/lab.rs)
#      └─ guest of hyperv-host                       the same kernel, initramfs, tests/lab/guest-init
#         /dev/vda = VHDX on smbd's share: ext4, checksummed files, live migration

prepare() {
    needs smbd hyperv-host bulkhead lab
    limit=${BULKHEAD_LAB_SECONDS:-420}
    root "$work/guest" virtio_pci virtio_blk crc32c_generic ext4
    install -m 755 "$here/guest-init" "$work/guest/init"
    pack "$work/guest" "$work/guest.cpio.gz"

    root "$work/host" virtio_pci virtio_blk crc32c_generic ext4 kvm_amd
    # The folder `deps` is how our test programs know where the others are.
    mkdir -p "$work/host/opt/deps" "$work/host/boot"
    local name
    for name in smbd hyperv-host bulkhead lab; do program "$work/host" "$bin/$name"; done
    cp "$kernel" "$work/host/boot/vmlinuz"
    cp "$work/guest.cpio.gz" "$work/host/boot/initrd"
    cat >"$work/host/opt/start" <<'START'
#!/bin/sh
if [ -c /dev/kvm ]; then
    exec /opt/lab
fi
echo "lab: the emulated CPU gives no /dev/kvm"
dmesg | tail -n 20
START
    chmod 755 "$work/host/opt/start"
}
