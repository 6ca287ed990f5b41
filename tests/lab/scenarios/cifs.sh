# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# Debian's cifs.ko against smbd: smbd runs on this machine at its native speed and listens on
# loopback, which the lab VM reaches as 10.0.2.2; the program `lab-cifs` runs in the VM
# (tests/src/bin/lab-cifs), with fio and git of Debian beside it.
#
# BULKHEAD_LAB_SOAK   seconds that each of the random soaks takes (default 20)
# BULKHEAD_LAB_ONLY   the one mount that is tried, as the run prints it (default: all)
# BULKHEAD_LAB_SEED   the seed of the random operations (printed; default: taken from the clock)

soak=${BULKHEAD_LAB_SOAK:-20}
seed=${BULKHEAD_LAB_SEED:-$(date +%s)}

prepare() {
    needs smbd lab-cifs
    get_with_libraries fio fio
    get git git
    limit=${BULKHEAD_LAB_SECONDS:-$((900 + 4 * soak))}
    serve
    root "$work/host" virtio_pci virtio_blk virtio_net crc32c_generic ext4 \
        cifs ecb cmac ccm gcm ctr ghash_generic sha512_generic nls_utf8
    program "$work/host" "$bin/lab-cifs"
    program "$work/host" "$LAB/fio/usr/bin/fio"
    program "$work/host" "$LAB/git/usr/bin/git"
    # What git runs by itself; none of it is a script.
    mkdir -p "$work/host/usr/share" "$work/host/usr/lib/git-core"
    ln -s git "$work/host/opt/git-upload-pack"
    ln -s /opt/git "$work/host/usr/lib/git-core/git"
    cp -r "$LAB/git/usr/share/git-core" "$work/host/usr/share/"
    cat >"$work/host/opt/start" <<START
#!/bin/sh
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up
exec /opt/lab-cifs --port $port --seed $seed --seconds $soak ${BULKHEAD_LAB_ONLY:+--only $BULKHEAD_LAB_ONLY}
START
    chmod 755 "$work/host/opt/start"
    # shellcheck disable=SC2054 # the commas are QEMU's
    machine=(-netdev user,id=n0,ipv6=off -device virtio-net-pci,netdev=n0,romfile=)
}

# Starts smbd at a port that is free.
serve() {
    local since
    mkdir "$work/share" "$work/available"
    for _ in 1 2 3 4 5; do
        port=$((20000 + RANDOM % 12000))
        cat >"$work/smbd.toml" <<CONFIG
[server]
listen = ["127.0.0.1:$port"]
state_dir = "$work/state"
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
        "$bin/smbd" --config "$work/smbd.toml" >"$LAB/smbd.log" 2>&1 </dev/null 9>&- &
        pids+=("$!")
        since=$SECONDS
        while kill -0 "${pids[-1]}" 2>/dev/null; do
            (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
            [ $((SECONDS - since)) -lt 30 ] || break
            read -rt 0.1 <> <(:) || true
        done
    done
    tail -n 5 "$LAB/smbd.log"
    fail "smbd does not start"
}

# smbd has nothing to complain of.
conclude() {
    ! grep -E ' (WARN|ERROR) |panicked' "$LAB/smbd.log"
}
