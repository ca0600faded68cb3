# shellcheck shell=sh
# What the provisioning scripts share; read by them, not run.
#
# Each script may be run again at any time: it changes only what is not as it should be, and
# restarts a service only when something of it has changed.

umask 022
export DEBIAN_FRONTEND=noninteractive
export PATH="$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin"

say() { printf 'lab: %s\n' "$*" >&2; }

# die MESSAGE HINT
die() {
    printf 'lab: %s\n  hint: %s\n' "$1" "$2" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" -eq 0 ] || die "provisioning needs root" "run it with sudo"
}

# needs PROGRAM PACKAGE: note the package as missing unless its program is there.
missing=
needs() {
    command -v "$1" >/dev/null || missing="$missing $2"
}

has_candidate() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | grep '^  Candidate: [^(]' >/dev/null
}

# Installs what needs() noted, from the sources that this machine is configured for. On a machine
# that has everything, apt is not asked at all: it may have no network.
install_missing() {
    [ -n "$missing" ] || return 0
    say "installing$missing"
    apt-get -q update || die "cannot fetch package lists" "is this machine online?"
    # shellcheck disable=SC2086 # one word a package
    apt-get -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends $missing ||
        die "cannot install$missing" "are the package sources of this machine complete?"
    missing=
}

# write FILE [MODE]: put standard input there; sets changed=yes unless it was there already. To be
# given its text by <, never by a pipe: what a pipe leads to cannot set a variable here.
changed=
write() {
    write_new=$(mktemp)
    cat >"$write_new"
    if ! cmp -s "$write_new" "$1"; then
        # In place of a symbolic link, not through it: /etc/resolv.conf may be somebody else's.
        rm -f "$1"
        install -D -m "${2-644}" "$write_new" "$1"
        changed=yes
    fi
    rm -f "$write_new"
}

# use_resolvers ADDRESS...: these are asked, and no other, also after DHCP has spoken again.
use_resolvers() {
    changed=
    if systemctl is-active --quiet systemd-resolved; then
        # "~." takes every name away from the resolvers that belong to an interface.
        write /etc/systemd/resolved.conf.d/ramnet-lab.conf <<TEXT
[Resolve]
DNS=$*
Domains=~.
TEXT
        if [ -n "$changed" ]; then systemctl restart systemd-resolved; fi
        return 0
    fi
    if [ -e /etc/dhcp/dhclient.conf ]; then
        write /etc/dhcp/dhclient.conf <<TEXT
$(sed '/^supersede domain-name-servers /d' /etc/dhcp/dhclient.conf)
supersede domain-name-servers $(printf '%s' "$*" | sed 's/ /, /g');
TEXT
    fi
    write /etc/resolv.conf <<TEXT
$(printf 'nameserver %s\n' "$@")
TEXT
}
