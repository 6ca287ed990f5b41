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

ns=

prepare() {
    [ "$(id -u)" = 0 ] || { echo "lab: skipped: failover needs root for a network namespace"; exit 0; }
    if ! command -v ip >/dev/null || ! command -v iptables >/dev/null; then
        echo "lab: skipped: failover needs ip and iptables"
        exit 0
    fi
    needs smbd
    local libraries
    mapfile -t libraries < <(missing_libraries fio)
    [ -e "$LAB/fio/.done" ] || get fio fio "${libraries[@]}"
    limit=${BULKHEAD_LAB_SECONDS:-600}
    network
    serve
    root "$work/host" virtio_pci virtio_blk virtio_net crc32c_generic ext4 \
        cifs ecb cmac ccm gcm ctr ghash_generic sha512_generic nls_utf8
    program "$work/host" "$LAB/fio/usr/bin/fio"
    install -m 755 "$here/failover-start" "$work/host/opt/start"
    qemu=(ip netns exec "$ns" "${qemu[@]}")
    # shellcheck disable=SC2054 # the commas are QEMU's
    machine=(
        -netdev tap,id=n0,ifname=tap0,script=no,downscript=no
        -device virtio-net-pci,netdev=n0,romfile=,mac=52:54:00:77:01:02
        -netdev tap,id=n1,ifname=tap1,script=no,downscript=no
        -device virtio-net-pci,netdev=n1,romfile=,mac=52:54:00:77:02:02)
    disturb 9>&- &
    pids+=("$!")
}

# Two paths in a namespace, which goes with this run.
network() {
    local n
    ns=bulkhead-lab-$$-$RANDOM
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    for n in 0 1; do
        ip -n "$ns" tuntap add "tap$n" mode tap
        ip -n "$ns" addr add "10.77.$((n + 1)).1/24" dev "tap$n"
        ip -n "$ns" link set "tap$n" up
    done
}

undo() { [ -z "$ns" ] || ip netns del "$ns"; }

serve() {
    local since=$SECONDS
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
    ip netns exec "$ns" env SMBD_LOG=info,smb_server::command::create::reconnect=debug \
        "$bin/smbd" --supervise --config "$work/smbd.toml" >"$LAB/smbd.log" 2>&1 </dev/null 9>&- &
    supervisor=$!
    pids+=("$supervisor")
    until ip netns exec "$ns" bash -c 'exec 3<>/dev/tcp/127.0.0.1/445' 2>/dev/null; do
        if ! kill -0 "$supervisor" || [ $((SECONDS - since)) -ge 30 ]; then
            tail -n 5 "$LAB/smbd.log"
            fail "smbd does not start"
        fi
        nap 0.1
    done
}

nap() { read -rt "$1" <> <(:) || true; }

kill_smbd() {
    local pid
    pid=$(pgrep -P "$supervisor" | head -n 1)
    kill -9 "$pid" && echo "lab: killed smbd ($pid)"
}

# Each path is down for a while, and silent for a while, after as many kills.
cut() {
    local n _
    for n in 0 1; do
        for _ in $(seq "$1"); do nap 4; kill_smbd; done
        nap 4
        ip -n "$ns" link set "tap$n" down; echo "lab: path $n is down"; nap 5
        ip -n "$ns" link set "tap$n" up; echo "lab: path $n is up"; nap 6
        ip netns exec "$ns" iptables -A INPUT -i "tap$n" -j DROP; echo "lab: path $n is silent"; nap 6
        ip netns exec "$ns" iptables -F INPUT; echo "lab: path $n is heard"; nap 6
    done
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
