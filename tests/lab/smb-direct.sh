# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# Debian's kernels have neither SMB Direct in their client nor software iWARP: this builds both from the
# source of the kernel that is booted, in a folder with Debian's newest suite, whose compiler made it.
# Linux 6.1's client has the card send from addresses that are none (a set-information request lies on the
# kernel's stack), so the newest kernel is the one.
#
# BULKHEAD_NEWEST   that folder (tests/interop/newest.sh; it is made in the lab's folder else)

smb_direct_need() {
    [ "$(id -u)" = 0 ] || skip "SMB Direct's modules are built in a folder that needs root"
    command -v rdma >/dev/null || skip "siw needs the program rdma of iproute2"
}

# smb_direct_modules: boots Debian's newest kernel, and has `modules` be its modules with these.
smb_direct_modules() {
    local suite=${BULKHEAD_NEWEST:-$LAB/suite} with file
    suite_kernel newest sid
    with=$LAB/smb-direct/$version
    if [ ! -e "$with/.done" ]; then
        "$here/../interop/newest.sh" "$suite" >"$LAB/smb-direct.log" 2>&1 ||
            skip "no folder of Debian's newest suite: $(tail -n 1 "$LAB/smb-direct.log")"
        install -m 755 "$here/smb-direct-build" "$suite/root/smb-direct-build"
        # The build wants /proc; the mount goes with it.
        # shellcheck disable=SC2016 # the words are the inner shell's
        unshare --mount sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" /root/smb-direct-build "$1"' \
            "$suite" "$version" >"$LAB/smb-direct.log" 2>&1 ||
            { tail -n 20 "$LAB/smb-direct.log"; fail "SMB Direct's modules of $version are not built"; }
        rm -rf "$with"
        mkdir -p "${with%/*}"
        cp -a "$modules" "$with"
        for file in "$suite/root/smb-direct/modules"/*.ko; do
            find "$with" -name "$(basename "$file")*" -delete
            cp "$file" "$with/kernel/"
        done
        touch "$with/.done"
    fi
    modules=$with
}
