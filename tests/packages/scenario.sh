#!/bin/bash
# The packages: installed, configured, upgraded, removed and purged, in a layer above the machine's files.
# usage: unshare --fork --pid --mount --ipc --net scenario.sh OLD NEW SCRATCH (folders of packages)
set -euo pipefail
old=$(realpath "$1") new=$(realpath "$2") scratch=$(realpath "$3") here=$(realpath "$(dirname "$0")")
trap 'echo "packages: FAIL at line $LINENO"' ERR

# shellcheck source=tests/scratch/layer.sh
. "$here/../scratch/layer.sh"
layer "$scratch"
mkdir "$root/run/bulkhead-test/"{old,new}
cp "$old"/* "$root/run/bulkhead-test/old"
cp "$new"/* "$root/run/bulkhead-test/new"
enter_layer
old=/run/bulkhead-test/old new=/run/bulkhead-test/new

step() { echo "packages: $*"; }

# dpkg knows of no package of the machine here, so what ours need is not asked for: it is the machine's.
mkdir -p /var/lib/dpkg/{info,updates,triggers} /var/log
: >/var/lib/dpkg/status
: >/var/lib/dpkg/available
dpkg() { command dpkg --force-depends --log=/dev/null "$@" >/dev/null 2>&1; }
mode() { stat -c '%U %a' "$1"; }
state() { dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null || true; }

step installs
dpkg --install "$old"/*.deb
for package in bulkhead bulkhead-smbd bulkhead-hyperv-host; do [ "$(state $package)" = installed ]; done
[ "$(mode /etc/bulkhead)" = 'bulkhead 700' ]
[ "$(mode /etc/bulkhead/smbd.toml)" = 'bulkhead 600' ]
[ "$(mode /etc/hyperv-host)" = 'hyperv-host 700' ]
id -nG hyperv-host | grep -qw kvm
for program in bulkhead smbd hyperv-host; do "/usr/bin/$program" --version | grep -q "$program"; done
{ /usr/bin/smbd --config /etc/bulkhead/smbd.toml --check 2>&1 || true; } | grep -q users.toml
[ ! -e /etc/systemd/system/multi-user.target.wants/bulkhead-smbd.service ]

step 'is configured as the file says'
bash -c '. /usr/share/bash-completion/completions/bulkhead && complete -p bulkhead' | grep -q bulkhead
zcat /usr/share/man/man1/bulkhead-disk-create.1.gz | grep -q '^\.TH bulkhead-disk-create'
echo Passw0rd-99 | bulkhead user add admin --file /etc/bulkhead/users.toml --password-file -
chown bulkhead: /etc/bulkhead/users.toml
install -d -o bulkhead -g bulkhead /srv/vms
sed -i 's/^# \(\[\[share\]\]\|name\|path\|users\|continuously\)/\1/; s/"NAME"/"admin"/' /etc/bulkhead/smbd.toml
/usr/bin/smbd --config /etc/bulkhead/smbd.toml --check
# As the unit starts it, without the service manager.
install -d -o bulkhead -g bulkhead -m 700 /var/lib/bulkhead
setpriv --reuid=bulkhead --regid=bulkhead --clear-groups --inh-caps=+net_bind_service \
    --ambient-caps=+net_bind_service /usr/bin/smbd --config /etc/bulkhead/smbd.toml &
server=$!
for _ in $(seq 100); do
    smbclient //127.0.0.1/vms -U admin%Passw0rd-99 -c 'put /etc/hostname kept' >/dev/null 2>&1 && break
    sleep 0.1
done
[ -s /srv/vms/kept ]
bulkhead api token create --hours 1 --role viewer --out /run/token
[ -s /var/lib/bulkhead/api-tokens.json ] && [ -s /var/lib/bulkhead/audit.jsonl ]
kill $server
wait $server

step upgrades
dpkg --install "$new"/*.deb
dpkg-query -W -f='${Version}' bulkhead-smbd | grep -q '^9'
grep -q '"admin"' /etc/bulkhead/smbd.toml

step 'removes, and keeps what is configured'
dpkg --remove bulkhead-smbd bulkhead-hyperv-host
[ ! -e /usr/bin/smbd ]
[ -e /etc/bulkhead/smbd.toml ]
[ -e /var/lib/bulkhead/server-guid ]

step 'purges what is its own'
echo mine >/etc/bulkhead/other
dpkg --purge bulkhead-smbd bulkhead-hyperv-host bulkhead
[ ! -e /var/lib/bulkhead ]
[ "$(ls /etc/bulkhead)" = other ]
[ -s /srv/vms/kept ]
[ ! -e /usr/bin/bulkhead ]
echo 'packages: PASS'
