#!/bin/sh
# A registry over TLS, port 443, with images made on this machine: no other registry is asked.
#
# Environment:
#   LAB_CERTIFICATE, LAB_KEY   the server's certificate and key, PEM files
#   LAB_IMAGES                 repositories, with spaces between them
#   LAB_ORIGIN                 what the file /origin of each image says
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck source=vagrant/provision/common.sh
. "$here/common.sh"

: "${LAB_CERTIFICATE:?}" "${LAB_KEY:?}" "${LAB_IMAGES:?}" "${LAB_ORIGIN:?}"
require_root

lab=/etc/ramnet-lab
storage=/var/lib/ramnet-lab-registry

needs docker-registry docker-registry
needs busybox busybox-static
needs python3 python3
needs tcpdump tcpdump
install_missing
# An image holds nothing else: a busybox that needs a library would not start in it.
if ldd "$(command -v busybox)" >/dev/null 2>&1; then
    missing=busybox-static
    install_missing
fi

# shellcheck disable=SC2086 # one word a repository
PYTHONPATH=$here/../.. PYTHONDONTWRITEBYTECODE=1 \
    python3 "$here/images.py" "$storage" "$LAB_ORIGIN" $LAB_IMAGES
chown -R docker-registry: "$storage"

changed=
write "$lab/certificate.pem" <"$LAB_CERTIFICATE"
write "$lab/key.pem" 640 <"$LAB_KEY"
chgrp docker-registry "$lab/key.pem"
write "$lab/registry.yml" <<TEXT
version: 0.1
log:
  level: info
storage:
  filesystem:
    rootdirectory: $storage
  delete:
    enabled: true
http:
  addr: ":443"
  tls:
    certificate: $lab/certificate.pem
    key: $lab/key.pem
TEXT
# The package's own service runs as an ordinary user on port 5000.
write /etc/systemd/system/docker-registry.service.d/lab.conf <<TEXT
[Service]
AmbientCapabilities=CAP_NET_BIND_SERVICE
ExecStart=
ExecStart=$(command -v docker-registry) serve $lab/registry.yml
Restart=on-failure
TEXT
systemctl daemon-reload
systemctl enable docker-registry
if [ -n "$changed" ]; then systemctl restart docker-registry; else systemctl start docker-registry; fi

# It has no notification of its own.
for _ in $(seq 60); do
    if ss -H -l -t -n 'sport = :443' | grep -q .; then
        say "the registry of $LAB_ORIGIN listens"
        exit 0
    fi
    sleep 1
done
die "the registry does not listen" "journalctl -u docker-registry"
