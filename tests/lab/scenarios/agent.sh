# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# A Linux guest with Debian's qemu-guest-agent on the ports of its virtio console, and with a seed.
#
#   lab VM
#   └─ /dev/kvm: two hyperv-hosts, tests/lab/agent-start
#      └─ guest: Debian's kernel, initramfs with qemu-ga (tests/lab/agent-guest-init)
#         /dev/vda = ext4 of its own, /dev/vdb = the seed that `bulkhead vm create` has made
#
# The guest is made without a VM file, tells what it is, is frozen while a command runs, moves with its
# agent, has its clock set right, powers off when its agent is asked, and panics.

prepare() {
    needs hyperv-host bulkhead
    get_with_libraries agent qemu-guest-agent
    limit=${BULKHEAD_LAB_SECONDS:-900}
    root "$work/guest" virtio_pci virtio_blk virtio_console crc32c_generic ext4 \
        vfat nls_cp437 nls_ascii nls_utf8 pvpanic_mmio
    program "$work/guest" "$LAB/agent/usr/sbin/qemu-ga"
    mkdir -p "$work/guest/sbin"
    cat >"$work/guest/sbin/shutdown" <<'SHUTDOWN'
#!/bin/sh
echo "lab-shutdown $*" >/dev/ttyS0
sync
poweroff -f
SHUTDOWN
    chmod 755 "$work/guest/sbin/shutdown"
    # Without it the agent does not set a clock. The machine's own has no register for that.
    printf '#!/bin/sh\n' >"$work/guest/sbin/hwclock"
    chmod 755 "$work/guest/sbin/hwclock"
    printf 'ID=lab\nPRETTY_NAME="Lab guest 1"\n' >"$work/guest/etc/os-release"
    install -m 755 "$here/agent-guest-init" "$work/guest/init"
    pack "$work/guest" "$work/guest.cpio.gz"

    root "$work/host" virtio_pci virtio_blk crc32c_generic ext4 kvm_amd
    local name
    for name in hyperv-host bulkhead; do program "$work/host" "$bin/$name"; done
    mkdir -p "$work/host/boot"
    cp "$kernel" "$work/host/boot/vmlinuz"
    cp "$work/guest.cpio.gz" "$work/host/boot/initrd"
    install -m 755 "$here/agent-start" "$work/host/opt/start"
}
