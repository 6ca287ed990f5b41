# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# For scenarios with two network paths between smbd, in a namespace, and the lab VM: the paths, the
# supervised smbd, and what disturbs them.

ns=

two_paths_need() {
    [ "$(id -u)" = 0 ] || { echo "lab: skipped: two paths need root for a network namespace"; exit 0; }
    if ! command -v ip >/dev/null || ! command -v iptables >/dev/null; then
        echo "lab: skipped: two paths need ip and iptables"
        exit 0
    fi
}

# Two paths in a namespace, which goes with this run.
two_paths() {
    local n
    ns=bulkhead-lab-$$-$RANDOM
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    for n in 0 1; do
        ip -n "$ns" tuntap add "tap$n" mode tap
        ip -n "$ns" addr add "10.77.$((n + 1)).1/24" dev "tap$n"
        ip -n "$ns" link set "tap$n" up
    done
    # shellcheck disable=SC2054 # the commas are QEMU's
    two_paths_machine=(
        -netdev tap,id=n0,ifname=tap0,script=no,downscript=no
        -device virtio-net-pci,netdev=n0,romfile=,mac=52:54:00:77:01:02
        -netdev tap,id=n1,ifname=tap1,script=no,downscript=no
        -device virtio-net-pci,netdev=n1,romfile=,mac=52:54:00:77:02:02)
}

undo() { [ -z "$ns" ] || ip netns del "$ns"; }

# supervise ADDRESS/PORT: starts smbd with $work/smbd.toml and waits until it listens there.
supervise() {
    local since=$SECONDS
    ip netns exec "$ns" env SMBD_LOG=info,smb_server::command::create::reconnect=debug \
        "$bin/smbd" --supervise --config "$work/smbd.toml" >"$LAB/smbd.log" 2>&1 </dev/null 9>&- &
    supervisor=$!
    pids+=("$supervisor")
    until ip netns exec "$ns" bash -c "exec 3<>/dev/tcp/$1" 2>/dev/null; do
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

# cut KILLS: each path is down for a while, and silent for a while, after as many kills.
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
