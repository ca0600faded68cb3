#!/bin/sh
# The lab's resolver. It knows the lab's names itself and asks this machine's own resolvers for all
# others, so that the client can still install packages.
#
# Environment:
#   LAB_LISTEN    the address on which it answers
#   LAB_RECORDS   NAME=ADDRESS, with spaces between them
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck source=vagrant/provision/common.sh
. "$here/common.sh"

: "${LAB_LISTEN:?}" "${LAB_RECORDS:?}"
require_root

# The package dnsmasq-base has the same program, but no service.
[ -e /lib/systemd/system/dnsmasq.service ] || missing=dnsmasq
install_missing

records() {
    for record in $LAB_RECORDS; do
        name=${record%%=*}
        # No address of the other family may come from a real resolver.
        printf 'host-record=%s,%s\nlocal=/%s/\n' "$name" "${record#*=}" "$name"
    done
}

changed=
# Not on the loopback: another resolver of this machine may be there.
write /etc/dnsmasq.d/ramnet-lab.conf <<TEXT
listen-address=$LAB_LISTEN
except-interface=lo
bind-dynamic
no-hosts
cache-size=0
local-ttl=60
log-queries
$(records)
TEXT
systemctl enable dnsmasq
if [ -n "$changed" ]; then systemctl restart dnsmasq; else systemctl start dnsmasq; fi
say "the resolver answers at $LAB_LISTEN"
