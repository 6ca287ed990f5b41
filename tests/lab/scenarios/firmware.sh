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
# BULKHEAD_LAB_ONLY   `bios` or `uefi` (default: both)

prepare() {
    needs hyperv-host bulkhead
    get_with_libraries boot-tools grub-common grub-pc-bin grub-efi-amd64-bin mtools efibootmgr
    get firmware seabios ovmf
    limit=${BULKHEAD_LAB_SECONDS:-900}
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
    echo "${BULKHEAD_LAB_ONLY:-bios uefi}" >"$work/host/opt/kinds"
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
