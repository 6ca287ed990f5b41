# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# Linux' iSCSI initiator (open-iscsi), dm-multipath and sg3-utils of Debian against smbd, while smbd
# is killed and its paths are cut and silent: a namespace of its own holds smbd and one end of each
# path, the lab VM the other.
#
#   namespace                                        lab VM
#   smbd --supervise :3260   tap0 10.77.1.1 ═════ 10.77.1.2 eth0    iscsid, mutual CHAP, digests
#                            tap1 10.77.2.1 ═════ 10.77.2.2 eth1    multipathd, ext4, fio --verify
#
#   LUN 0   VHDX            ext4 with fio's file over both paths, a reservation that outlives smbd
#   LUN 1   thin raw image  sg3-utils; gives space back
#   LUN 2   raw image       the other end of EXTENDED COPY; grown when all faults are over
#
# Needs root, for the namespace.

# shellcheck source=tests/lab/two-paths.sh
source "$here/two-paths.sh"

prepare() {
    two_paths_need
    needs smbd bulkhead
    local of_qemu
    get_with_libraries iscsi fio open-iscsi multipath-tools sg3-utils udev kpartx dmsetup
    # Both of one version, which may not be that of an installed QEMU.
    of_qemu=$(apt-cache show --no-all-versions qemu-block-extra | awk '$1 == "Version:" { print $2 }')
    get_with_libraries qemu-iscsi "qemu-utils=$of_qemu" "qemu-block-extra=$of_qemu"
    limit=${BULKHEAD_LAB_SECONDS:-600}
    two_paths
    serve
    root "$work/host" virtio_pci virtio_blk virtio_net crc32c_generic ext4 \
        iscsi_tcp sd_mod sg scsi_dh_alua dm_multipath dm_service_time dm_round_robin
    programs
    install -m 755 "$here/iscsi-start" "$work/host/opt/start"
    qemu=(ip netns exec "$ns" "${qemu[@]}")
    machine=("${two_paths_machine[@]}")
    disturb 9>&- &
    pids+=("$!")
}

# What the initiator is made of.
programs() {
    local from=$LAB/iscsi host=$work/host name file
    for name in usr/bin/fio sbin/iscsid sbin/iscsiadm sbin/multipathd sbin/multipath sbin/kpartx \
        usr/bin/sg_persist usr/bin/sg_unmap usr/bin/sg_write_same usr/bin/sg_compare_and_write \
        usr/bin/sg_xcopy usr/bin/sg_get_lba_status usr/bin/sg_readcap usr/bin/sg_sanitize; do
        program "$host" "$from/$name"
    done
    program "$host" "$(command -v e2fsck)"
    # udev and multipath look for what they need at these places.
    for name in bin/udevadm lib/udev/scsi_id; do
        install -D "$from/$name" "$host/$name"
        libraries "$host" "$from/$name"
    done
    ln -s udevadm "$host/bin/systemd-udevd"
    mkdir -p "$host/lib/udev/rules.d" "$host/sbin" "$host/lib/multipath" "$host/etc/iscsi"
    for name in 50-udev-default 55-dm 56-dm-mpath 60-block 60-multipath 60-persistent-storage 95-dm-notify; do
        cp "$from/lib/udev/rules.d/$name.rules" "$host/lib/udev/rules.d/"
    done
    for file in "$from"/lib/multipath/*.so; do
        cp "$file" "$host/lib/multipath/"
        libraries "$host" "$file"
    done
    for name in multipath multipathd kpartx iscsid iscsiadm; do ln -s "/opt/$name" "$host/sbin/$name"; done
    file=$(find "$from" -name dmsetup -type f -perm -1 | head -n 1)
    program "$host" "$file"
    ln -s /opt/dmsetup "$host/sbin/dmsetup"
    echo 'root:x:0:0:root:/:/bin/sh' >"$host/etc/passwd"
    echo "InitiatorName=iqn.2024-01.com.example:lab" >"$host/etc/iscsi/initiatorname.iscsi"
    cat >"$host/etc/iscsi/iscsid.conf" <<'CONFIG'
node.startup = manual
node.session.timeo.replacement_timeout = 3
node.conn[0].timeo.login_timeout = 5
node.conn[0].timeo.noop_out_interval = 1
node.conn[0].timeo.noop_out_timeout = 2
node.session.auth.authmethod = CHAP
node.session.auth.chap_algs = SHA3-256,SHA256,SHA1,MD5
node.session.auth.username = lab
node.session.auth.password = secret-of-the-lab
node.session.auth.username_in = target
node.session.auth.password_in = secret-of-target
node.conn[0].iscsi.HeaderDigest = CRC32C
node.conn[0].iscsi.DataDigest = CRC32C
CONFIG
    cat >"$host/etc/multipath.conf" <<'CONFIG'
defaults {
    find_multipaths no
    user_friendly_names yes
    path_grouping_policy group_by_prio
    prio alua
    path_checker tur
    polling_interval 1
    max_polling_interval 2
    no_path_retry queue
}
blacklist {
    devnode "^vd"
    device {
        vendor BULKHEAD
        product Plain
    }
}
CONFIG
}

serve() {
    "$bin/bulkhead" disk create "$work/web.vhdx" --size 256M >/dev/null
    truncate -s 64M "$work/thin.raw"
    truncate -s 64M "$work/grows.raw"
    cat >"$work/smbd.toml" <<CONFIG
[server]
listen = ["10.77.1.1:445"]
state_dir = "$work/state"
[[user]]
name = "admin"
password = "pw-of-admin"
[iscsi]
listen = ["10.77.1.1:3260", "10.77.2.1:3260"]
[[target]]
name = "iqn.2024-01.com.example:lab"
chap = [{ user = "lab", secret = "secret-of-the-lab" }]
mutual_chap = { user = "target", secret = "secret-of-target" }
[[target.lun]]
number = 0
path = "$work/web.vhdx"
[[target.lun]]
number = 1
path = "$work/thin.raw"
product = "Plain"
[[target.lun]]
number = 2
path = "$work/grows.raw"
product = "Plain"
CONFIG
    chmod 600 "$work/smbd.toml"
    supervise 10.77.1.1/3260
}

# Waits for a line of the lab VM.
said() { until grep -q "^lab: $1" "$console"; do nap 0.5; done; }

disturb() {
    said 'fio runs'
    cut 2
    for _ in 1 2 3 4; do kill_smbd; nap 5; done
    # The VM takes this as the end of all faults.
    truncate -s 128M "$work/grows.raw"
    ip netns exec "$ns" "$bin/bulkhead" target --socket "$work/state/admin.sock" resize \
        iqn.2024-01.com.example:lab 2 || echo 'lab: not resized'
}

# from_here PROGRAM ARGUMENT...: a program of QEMU's own that is an initiator, in the namespace.
from_here() {
    local from=$LAB/qemu-iscsi program=$1
    shift
    ip netns exec "$ns" env "QEMU_MODULE_DIR=$from/usr/lib/x86_64-linux-gnu/qemu" \
        "LD_LIBRARY_PATH=$from/usr/lib/x86_64-linux-gnu:$from/lib/x86_64-linux-gnu" \
        "$from/usr/bin/$program" "$@"
}

# What QEMU reads from a LUN is at each step what it reads from a file that it wrote alike.
qemu_verifies() {
    local url='iscsi://lab%secret-of-the-lab@10.77.1.1/iqn.2024-01.com.example:lab/2' n commands=()
    truncate -s 128M "$work/mirror.raw"
    from_here qemu-img convert -n -f raw -O raw "$url" "$work/mirror.raw" || return 1
    for n in $(seq 64); do
        commands+=(-c "write -P $n $((RANDOM * 4096 % 117440512)) $((4096 * (1 + RANDOM % 64)))")
        [ $((n % 8)) != 0 ] || commands+=(-c "flush" -c "read 0 128M")
    done
    commands+=(-c "discard 8M 8M" -c "read 32M 64M")
    from_here qemu-io "${commands[@]}" "blkverify:$work/mirror.raw:$url" >"$LAB/qemu-io.log" 2>&1 ||
        { tail -n 5 "$LAB/qemu-io.log"; return 1; }
    ! grep -iE 'error|fail|mismatch' "$LAB/qemu-io.log" || return 1
    echo "lab: qemu-io: $(grep -c '^wrote' "$LAB/qemu-io.log") writes by way of blkverify"
    # blkverify knows no zeros without data.
    for n in "$url" "$work/mirror.raw"; do
        from_here qemu-io -f raw -c "write -z 32M 4M" -c "write -z -u 64M 4M" -c "write -z 8M 8M" \
            -c flush "$n" >"$LAB/qemu-io.log" || { tail -n 5 "$LAB/qemu-io.log"; return 1; }
    done
    from_here qemu-img compare -f raw -F raw "$url" "$work/mirror.raw" || return 1
    from_here qemu-img info "$url" | grep -E 'virtual size|file format'
}

# smbd has nothing to complain of but that it was killed, and what was unmapped takes no space.
conclude() {
    local blocks
    blocks=$(stat -c %b "$work/thin.raw")
    echo "lab: the thin image takes $((blocks / 2)) KiB"
    [ "$blocks" -lt $((16 * 2048)) ] && qemu_verifies &&
        ! grep -E ' (WARN|ERROR) |panicked' "$LAB/smbd.log" | grep -v 'has ended and is started again'
}
