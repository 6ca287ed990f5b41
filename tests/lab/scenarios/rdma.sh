# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# The kernel's client over SMB Direct: cifs.ko and siw, which speaks iWARP over an ordinary network card,
# against smbd's own iWARP.
#
#   namespace                                       lab VM
#   smbd :5445 (SMB Direct)  tap0 10.77.1.1 ═════ 10.77.1.2 eth0 = siw0    cifs.ko, rdma
#                            tap1 10.77.2.1 ═════ 10.77.2.2 eth1
#
# First the mounts of lab-cifs, then fio with persistent handles while smbd is killed ten times and the
# path is cut. Needs root, for the namespace and for the folder in which modules are built that Debian's kernel
# leaves out (smb-direct.sh, some minutes at the first run).
#
# BULKHEAD_LAB_SOAK, BULKHEAD_LAB_ONLY, BULKHEAD_LAB_SEED   as in cifs.sh

# shellcheck source=tests/lab/two-paths.sh
source "$here/two-paths.sh"
# shellcheck source=tests/lab/smb-direct.sh
source "$here/smb-direct.sh"

soak=${BULKHEAD_LAB_SOAK:-20}
seed=${BULKHEAD_LAB_SEED:-$(date +%s)}

prepare() {
    two_paths_need
    needs smbd lab-cifs
    smb_direct_need
    get_with_libraries fio fio
    smb_direct_modules
    limit=${BULKHEAD_LAB_SECONDS:-$((1200 + 4 * soak))}
    two_paths
    serve
    root "$work/host" virtio_pci virtio_blk virtio_net crc32c_generic ext4 \
        siw rdma_cm cifs ecb cmac ccm gcm ctr ghash_generic sha512_generic nls_utf8
    program "$work/host" "$bin/lab-cifs"
    program "$work/host" "$LAB/fio/usr/bin/fio"
    program "$work/host" "$(command -v rdma)"
    cat >"$work/host/opt/words" <<WORDS
--seed $seed --seconds $soak ${BULKHEAD_LAB_ONLY:+--only $BULKHEAD_LAB_ONLY}
WORDS
    install -m 755 "$here/rdma-start" "$work/host/opt/start"
    qemu=(ip netns exec "$ns" "${qemu[@]}")
    machine=("${two_paths_machine[@]}")
    disturb 9>&- &
    pids+=("$!")
}

serve() {
    mkdir "$work/share" "$work/available"
    cat >"$work/smbd.toml" <<CONFIG
[server]
listen = ["0.0.0.0:445"]
rdma_listen = ["0.0.0.0:5445"]
state_dir = "$work/state"
signing = "enabled"
encryption = "offered"
[[user]]
name = "admin"
password = "pw-of-admin"
[[share]]
name = "vms"
path = "$work/share"
users = ["admin"]
[[share]]
name = "available"
path = "$work/available"
users = ["admin"]
continuously_available = true
CONFIG
    supervise 127.0.0.1/445
}

disturb() {
    local _
    until grep -q '^lab: fio runs' "$console"; do nap 0.5; done
    for _ in 1 2 3 4 5 6 7 8 9 10; do nap 4; kill_smbd; done
    nap 4
    ip -n "$ns" link set tap0 down; echo "lab: the path is down"; nap 5
    ip -n "$ns" link set tap0 up; echo "lab: the path is up"; nap 6
    ip netns exec "$ns" iptables -A INPUT -i tap0 -j DROP; echo "lab: the path is silent"; nap 6
    ip netns exec "$ns" iptables -F INPUT; echo "lab: the path is heard"; nap 6
    : >"$work/available/over"
}

# smbd has nothing to complain of but that it was killed.
conclude() {
    ! grep -E ' (WARN|ERROR) |panicked' "$LAB/smbd.log" | grep -v 'has ended and is started again'
}
