# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# Debian's cifs.ko with persistent and with resilient handles over two network paths, while smbd is
# killed and the paths are cut: a namespace of its own holds smbd and one end of each path, the lab
# VM the other.
#
#   namespace                                       lab VM
#   smbd --supervise :445   tap0 10.77.1.1 ═════ 10.77.1.2 eth0    cifs.ko, hard, max_channels=4
#                           tap1 10.77.2.1 ═════ 10.77.2.2 eth1    fio --verify=crc32c, over and over
#
# fio runs in rounds until the share says that all faults are over, and once more after that; then
# it does so with other handles. On a share that is not continuously available smbd is not killed:
# what it gave there does not outlive it (MS-SMB2 3.3.5.15.9).
# Needs root, for the namespace.

# shellcheck source=tests/lab/two-paths.sh
source "$here/two-paths.sh"

prepare() {
    two_paths_need
    needs smbd
    get_with_libraries fio fio
    limit=${BULKHEAD_LAB_SECONDS:-600}
    two_paths
    serve
    root "$work/host" virtio_pci virtio_blk virtio_net crc32c_generic ext4 \
        cifs ecb cmac ccm gcm ctr ghash_generic sha512_generic nls_utf8
    program "$work/host" "$LAB/fio/usr/bin/fio"
    install -m 755 "$here/failover-start" "$work/host/opt/start"
    qemu=(ip netns exec "$ns" "${qemu[@]}")
    machine=("${two_paths_machine[@]}")
    disturb 9>&- &
    pids+=("$!")
}

serve() {
    mkdir "$work/share" "$work/plain"
    cat >"$work/smbd.toml" <<CONFIG
[server]
listen = ["0.0.0.0:445"]
state_dir = "$work/state"
encryption = "offered"
[[user]]
name = "admin"
password = "pw-of-admin"
[[share]]
name = "ca"
path = "$work/share"
users = ["admin"]
continuously_available = true
[[share]]
name = "plain"
path = "$work/plain"
users = ["admin"]
CONFIG
    supervise 127.0.0.1/445
}

# begun SHARE HANDLES: waits until fio runs so.
begun() { until grep -q "^lab: fio runs on $1 with $2" "$console"; do nap 0.5; done; }

disturb() {
    local handles _
    for handles in persistenthandles nopersistenthandles,resilienthandles; do
        begun ca "$handles"
        cut 3
        for _ in 1 2 3 4; do kill_smbd; nap 4; done
        : >"$work/share/over"
    done
    begun plain resilienthandles
    cut 0
    : >"$work/plain/over"
}

# smbd has nothing to complain of but that it was killed, and what it had given was taken up again
# after most of the kills: a file that fio has just closed the kernel still has open for a second
# (closetimeo), and lets go without a word when that is when the connection is lost.
conclude() {
    ! grep -E ' (WARN|ERROR) |panicked' "$LAB/smbd.log" | grep -v 'has ended and is started again' &&
        awk '
            / is started again / { kills++; again += taken; taken = 0 }
            / taken up again / { taken = 1 }
            END {
                again += taken
                print "lab: taken up again after " again " of " kills " kills"
                exit again < kills / 2
            }
        ' "$LAB/smbd.log"
}
