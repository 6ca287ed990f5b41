#!/bin/bash
# smbd as a service: started, reloaded, killed, upgraded, begun by its port, stopped.
set -euo pipefail
unit=bulkhead-smbd
trap 'echo "systemd: FAIL at line $LINENO"; systemctl --no-pager status $unit.service || true' ERR

step() { echo "systemd: $*"; }

# until WHAT...: waits for a command to succeed.
await() {
    for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
    echo "systemd: in vain: $*"
    return 1
}

# refused WHAT...: a command that must fail, which `! WHAT` alone would not tell.
refused() { if "$@"; then echo "systemd: succeeded: $*"; return 1; fi; }

share() { smbclient //127.0.0.1/vms -U 'admin%Passw0rd!' -c "$1"; }
main_pid() { systemctl show -p MainPID --value $unit.service; }
other_child() { local now; now=$(pgrep -P "$(main_pid)") && [ "$now" != "$1" ]; }

step starts
systemctl start $unit.service
[ "$(systemctl show -p User --value $unit.service)" = bulkhead ]
share 'put /etc/hostname h; allinfo h'

step reloads
printf '[[share]]\nname = "more"\npath = "/srv/vms"\nusers = ["admin"]\n' >>/etc/bulkhead/smbd.toml
systemctl reload $unit.service
await smbclient //127.0.0.1/more -U 'admin%Passw0rd!' -c ls

step 'the server dies, the service does not'
main=$(main_pid) child=$(pgrep -P "$main")
kill -9 "$child"
await other_child "$child"
await share 'get h /dev/null'
[ "$(main_pid)" = "$main" ]

step upgrades
child=$(pgrep -P "$main")
runuser -u bulkhead -- bulkhead server upgrade
await other_child "$child"
await share 'get h /dev/null'
[ "$(main_pid)" = "$main" ]

step 'the service dies and is started again'
kill -9 "$main"
await share 'get h /dev/null'
[ "$(main_pid)" != "$main" ]

step stops
systemctl stop $unit.service
[ "$(systemctl show -p Result --value $unit.service)" = success ]
refused share ls

step 'its port starts it'
systemctl start $unit.socket
refused systemctl --quiet is-active $unit.service
share 'get h /dev/null'
systemctl --quiet is-active $unit.service
systemctl stop $unit.socket $unit.service

echo 'systemd: PASS'
