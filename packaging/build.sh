#!/bin/bash
# Debian packages of the three programs, and a folder that is a repository for apt.
# The same programs and the same commit give the same bytes.
# usage: [COMPRESSION=none] build.sh FOLDER-OF-PROGRAMS OUT [VERSION]
set -euo pipefail
programs=$(realpath "$1") out=$(realpath -m "$2")
cd "$(dirname "$0")/.."
version=${3:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)}
architecture=$(dpkg --print-architecture)
# When the source was last changed; a tree without git has the time of its change log.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# put FILE PLACE [MODE]: into the package that is being made.
put() { install -D -m "${3:-644}" "$1" "$root$2"; }

# press PLACE: a text that is kept compressed, without the time at which that was done.
press() { gzip -9 -n "$root$1"; }

# begin PACKAGE: an empty one, with what each has.
begin() {
    package=$1 root=$work/$1
    { cat packaging/debian/copyright; sed 's/^$/./; s/^/ /' LICENSE-MIT; } >"$work/copyright"
    put "$work/copyright" "/usr/share/doc/$package/copyright"
    put CHANGELOG.md "/usr/share/doc/$package/changelog"
    press "/usr/share/doc/$package/changelog"
}

# program FILE: its executable, without what only a debugger wants.
program() {
    put "$programs/$1" "/usr/bin/$1" 755
    strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/usr/bin/$1"
}

# finish DEPENDS DESCRIPTION...: writes what dpkg knows of the package, and the package.
finish() {
    local depends=$1 control=$root/DEBIAN script
    shift
    install -d "$control"
    depends+="${depends:+, }$(needed)"
    {
        printf 'Package: %s\nVersion: %s\nArchitecture: %s\n' "$package" "$version" "$architecture"
        printf 'Section: admin\nPriority: optional\nMaintainer: Bulkhead <root@localhost>\n'
        printf 'Installed-Size: %s\n' "$(du -sk --apparent-size "$root" | cut -f1)"
        printf 'Depends: %s\nDescription: %s\n' "$depends" "$1"
        shift
        printf ' %s\n' "$@"
    } >"$control/control"
    for script in postinst prerm postrm conffiles; do
        [ -e "packaging/debian/$package.$script" ] || continue
        case $script in
        conffiles) install -m 644 "packaging/debian/$package.$script" "$control/$script" ;;
        *) install -m 755 "packaging/debian/$package.$script" "$control/$script" ;;
        esac
    done
    (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0r md5sum) >"$control/md5sums"
    dpkg-deb --root-owner-group "-Z${COMPRESSION:-xz}" --build "$root" "$out/${package}_${version}_$architecture.deb" >/dev/null
}

# The libraries that the programs of the package load, with the versions that have what they call.
needed() {
    local scratch=$work/shlibs
    mkdir -p "$scratch/debian"
    printf 'Source: bulkhead\n\nPackage: %s\nArchitecture: any\n' "$package" >"$scratch/debian/control"
    (cd "$scratch" && dpkg-shlibdeps -O "$root"/usr/bin/* 2>/dev/null) | sed -n 's/^shlibs:Depends=//p'
}

mkdir -p "$out"
rm -f "$out"/bulkhead*_*.deb "$out"/Packages* "$out/Release"

begin bulkhead
program bulkhead
tool=$programs/bulkhead
"$tool" describe man --out "$work/man"
for page in "$work"/man/*.1; do
    put "$page" "/usr/share/man/man1/${page##*/}"
    press "/usr/share/man/man1/${page##*/}"
done
"$tool" describe completions bash >"$work/bash"
"$tool" describe completions zsh >"$work/zsh"
"$tool" describe completions fish >"$work/fish"
put "$work/bash" /usr/share/bash-completion/completions/bulkhead
put "$work/zsh" /usr/share/zsh/vendor-completions/_bulkhead
put "$work/fish" /usr/share/fish/vendor_completions.d/bulkhead.fish
put docs/images.md /usr/share/doc/bulkhead/images.md
finish '' 'command-line tool of the Bulkhead storage server and VM host' \
    'Creates, checks, converts and serves virtual-disk images (VHDX, VHD, raw), also on' \
    'SMB shares and iSCSI LUNs; looks at running servers and hosts, and tells them what to do.'

begin bulkhead-smbd
program smbd
put packaging/smbd.service /lib/systemd/system/bulkhead-smbd.service
put packaging/smbd.socket /lib/systemd/system/bulkhead-smbd.socket
put packaging/debian/bulkhead-smbd.sysusers /usr/lib/sysusers.d/bulkhead-smbd.conf
put packaging/debian/smbd.toml /etc/bulkhead/smbd.toml
put conf/smbd.toml /usr/share/doc/bulkhead-smbd/examples/smbd.toml
for text in administration console dfs iscsi kerberos metrics operate; do
    put "docs/$text.md" "/usr/share/doc/bulkhead-smbd/$text.md"
done
for picture in overview sessions phone; do
    put "docs/console-$picture.png" "/usr/share/doc/bulkhead-smbd/console-$picture.png"
done
put console/dist/notices.txt /usr/share/doc/bulkhead-smbd/console-notices.txt
for example in prometheus/bulkhead.rules.yml grafana/bulkhead.json smbd.schema.json; do
    put "conf/$example" "/usr/share/doc/bulkhead-smbd/examples/${example##*/}"
done
put packaging/man/bulkhead-smbd.8 /usr/share/man/man8/bulkhead-smbd.8
press /usr/share/man/man8/bulkhead-smbd.8
finish "bulkhead (= $version), systemd" 'SMB 3 file server and iSCSI target for virtual-machine disks' \
    'Serves SMB 2.0.2 to 3.1.1 with signing, encryption, multichannel and handles that outlive' \
    'the server, and the same images as iSCSI LUNs. Nothing is started before it is configured.'

begin bulkhead-hyperv-host
program hyperv-host
put packaging/hyperv-host.service /lib/systemd/system/bulkhead-hyperv-host.service
put packaging/debian/bulkhead-hyperv-host.sysusers /usr/lib/sysusers.d/bulkhead-hyperv-host.conf
for example in hyperv-host.toml hyperv-host.schema.json vm.toml vm.schema.json; do
    put "conf/$example" "/usr/share/doc/bulkhead-hyperv-host/examples/$example"
done
put packaging/man/hyperv-host.8 /usr/share/man/man8/hyperv-host.8
press /usr/share/man/man8/hyperv-host.8
finish "bulkhead (= $version), systemd" 'VM host whose disks are on SMB 3 shares' \
    'Runs KVM guests whose disks are VHDX images on shares or iSCSI LUNs, and moves them live to' \
    'another host: only memory travels. Nothing is started before it is configured.'

cd "$out"
dpkg-scanpackages --multiversion . /dev/null >Packages 2>/dev/null
gzip -9 -n -k Packages
{
    printf 'Origin: Bulkhead\nSuite: stable\nArchitectures: %s\n' "$architecture"
    printf 'Date: %s\nSHA256:\n' "$(date -u -d "@$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %H:%M:%S UTC')"
    for file in Packages Packages.gz; do
        printf ' %s %s %s\n' "$(sha256sum "$file" | cut -d' ' -f1)" "$(stat -c %s "$file")" "$file"
    done
} >Release
ls -1 ./*.deb
