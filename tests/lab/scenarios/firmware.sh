# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # run.sh and its scenarios share variables
# VMs of hyperv-host that start by a firmware: SeaBIOS and OVMF of Debian's packages boot GRUB and
# Debian's kernel from one disk, which has both kinds of boot loader.
#
#   lab VM
#   └─ /dev/kvm: hyperv-host, tests/lab/firmware-start
#      └─ guest `bios`, guest `uefi`: /dev/vda = MBR, GRUB behind it; FAT with GRUB for UEFI, kernel,
#         initramfs (tests/lab/firmware-guest-init), GRUB's configuration
#
# Each guest starts, has itself reset, starts again, switches itself off and is started once more; it
# counts that on its disk. With UEFI it keeps a variable and makes a boot entry, by which it must have
# been booted at the last start.
#
# QEMU's emulation of SVM, up to 11.1.3 of Debian's newest suite at least, aborts where a nested guest writes
# CR8 while a virtual interrupt is pending for it: the write raises it without QEMU's lock, and an assertion
# says so. OVMF does that in each interrupt. The scenario takes this assertion out of a copy of QEMU's module
# (Debian 12's, one byte); with another QEMU `uefi` is left out, and the run says so.
#
# The same emulation sometimes enters a nested guest without its instruction pointer: the guest goes on in its
# own address space at the instruction behind VMRUN of the lab VM's kernel, and ends in a triple fault. By the trace of
# kvm_exit that is where it was (__svm_vcpu_run), which no guest can be, and the exit before was an interrupt for the
# lab VM. hyperv-host resets the machine then, as it should, and the guest starts again; the scenario looks at each
# of them, and fails by any that was elsewhere. One was: behind an OUT to the serial port, which is not explained.
#
# BULKHEAD_LAB_ONLY   `bios` or `uefi` (default: both)

# Lets QEMU go on where OVMF writes CR8; whether that can be.
without_assertion() {
    local module folder at
    for folder in "$LAB/qemu/usr/lib/x86_64-linux-gnu/qemu" /usr/lib/x86_64-linux-gnu/qemu; do
        module=$folder/accel-tcg-x86_64.so
        [ -e "$module" ] && break
    done
    # The beginning of tcg_handle_interrupt: asks whether the lock is held, and goes past the abort if it is.
    at=$(LC_ALL=C grep -obUaP '\x55\x89\xf5\x53\x48\x89\xfb\x48\x83\xec\x08\xe8....\x84\xc0\x75\x24' "$module" 2>/dev/null |
        LC_ALL=C sed -n 's/^\([0-9]\{1,\}\):.*/\1/p')
    [[ $at =~ ^[0-9]+$ ]] || return 1
    cp -r "$folder" "$work/modules"
    # In any case.
    printf '\xeb' | dd of="$work/modules/accel-tcg-x86_64.so" bs=1 seek=$((at + 18)) conv=notrunc status=none
    export QEMU_MODULE_DIR=$work/modules
}

prepare() {
    local kinds=${BULKHEAD_LAB_ONLY:-bios uefi}
    needs hyperv-host bulkhead
    if [[ $kinds = *uefi* ]] && ! without_assertion; then
        echo "lab: firmware: uefi is left out: this QEMU aborts in OVMF, and is not the one whose assertion is known"
        kinds=${kinds//uefi/}
        [ -n "${kinds// /}" ] || fail "there is nothing else to run"
    fi
    get_with_libraries boot-tools grub-common grub-pc-bin grub-efi-amd64-bin mtools efibootmgr
    get firmware seabios ovmf
    limit=${BULKHEAD_LAB_SECONDS:-1200}
    root "$work/guest" virtio_pci virtio_blk efivarfs
    program "$work/guest" "$LAB/boot-tools/bin/efibootmgr"
    install -m 755 "$here/firmware-guest-init" "$work/guest/init"
    pack "$work/guest" "$work/guest.cpio.gz"
    make_disk "$work/boot.raw"

    root "$work/host" virtio_pci virtio_blk crc32c_generic ext4 kvm_amd
    local name
    for name in hyperv-host bulkhead; do program "$work/host" "$bin/$name"; done
    mkdir -p "$work/host/usr/share"/{seabios,OVMF}
    cp "$LAB/firmware/usr/share/seabios/bios-256k.bin" "$work/host/usr/share/seabios/"
    cp "$LAB/firmware/usr/share/OVMF"/OVMF_{CODE,VARS}_4M.fd "$work/host/usr/share/OVMF/"
    echo "$kinds" >"$work/host/opt/kinds"
    install -m 755 "$here/firmware-start" "$work/host/opt/start"
    # shellcheck disable=SC2054 # the commas are QEMU's
    machine=(-drive "file=$work/boot.raw,if=none,id=d1,format=raw,readonly=on"
        -device virtio-blk-pci,drive=d1)
}

# A tool of the packages, with its libraries.
tool() {
    local tools=$LAB/boot-tools
    LD_LIBRARY_PATH=$tools/usr/lib/x86_64-linux-gnu:$tools/lib/x86_64-linux-gnu "$tools/usr/bin/$1" "${@:2}"
}

# grub FORMAT FILE MODULE...: GRUB in one file, which finds its configuration on the first partition.
grub() {
    tool grub-mkimage -d "$LAB/boot-tools/usr/lib/grub/$1" -O "$1" -o "$2" -p '(hd0,msdos1)/boot' \
        part_msdos fat normal linux "${@:3}"
}

# A disk that a BIOS and UEFI can boot: one FAT partition from 1 MiB on, of the type of a system
# partition of UEFI.
make_disk() {
    local part=$work/part sectors=$((96 * 2048))
    cat >"$work/grub.cfg" <<'CONFIG'
linux /boot/vmlinuz console=ttyS0 panic=-1 mitigations=off
initrd /boot/initrd
boot
CONFIG
    truncate -s $((sectors * 512)) "$part"
    tool mformat -i "$part" -T "$sectors" -h 64 -s 32 -v LAB ::
    grub x86_64-efi "$work/bootx64.efi"
    grub i386-pc "$work/core.img" biosdisk
    tool mmd -i "$part" ::boot ::EFI ::EFI/BOOT ::EFI/lab
    tool mcopy -i "$part" "$work/bootx64.efi" ::EFI/BOOT/BOOTX64.EFI
    tool mcopy -i "$part" "$work/bootx64.efi" ::EFI/lab/grub.efi
    tool mcopy -i "$part" "$kernel" ::boot/vmlinuz
    tool mcopy -i "$part" "$work/guest.cpio.gz" ::boot/initrd
    tool mcopy -i "$part" "$work/grub.cfg" ::boot/grub.cfg
    truncate -s $((sectors * 512 + (1 << 20))) "$1"
    # The code of the first sector without its table, then GRUB in the sectors behind it.
    dd if="$LAB/boot-tools/usr/lib/grub/i386-pc/boot.img" of="$1" bs=440 count=1 conv=notrunc status=none
    # Bootable, of type ef, from sector 2048 on, 196608 sectors.
    printf '\x80\0\0\0\xef\0\0\0\0\x08\0\0\0\0\x03\0' | dd of="$1" bs=1 seek=446 conv=notrunc status=none
    printf '\x55\xaa' | dd of="$1" bs=1 seek=510 conv=notrunc status=none
    [ "$(stat -c %s "$work/core.img")" -lt $((2046 * 512)) ] || fail "GRUB does not fit before the partition"
    dd if="$work/core.img" of="$1" bs=512 seek=1 conv=notrunc status=none
    dd if="$part" of="$1" bs=1M seek=1 conv=notrunc status=none
    rm "$part"
}
