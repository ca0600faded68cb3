#!/bin/sh
# The machine under protection: Docker, the lab's authority and resolver, and ramnet.
#
# Environment:
#   LAB_CA       the authority's certificate, a PEM file
#   LAB_DNS      the resolvers' addresses, with spaces between them
#   LAB_POLICY   the policy file
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck source=vagrant/provision/common.sh
. "$here/common.sh"

: "${LAB_CA:?}" "${LAB_DNS:?}" "${LAB_POLICY:?}"
require_root

# Before anything is installed: from here on the machine lives in the lab.
# shellcheck disable=SC2086 # one word an address
use_resolvers $LAB_DNS

needs dockerd docker.io
# From Debian 13 on the client is a package of its own.
if has_candidate docker-cli; then needs docker docker-cli; fi
needs update-ca-certificates ca-certificates
needs curl curl
install_missing

# Docker reads the authorities once, when it starts.
changed=
write /usr/local/share/ca-certificates/ramnet-lab.crt <"$LAB_CA"
if [ -n "$changed" ] || [ ! -e /etc/ssl/certs/ramnet-lab.pem ]; then
    update-ca-certificates >/dev/null
    if systemctl is-active --quiet docker; then systemctl restart docker; fi
fi

"$here/../../bootstrap" install --policy "$LAB_POLICY" --restart-engines=now
systemctl enable --now docker
# 4: in force, though not everything that the policy wants. The kernel of the box decides, not this.
ramnet status || [ $? -eq 4 ]
