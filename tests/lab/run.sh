#!/bin/bash
# The lab: what needs a Linux kernel of its own runs in an emulated machine.
#
#   this machine
#   └─ QEMU without KVM (TCG emulates a CPU with SVM)    Debian's kernel, initramfs of this script
#      └─ one scenario of scenarios/*.sh:
#           guest  a Linux guest of hyperv-host, moved between two hosts while it works
#           firmware  guests of hyperv-host that SeaBIOS and OVMF boot from their disk
#           agent  a Linux guest with the guest agent and a seed, frozen, moved and powered off
#           devices  a Linux guest with a balloon and a watchdog, moved with both
#           cifs   the kernel's SMB client against smbd
#           failover  the same with persistent handles and two paths, while smbd is killed and
#                  paths are cut
#           iscsi  open-iscsi, dm-multipath and sg3-utils, under the same faults
#           rdma   the kernel's SMB client over SMB Direct, on software iWARP
#           special  symbolic links and special files on a mount, by the kernel of Debian's backports
#
# BULKHEAD_LAB_KERNEL says which of Debian's kernels all scenarios boot: `release`, `backports` or
# `newest` (of its newest suite). Without it each boots the oldest that can what the scenario is about.
#
# A scenario's file says what goes into the initramfs (`prepare`, in the folder $work), what runs
# beside the machine, and what is looked at afterwards (`conclude`); the rest is here.
# Nothing is installed: packages are unpacked below $LAB and kept between runs.
# usage: run.sh FOLDER-OF-PROGRAMS [SCENARIO...]
set -euo pipefail

bin=$(realpath "${1:-target/release}")
shift || true
here=$(realpath "$(dirname "$0")")
LAB=${BULKHEAD_LAB_CACHE:-$(realpath "$here/../..")/target/lab}
PATH=$PATH:/usr/sbin:/sbin

skip() { echo "lab: skipped: $*"; exit 0; }
fail() { echo "lab: FAIL: $*"; exit 1; }

# needs PROGRAM...: our programs that a scenario runs.
needs() {
    local program
    for program in "$@"; do
        [ -x "$bin/$program" ] || fail "$bin/$program is missing; run: make release"
    done
}

[ "$(uname -m)" = x86_64 ] || skip "the lab is for x86_64"
for tool in apt-get apt-cache dpkg-deb mkfs.ext4 ldd gzip; do
    command -v $tool >/dev/null || skip "$tool is not installed"
done
scenarios=("$@")
[ $# -gt 0 ] || scenarios=(guest firmware agent devices cifs failover rdma iscsi special)
for scenario in "${scenarios[@]}"; do
    [ -e "$here/scenarios/$scenario.sh" ] || fail "no scenario $scenario"
done
mkdir -p "$LAB"
exec 9>"$LAB/lock"
flock -n 9 || fail "another lab runs in $LAB"

# ---- packages, unpacked once --------------------------------------------------------------

# get FOLDER PACKAGE...: unpacks packages below $LAB/FOLDER, whole or not at all.
get() {
    local folder=$LAB/$1; shift
    [ -e "$folder/.done" ] && return 0
    rm -rf "$folder" "$folder.debs"
    mkdir -p "$folder" "$folder.debs"
    (cd "$folder.debs" && apt-get download -q "$@" >"$LAB/apt.log" 2>&1) ||
        { apt-get update -q >/dev/null 2>&1 || true
          (cd "$folder.debs" && apt-get download -q "$@" >"$LAB/apt.log" 2>&1); } ||
        skip "packages cannot be had ($(tail -n 1 "$LAB/apt.log")): $*"
    local deb
    for deb in "$folder.debs"/*.deb; do dpkg-deb -x "$deb" "$folder"; done
    rm -rf "$folder.debs"
    touch "$folder/.done"
}

# What a package depends on and is not installed here, so that it runs from a folder.
missing_libraries() {
    apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "$1" | grep -E '^lib[a-z0-9.+-]+$' | sort -u |
        while read -r package; do # one that is only virtual has nothing to show
            dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
                ! apt-cache show --no-all-versions "$package" >/dev/null 2>&1 || echo "$package"
        done
}

# get_with_libraries FOLDER PACKAGE...: with all libraries that are not installed here.
get_with_libraries() {
    local package libraries
    [ -e "$LAB/$1/.done" ] && return 0
    mapfile -t libraries < <(for package in "${@:2}"; do missing_libraries "${package%%=*}"; done | sort -u)
    get "$@" "${libraries[@]}"
}

kernel_package() {
    apt-cache depends linux-image-amd64 2>/dev/null |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }'
}

if [ ! -e "$LAB/kernel/.done" ]; then
    name=$(kernel_package)
    [ -n "$name" ] || { apt-get update -q >/dev/null 2>&1 || true; name=$(kernel_package); }
    [ -n "$name" ] || skip "apt knows no linux-image-amd64"
    get kernel "$name"
fi

# use_kernel FOLDER: boots the kernel that was unpacked there.
use_kernel() {
    modules=$(find "$LAB/$1" -path '*/lib/modules/*/kernel' -prune | head -n 1)
    modules=${modules%/kernel}
    version=${modules##*/}
    kernel=$LAB/$1/boot/vmlinuz-$version
    [ -e "$kernel" ] || kernel=$modules/vmlinuz
}

# suite_kernel FOLDER SUITE: unpacks and boots the kernel of another of Debian's suites, from the mirror
# that apt uses here.
suite_kernel() {
    local folder=$1 suite=$2 apt=$LAB/apt mirror name names
    if [ ! -e "$LAB/$folder/.done" ]; then
        mirror=$("$here/../mirror.sh") || skip "apt uses no mirror of Debian here"
        rm -rf "$apt" && mkdir -p "$apt"/{parts,lists/partial,cache/archives/partial}
        cat >"$apt/parts/suite.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: $suite
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
        cat >"$apt/conf" <<CONF
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$apt/parts";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
CONF
        export APT_CONFIG=$apt/conf
        apt-get update -q >"$LAB/apt.log" 2>&1 || skip "no $suite: $(tail -n 1 "$LAB/apt.log")"
        name=$(kernel_package)
        [ -n "$name" ] || skip "$suite has no linux-image-amd64"
        # In newer suites it depends on what it is made of.
        mapfile -t names < <(echo "$name"; apt-cache depends "$name" |
            awk '$1 == "Depends:" && $2 ~ /^linux-(base|binary|modules)-[0-9]/ { print $2 }')
        get "$folder" "${names[@]}"
        unset APT_CONFIG
    fi
    use_kernel "$folder"
}

# The kernel of Debian's backports, whose SMB client can more than that of the release.
backports_kernel() {
    local codename
    [ -z "$wanted_kernel" ] || return 0
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    [ -n "$codename" ] || skip "Debian's release is not known"
    suite_kernel backports "$codename-backports"
}

get busybox busybox-static
qemu=(qemu-system-x86_64)
if ! command -v qemu-system-x86_64 >/dev/null; then
    mapfile -t libraries < <(missing_libraries qemu-system-x86)
    [ -e "$LAB/qemu/.done" ] || get qemu qemu-system-x86 qemu-system-common qemu-system-data \
        seabios ipxe-qemu "${libraries[@]}"
    found=$LAB/qemu/usr/lib/x86_64-linux-gnu:$LAB/qemu/lib/x86_64-linux-gnu
    qemu=(env "LD_LIBRARY_PATH=$found" "$LAB/qemu/usr/bin/qemu-system-x86_64"
        -L "$LAB/qemu/usr/share/qemu" -L "$LAB/qemu/usr/share/seabios"
        -L "$LAB/qemu/usr/lib/ipxe/qemu")
fi
"${qemu[@]}" --version >"$LAB/qemu.log" 2>&1 || skip "QEMU does not run: $(tail -n 1 "$LAB/qemu.log")"

use_kernel kernel
wanted_kernel=${BULKHEAD_LAB_KERNEL:-}
case $wanted_kernel in
'' | release) ;;
backports) wanted_kernel='' backports_kernel ;;
newest) suite_kernel newest sid ;;
*) fail "BULKHEAD_LAB_KERNEL is release, backports or newest, and not $wanted_kernel" ;;
esac
[ -z "$wanted_kernel" ] || echo "lab: Linux $version"
busybox=$(find "$LAB/busybox" -name busybox -type f -perm -1 | head -n 1)

# ---- initramfs --------------------------------------------------------------------

# root FOLDER MODULE...: busybox, mke2fs and modules with all they need.
root() {
    local folder=$1; shift
    mkdir -p "$folder"/{bin,dev,proc,sys,tmp,etc,run,lib/modules/"$version"}
    cp "$busybox" "$folder/bin/busybox"
    "$busybox" --list | while read -r applet; do
        [ "$applet" = busybox ] || ln -s busybox "$folder/bin/$applet"
    done
    ln -sf /proc/mounts "$folder/etc/mtab"
    program "$folder" "$(command -v mkfs.ext4)"
    rm -f "$folder/bin/mkfs.ext4"; mv "$folder/opt/mkfs.ext4" "$folder/bin/mkfs.ext4"
    local module
    for module in "$@"; do with_needs "$folder" "$module"; done
}

# Puts a module and those it needs into a folder, and its name behind theirs in /modules.
with_needs() {
    local folder=$1 name=${2//-/_} file need
    grep -qx "$name" "$folder/modules" 2>/dev/null && return 0
    file=$(find "$modules/kernel" -name "${name//_/[-_]}.ko" -o -name "${name//_/[-_]}.ko.xz" |
        head -n 1)
    if [[ $file = *.xz ]]; then
        xz -dk "$file" # for good: the package is unpacked for the lab alone
        rm "$file"
        file=${file%.xz}
    fi
    if [ -z "$file" ]; then
        grep -q "/${name//_/[-_]}.ko" "$modules/modules.builtin" && return 0
        # Parts of the kernel's own library since Linux 6.16 and later.
        [[ " crc32c_generic ghash_generic sha512_generic " != *" $name "* ]] || return 0
        fail "the kernel package has no module $name"
    fi
    for need in $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr ',' ' '); do
        with_needs "$folder" "$need"
    done
    cp "$file" "$folder/lib/modules/$version/$name.ko"
    echo "$name" >>"$folder/modules"
}

# A program below /opt, and the libraries it needs, those of an unpacked package among them.
program() {
    local folder=$1
    mkdir -p "$folder/opt"
    cp "$2" "$folder/opt/"
    strip "$folder/opt/$(basename "$2")" 2>/dev/null || true
    libraries "$folder" "$2"
}

libraries() {
    local folder=$1 library to unpacked=
    [[ $2 != "$LAB"/* ]] || { unpacked=${2#"$LAB"/}; unpacked=$LAB/${unpacked%%/*}; }
    LD_LIBRARY_PATH=${unpacked:+$unpacked/usr/lib/x86_64-linux-gnu:$unpacked/lib/x86_64-linux-gnu:$unpacked/lib} \
        ldd "$2" | grep -o '/[^ ]*' | while read -r library; do
        to=$library
        [ -z "$unpacked" ] || to=${to#"$unpacked"}
        [ -e "$folder$to" ] || install -D "$library" "$folder$to"
    done
}

pack() { (cd "$1" && find . | "$busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >"$2"; }

# ---- one scenario -------------------------------------------------------------------------

# The scenario's own functions: `prepare` fills $work/host, whose /opt/start the machine runs, and
# may set $limit (seconds), $qemu, $machine (more arguments of QEMU) and $words (of the kernel's command
# line); `conclude` looks at what is left when the console says that the program passed.
prepare() { fail "the scenario prepares nothing"; }
conclude() { :; }
# What else is to be undone at the end, once all that was started has ended.
undo() { :; }

# Ends what this started, by its id, and removes what it wrote.
pids=()
work=
cleanup() {
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    undo
    [ -z "$work" ] || rm -rf "$work"
}

# Boots the lab VM with what `prepare` made and waits for its end.
boot() {
    local pid follow watch
    : >"$console"
    # No XSAVE: QEMU's SVM lets a nested guest's XSETBV through without telling the hypervisor, which
    # then runs the guest with an XCR0 that it did not choose; some boots hang or end in a triple
    # fault.
    "${qemu[@]}" -accel tcg,thread=multi -cpu max,-xsave,-avx,-avx2,-pku -M q35 -smp 2 -m 2048 \
        -nodefaults -no-user-config -display none -monitor none -no-reboot \
        -kernel "$kernel" -initrd "$work/host.cpio.gz" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off $words" \
        -drive "file=$work/disk.img,if=none,id=d0,format=raw,cache=unsafe" \
        -device virtio-blk-pci,drive=d0 -device virtio-rng-pci "${machine[@]}" \
        -chardev "stdio,id=s0,signal=off" -serial chardev:s0 \
        -d cpu_reset -D "$LAB/resets-$scenario.log" \
        </dev/null >"$console" 2>&1 9>&- &
    pid=$!
    pids+=("$pid")
    tail -n +1 -f --pid="$pid" "$console" 9>&- | sed -u 's,\r$,,' &
    follow=$!
    ( sleep "$limit" & nap=$!; trap 'kill $nap; exit' TERM; wait $nap
      echo "lab: no end after $limit s" >>"$console"; kill "$pid" ) 9>&- 2>/dev/null &
    watch=$!
    pids+=("$watch")
    wait "$pid" || echo "lab: QEMU ended with status $?" >>"$console"
    kill "$watch" 2>/dev/null || true
    wait "$follow" "$watch" 2>/dev/null || true
}

# run SCENARIO, in a process of its own.
# shellcheck disable=SC2317 # a scenario's file may end the shell, for all that shellcheck knows
run() {
    trap cleanup EXIT
    trap 'exit 130' INT TERM
    work=$(mktemp -d "$LAB/run.XXXXXX")
    console=$LAB/console-$1.log
    # What waits for a line of it must not find that of the run before.
    : >"$console"
    limit=420 words='' machine=()
    # shellcheck source=/dev/null
    source "$here/scenarios/$1.sh"
    prepare
    install -m 755 "$here/host-init" "$work/host/init"
    pack "$work/host" "$work/host.cpio.gz"
    # A disk of the machine, at /tmp.
    truncate -s 2G "$work/disk.img"
    mkfs.ext4 -q -F "$work/disk.img"
    boot
    if grep -q '^lab: passed' "$console" && conclude; then
        echo "lab: $1: PASS"
    else
        echo "lab: the console of the lab VM is in $console"
        echo "lab: $1: FAIL"
        return 1
    fi
}

failed=()
for scenario in "${scenarios[@]}"; do
    echo "lab: $scenario"
    (run "$scenario") || failed+=("$scenario")
done
[ ${#failed[@]} = 0 ] || fail "${failed[*]}"
