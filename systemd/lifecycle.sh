# What `bootstrap install` and the Debian package do alike on a machine. POSIX shell, functions only:
# it is sourced by the one, and written into the maintainer scripts of the other. Those with variables
# of their own run in a subshell, so that no name of the caller's is changed.
# shellcheck shell=sh

ramnet_home=/opt/ramnet
ramnet_proxy=/usr/local/libexec/docker/docker-proxy
ramnet_slice=ramnetengines.slice
ramnet_engines="containerd.service docker.service podman.service buildkit.service"

# The machine is run by systemd, and this is not merely a chroot on it.
with_systemd() { [ -d /run/systemd/system ] && ! in_chroot; }

# What runs and what is enforced outside is not ours to touch. 2: it cannot be told, as without /proc.
in_chroot() {
    ischroot && return 0
    [ $? -eq 2 ]
}

# --- releases -------------------------------------------------------------------------------

# release_add FROM ID: have the tree FROM as a release of its own; prints the name that it got.
# Links where possible: no file of a release is ever written to.
release_add() (
    name=$2 count=0
    while [ -e "$ramnet_home/releases/$name" ]; do
        # The same package again: what is whole is used, what was damaged is not.
        if diff -r --no-dereference "$1" "$ramnet_home/releases/$name" >/dev/null 2>&1; then break; fi
        count=$((count + 1)) name=$2.$count
    done
    if [ ! -e "$ramnet_home/releases/$name" ]; then
        mkdir -p "$ramnet_home/releases" || return 1
        new=$ramnet_home/releases/.new-$name
        rm -rf "$new"
        cp -al "$1" "$new" 2>/dev/null || { rm -rf "$new" && cp -a "$1" "$new"; } || return 1
        # Whole on the disk before it has its name, also if the power fails.
        sync -f "$new" || return 1
        mv "$new" "$ramnet_home/releases/$name" || return 1
    fi
    printf '%s\n' "$name"
)

# release_current: the name of the release in use; nothing without one.
release_current() (
    target=$(readlink "$ramnet_home/current") || return 0
    [ ! -x "$ramnet_home/current/venv/bin/ramnet" ] || printf '%s\n' "${target##*/}"
)

# release_switch NAME: every path through `current` leads to the one or to the other, never nowhere.
release_switch() {
    ln -sfn "releases/$1" "$ramnet_home/.current" || return 1
    mv -T "$ramnet_home/.current" "$ramnet_home/current" || return 1
    sync -f "$ramnet_home"
}

# release_prune: remove the releases that nobody uses: not the current one, nor one that a process
# still runs from (a restart that failed or was forbidden).
release_prune() (
    for release in "$ramnet_home"/releases/* "$ramnet_home"/releases/.new-*; do
        [ -d "$release" ] || continue
        [ "$release" != "$(readlink -f "$ramnet_home/current")" ] || continue
        if grep -qsF "$release/" /proc/[0-9]*/maps; then continue; fi
        rm -rf "$release"
    done
)

# --- what is put on the machine besides -----------------------------------------------------

# proxy_link: newer versions of dockerd look here for docker-proxy first. Somebody else's stays. Debian
# 13 has a /usr/local/libexec, Debian 12 has not: one that is made here is removed again.
proxy_link() {
    if [ -e "$ramnet_proxy" ] || [ -L "$ramnet_proxy" ]; then return 0; fi
    if [ ! -e /usr/local/libexec ]; then mkdir /usr/local/libexec && : >"$ramnet_home/.made-libexec" || return 1; fi
    mkdir -p "${ramnet_proxy%/*}" && ln -s "$ramnet_home/current/libexec/ramnet-docker-proxy" "$ramnet_proxy"
}

proxy_unlink() {
    case $(readlink "$ramnet_proxy") in
        "$ramnet_home"/*) rm -f "$ramnet_proxy" ;;
    esac
    rmdir "${ramnet_proxy%/*}" 2>/dev/null || true
    [ ! -e "$ramnet_home/.made-libexec" ] || rmdir /usr/local/libexec 2>/dev/null || true
    rm -f "$ramnet_home/.made-libexec"
}

# policy_begin: a first policy where there is none. It is the machine's own from then on.
policy_begin() {
    [ ! -e /etc/ramnet/policy.toml ] || return 0
    mkdir -p /etc/ramnet &&
        "$ramnet_home/current/venv/bin/ramnet" policy init \
            --organization "$(cat /proc/sys/kernel/hostname)" --output /etc/ramnet/policy.toml
}

# --- the daemon -----------------------------------------------------------------------------

# daemon_release: from which release the daemon runs; nothing where none does.
daemon_release() (
    pid=$(systemctl show --property=MainPID --value ramnet.service 2>/dev/null) || return 0
    [ "${pid:-0}" -ne 0 ] || return 0
    tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null |
        sed -n "1s|^$ramnet_home/releases/\([^/]*\)/.*|\1|p"
)

# daemon_restart: start it, or have the one that runs make room for the release in use. Neither the
# lock nor an engine is touched, and the rules in force stay until the new daemon has loaded its own.
daemon_restart() {
    systemctl reset-failed ramnet.service 2>/dev/null || true
    # Not waited for: a start that fails is tried again for ever, and daemon_ready tells more.
    systemctl restart --no-block ramnet.service
}

# daemon_ready SECONDS: wait until the daemon of the release in use is ready and answers.
daemon_ready() (
    end=$(($(date +%s) + $1))
    while :; do
        if [ "$(systemctl show --property=ActiveState --value ramnet.service)" = active ] &&
            [ "$(daemon_release)" = "$(release_current)" ]; then
            code=0
            "$ramnet_home/current/venv/bin/ramnet" status >/dev/null 2>&1 || code=$?
            # 4: locked down or degraded, which is the policy's or the machine's matter.
            case $code in 0 | 4) return 0 ;; esac
        fi
        [ "$(date +%s)" -lt "$end" ] || return 1
        sleep 1
    done
)

# daemon_last_words: the end of its log.
daemon_last_words() {
    journalctl --no-pager --quiet --output=cat --lines=12 --unit=ramnet.service --unit=ramnet-lock.service \
        2>/dev/null | sed 's/^/  | /'
}

# rules_in_force: any table of ours is in this network namespace.
rules_in_force() {
    nft list table inet ramnet >/dev/null 2>&1 || nft list table netdev ramnet >/dev/null 2>&1
}

# --- engines --------------------------------------------------------------------------------

# engines_active: the engines that run.
engines_active() (
    for engine in $ramnet_engines; do
        if systemctl is-active --quiet "$engine" 2>/dev/null; then printf '%s\n' "$engine"; fi
    done
)

# engines_outside: those of them that were started before they had their place in the slice.
engines_outside() (
    for engine in $(engines_active); do
        case $(systemctl show --property=ControlGroup --value "$engine") in
            "/$ramnet_slice/"*) ;;
            *) printf '%s\n' "$engine" ;;
        esac
    done
)

# engines_restart ENGINE...: stopped first and all of them, since what is left of one, such as the
# shim of a container, keeps it in the cgroup that it was in.
engines_restart() (
    groups=$(systemctl show --property=ControlGroup --value "$@")
    sockets=$(engine_sockets "$@")
    # shellcheck disable=SC2086 # one word each
    systemctl stop $sockets "$@"
    count=0
    for group in $groups; do
        while [ "$count" -lt 50 ] && grep -qs '^populated 1' \
            "/sys/fs/cgroup$group/cgroup.events" "/sys/fs/cgroup/unified$group/cgroup.events"; do
            sleep 0.2
            count=$((count + 1))
        done
    done
    # shellcheck disable=SC2086
    systemctl start $sockets "$@"
)

# engine_sockets ENGINE...: their sockets, by which a client would start one that was stopped.
engine_sockets() (
    for engine; do
        socket=${engine%.service}.socket
        if systemctl is-active --quiet "$socket" 2>/dev/null; then printf '%s\n' "$socket"; fi
    done
)

# tell_engines_outside: say so, and what to do about it; nothing where there are none.
tell_engines_outside() (
    outside=$(engines_outside | paste -sd ' ' -)
    [ -n "$outside" ] || return 0
    # shellcheck disable=SC2086 # one word each
    sockets=$(engine_sockets $outside | paste -sd ' ' -)
    {
        echo "ramnet: NOT judged as an engine until it is restarted: $outside"
        echo "  hint: sudo systemctl stop${sockets:+ $sockets} $outside && sudo systemctl start $outside"
        echo "  (ends the containers of Docker; where it has live-restore, end them first: they keep containerd where it is)"
    } >&2
)
