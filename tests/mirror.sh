#!/bin/sh
# Prints the address of the mirror of Debian that apt uses here; fails where there is none.
set -eu
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
    grep -oE '^(URIs:|deb(-src)?( \[[^]]*\])?) *[^ ]+/debian/?( |$)' | grep -oE '[a-z+]+:[^ ]+' | head -n 1)
[ -n "$mirror" ] && echo "$mirror"
