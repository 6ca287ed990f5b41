# shellcheck shell=bash
# shellcheck disable=SC1091,SC2034,SC2154 # run.sh and its scenarios share variables
# Symbolic links, pipes and devices on a mount, as people make them: `ln -s`, `mkfifo`, `mknod`, tar and
# git in the lab VM (tests/lab/special-start) against smbd on this machine. The kernel is that of
# Debian's backports: from Linux 6.9 on the client makes special files, as NFS and the Windows Subsystem
# for Linux have them (`reparse=nfs`, `reparse=wsl`).

# smbd and its shares are those of `cifs`.
source "$here/scenarios/cifs.sh"

prepare() {
    needs smbd
    backports_kernel
    get git git
    limit=${BULKHEAD_LAB_SECONDS:-900}
    serve
    root "$work/host" virtio_pci virtio_blk virtio_net crc32c_generic ext4 \
        cifs ecb cmac ccm gcm ctr ghash_generic sha512_generic nls_utf8
    program "$work/host" "$LAB/git/usr/bin/git"
    mkdir -p "$work/host/usr/share" "$work/host/usr/lib/git-core"
    ln -s git "$work/host/opt/git-upload-pack"
    ln -s /opt/git "$work/host/usr/lib/git-core/git"
    cp -r "$LAB/git/usr/share/git-core" "$work/host/usr/share/"
    install -m 755 "$here/special-start" "$work/host/opt/start"
    words="port=$port"
    # shellcheck disable=SC2054 # the commas are QEMU's
    machine=(-netdev user,id=n0,ipv6=off -device virtio-net-pci,netdev=n0,romfile=)
}

# Nothing special was made on this machine, and smbd has nothing to complain of.
conclude() {
    local special
    special=$(find "$work/share" ! -type f ! -type d)
    [ -z "$special" ] || { echo "lab: special files of the host: $special"; return 1; }
    [ -e "$work/share/default/kept/fifo" ] || { echo "lab: nothing was left to look at"; return 1; }
    ! grep -E ' (WARN|ERROR) |panicked' "$LAB/smbd.log"
}
