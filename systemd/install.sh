#!/bin/bash
# `bootstrap install` and `bootstrap uninstall`. Sourced by bootstrap, whose checkout, cache, log, die,
# say, hold_lock and install_missing it uses; package.sh and lifecycle.sh are sourced beside it.
#
# Nothing is changed on the machine before the new release is whole and has judged the policy and the
# kernel. Every step may be done again: a run that was interrupted is put right by the next one.
# shellcheck disable=SC2154 # what the other files set

units=(ramnetengines.slice ramnetproxy.slice ramnet-lock.service ramnet-helper.service
    ramnet-notice.socket ramnet-notice.service ramnet.service)
unit_folder=/etc/systemd/system
policy_file=/etc/ramnet/policy.toml
policy_aside=/etc/ramnet/.policy.toml.before
state_folders=(/var/lib/ramnet /run/ramnet)
ready_seconds=${RAMNET_READY_SECONDS:-60}

# What is put below /usr/local, and where it leads to below the release in use.
declare -A links=(
    [/usr/local/bin/ramnet]=venv/bin/ramnet
    [/usr/local/share/man/man8/ramnet.8]=share/ramnet.8
    [/usr/local/share/bash-completion/completions/ramnet]=share/completions/ramnet.bash
    [/usr/local/share/zsh/site-functions/_ramnet]=share/completions/_ramnet
    [/usr/local/share/fish/vendor_completions.d/ramnet.fish]=share/completions/ramnet.fish
)

# --- before anything is changed -------------------------------------------------------------

require_no_package() {
    case $(dpkg-query --show --showformat='${db:Status-Status}' ramnet 2>/dev/null) in
        "" | not-installed | config-files) return 0 ;;
    esac
    die 1 "ramnet is installed as a Debian package here" "remove it first (apt-get remove ramnet), or upgrade the package"
}

# Whoever can change the interpreter of the daemon is root.
require_python_of_root() {
    local python owner
    python=$(base_python)
    owner=$(stat --format=%u "$python")
    [ "$owner" = 0 ] || die 2 "$python does not belong to root" "unset RAMNET_PYTHON: the daemon runs on the system's Python"
    case $python in
        /tmp/* | /var/tmp/* | /run/*) die 2 "$python is in a place that the daemon does not see" "unset RAMNET_PYTHON" ;;
    esac
}

require_policy() {
    case $1 in
        *.json) die 2 "a policy is installed as policy.toml, and $1 is JSON" "write it in TOML" ;;
    esac
    [ -f "$1" ] || die 2 "there is no file $1" "--policy names a policy file"
}

# make_release: build a release from the checkout, and sets $id to its name.
make_release() {
    local stage=$ramnet_home/releases/.new-from-checkout
    rm -rf "$stage"
    mkdir -p "$stage" || die 1 "cannot write to $ramnet_home" "is its file system full, or read-only?"
    build_release "$stage"
    id=$(release_id "$stage" "$("$stage/venv/bin/python3" -sP -c 'import ramnet; print(ramnet.__version__)')")
    id=$(release_add "$stage" "$id") ||
        die 1 "cannot put the release into $ramnet_home" "is its file system full?"
    rm -rf "$stage"
}

# judged_by_release COMMAND...: what the new release has to say about this machine.
judged_by_release() {
    logged env PYTHONDONTWRITEBYTECODE=1 "$ramnet_home/releases/$id/venv/bin/ramnet" "$@" 2>/dev/null
}

require_valid_policy() {
    judged_by_release policy validate "$1" && return 0
    cat "$log" >&2
    die 1 "the policy $1 is not valid; nothing was changed" "see above; ramnet policy validate tells the same"
}

require_kernel() {
    local code=0
    judged_by_release check || code=$?
    [ "$code" -eq 0 ] && return 0
    # The features that are missing come last, and then the reason.
    tail -n 40 "$log" >&2
    [ "$code" -ne 3 ] || die 3 "this kernel cannot be enforced; nothing was changed" "see above"
    die 1 "ramnet check failed; nothing was changed" "see above"
}

# --- the machine's files --------------------------------------------------------------------

# put_file FROM TO: exchange it in one step, if it is another; then $changed is set.
put_file() {
    cmp -s "$1" "$2" && [ ! -L "$2" ] && return 0
    changed=yes
    mkdir -p "${2%/*}" && install -m 644 "$1" "$2.ramnet-new" && sync "$2.ramnet-new" && mv -f "$2.ramnet-new" "$2"
}

# put_units: those of the release in use.
put_units() {
    local unit engine from=$ramnet_home/current/systemd
    for unit in "${units[@]}"; do put_file "$from/$unit" "$unit_folder/$unit" || return 1; done
    # For all of them: an engine that is installed later is to have its place as well.
    for engine in $ramnet_engines; do
        put_file "$from/engine.conf" "$unit_folder/$engine.d/10-ramnet.conf" || return 1
    done
    # An engine whose drop-in is lost with the power would run outside of the slice.
    sync -f "$unit_folder"
}

remove_drop_ins() {
    local engine
    for engine in $ramnet_engines; do
        rm -f "$unit_folder/$engine.d/10-ramnet.conf"{,.ramnet-new}
        rmdir "$unit_folder/$engine.d" 2>/dev/null || true
    done
}

remove_units() {
    local unit
    for unit in "${units[@]}"; do
        rm -f "$unit_folder/$unit"{,.ramnet-new} "$unit_folder"/*.wants/"$unit"
    done
}

put_links() {
    local place
    for place in "${!links[@]}"; do
        case $(readlink "$place" || [ ! -e "$place" ] || echo "somebody else's") in
            "" | "$ramnet_home"/*) ;;
            *) say "left as it is, not ours: $place" && continue ;;
        esac
        mkdir -p "${place%/*}"
        ln -sfn "$ramnet_home/current/${links[$place]}" "$place" || return 1
    done
    proxy_link
}

remove_links() {
    local place folder
    proxy_unlink
    for place in "${!links[@]}"; do
        case $(readlink "$place") in
            "$ramnet_home"/*) rm -f "$place" ;;
        esac
        # What put_links had to make for it; a plain Debian has bin, share and share/man there.
        for folder in "${place%/*}" "$(dirname "${place%/*}")"; do
            case $folder in
                /usr/local/bin | /usr/local/share | /usr/local/share/man | /usr/local) ;;
                *) rmdir "$folder" 2>/dev/null || true ;;
            esac
        done
    done
}

put_policy() {
    if [ -n "$1" ]; then
        mkdir -p "${policy_file%/*}"
        [ ! -e "$policy_file" ] || cp -p "$policy_file" "$policy_aside" || return 1
        put_file "$1" "$policy_file"
    elif [ ! -e "$policy_file" ]; then
        # Whatever else a person finds there is another one's file.
        policy_begin >/dev/null || return 1
        say "wrote $policy_file, which allows Docker Hub: edit it, a saved change is in force at once"
    fi
}

policy_back() {
    [ ! -e "$policy_aside" ] || mv -f "$policy_aside" "$policy_file"
}

# --- install --------------------------------------------------------------------------------

# put_in_place POLICY: from here on the machine is changed.
put_in_place() {
    changed=""
    release_switch "$id" && put_policy "$1" && put_units && put_links || return 1
    systemctl daemon-reload || return 1
    systemctl enable --quiet ramnet-lock.service ramnet.service || return 1
    # Started where it does not stand, never stopped: it counts as active from then on.
    systemctl start ramnet-lock.service || return 1
    if [ "$changed" = "" ] && [ "$(daemon_release)" = "$id" ] && systemctl is-active --quiet ramnet.service; then
        return 0
    fi
    daemon_restart && daemon_ready "$ready_seconds"
}

# back_to RELEASE: what was there before.
back_to() {
    daemon_last_words >&2
    policy_back
    if [ -n "$1" ] && [ "$1" != "$id" ]; then
        say "back to the release before, $1"
        if release_switch "$1" && put_units && put_links && systemctl daemon-reload &&
            daemon_restart && daemon_ready "$ready_seconds"; then
            release_prune
            die 1 "the new release did not become ready in $ready_seconds s; the one before enforces again" \
                "what the new one said is above; rules were in force throughout"
        fi
        die 1 "neither the new release nor the one before became ready" \
            "rules that are in force stay in force; see: journalctl -u ramnet"
    fi
    if [ -z "$1" ]; then
        take_down
        die 1 "ramnet did not become ready in $ready_seconds s; what was installed is removed again" "what it said is above"
    fi
    die 1 "ramnet did not become ready in $ready_seconds s" "rules that are in force stay in force; see: journalctl -u ramnet"
}

without_systemd() {
    grep -qi microsoft /proc/sys/kernel/osrelease ||
        die 3 "no systemd runs here" "ramnet is a service of systemd, or of WSL2; \`ramnet run\` runs in the foreground"
    # The units as well: wsl.conf may say that the next start is one with systemd.
    if ! { release_switch "$id" && put_policy "$1" && put_units && put_links; }; then
        policy_back
        die 1 "cannot install" "is the disk full?"
    fi
    rm -f "$policy_aside"
    release_prune
    trap - EXIT INT TERM HUP
    exec 9>&-
    # A daemon that runs makes room for this release; where none does it says so.
    "$ramnet_home/current/libexec/ramnet-boot" restart || true
    exec "$ramnet_home/current/venv/bin/ramnet" wsl install
}

restart_engines() {
    local outside
    outside=$(engines_outside)
    if [ "$1" = now ] && [ -n "$outside" ]; then
        # shellcheck disable=SC2086 # one word each
        say "restarting" $outside
        # shellcheck disable=SC2086
        engines_restart $outside || die 1 "an engine did not start again" "systemctl status $outside"
    fi
    tell_engines_outside
}

command_install() {
    local policy="" engines=later before id changed
    while [ $# -gt 0 ]; do
        case $1 in
            --policy)
                [ $# -gt 1 ] || die 2 "--policy needs a file" "see ./bootstrap help"
                policy=$2
                shift
                ;;
            --policy=*) policy=${1#*=} ;;
            --restart-engines=now | --restart-engines=later) engines=${1#*=} ;;
            *) die 2 "unknown argument: '$1'" "see ./bootstrap help" ;;
        esac
        shift
    done
    require_root install
    require_distribution
    require_python_choice
    require_no_package
    if [ -n "$policy" ]; then
        require_policy "$policy"
        policy=$(realpath "$policy")
    fi
    cd / # pip asks where it is, and the folder of the caller may be gone
    hold_lock
    install_missing install
    require_python_of_root
    make_release
    [ -z "$policy" ] || require_valid_policy "$policy"
    [ -n "$policy" ] || [ ! -e "$policy_file" ] || judged_by_release policy validate ||
        say "warning: $policy_file is not valid (ramnet policy validate): a policy that is in force stays, else engines are refused everything"
    require_kernel
    with_systemd || without_systemd "$policy"
    # What runs is what was used last, also where an earlier upgrade was interrupted.
    before=$(daemon_release)
    [ -n "$before" ] && [ -x "$ramnet_home/releases/$before/venv/bin/ramnet" ] || before=$(release_current)
    if [ "$before" = "$id" ]; then
        say "release $id is there; putting right what is missing"
    else
        say "installing release $id${before:+, in place of $before}"
    fi
    # Until it stands, or what was there before does: a minute or two.
    trap '' INT TERM HUP
    put_in_place "$policy" || back_to "$before"
    rm -f "$policy_aside"
    release_prune
    sync -f "$ramnet_home"
    sync -f "$unit_folder"
    # Exit code 4, such as while engines run outside of the slice, is told by what it prints.
    { "$ramnet_home/current/venv/bin/ramnet" status 2>&1 || true; } | sed -n 1,5p
    restart_engines "$engines"
}

# --- uninstall ------------------------------------------------------------------------------

# take_down: stop enforcing, and remove everything but /etc/ramnet.
take_down() {
    local ramnet=$ramnet_home/current/venv/bin/ramnet
    if [ -x "$ramnet" ] && grep -qs ramnet-boot /etc/wsl.conf; then
        "$ramnet" wsl uninstall || say "/etc/wsl.conf still starts ramnet: take it out by hand"
    fi
    # Without systemd; it has a word to say where nothing is supervised.
    with_systemd || "$ramnet_home/current/libexec/ramnet-boot" stop 2>/dev/null || true
    # First, and told to systemd: an engine that starts from now on does not ask for ramnet.
    remove_drop_ins
    if with_systemd; then
        systemctl daemon-reload || true
        systemctl stop ramnet.service 2>/dev/null || true
    fi
    if [ -x "$ramnet" ]; then "$ramnet" off || true; fi
    if with_systemd; then
        systemctl stop ramnet-notice.socket ramnet-notice.service ramnet-lock.service 2>/dev/null || true
        systemctl reset-failed ramnet.service ramnet-notice.service ramnet-lock.service 2>/dev/null || true
        stop_slices
    fi
    remove_units
    if with_systemd; then systemctl daemon-reload || true; fi
    remove_links
    rm -rf "${state_folders[@]}" "$ramnet_home"/{releases,current,.current} "$policy_aside"
    rmdir "$ramnet_home" 2>/dev/null || true
}

# A slice that is stopped takes what is in it along: engines go on in theirs.
stop_slices() {
    local slice
    for slice in ramnetengines ramnetproxy; do
        if grep -qs '^populated 0' /sys/fs/cgroup/{,unified/}"$slice.slice/cgroup.events"; then
            systemctl stop "$slice.slice" 2>/dev/null || true
        fi
    done
}

command_uninstall() {
    local purge="" running=""
    case $* in
        "") ;;
        --purge) purge=yes ;;
        *) die 2 "unknown argument: '$*'" "see ./bootstrap help" ;;
    esac
    require_root uninstall
    require_no_package
    hold_lock
    trap '' INT TERM HUP
    take_down
    [ -z "$purge" ] || rm -rf /etc/ramnet
    # What bootstrap keeps of an installation. The rest of its folder is that of tests and the demo.
    rm -rf "$cache"/packages-* "$cache"/release.* "$log"
    trap - EXIT
    rm -f "$cache/lock"
    rmdir "$cache" 2>/dev/null || true
    if with_systemd; then running=$(engines_active | paste -sd ' ' -); fi
    if rules_in_force; then
        die 1 "ramnet is removed, but RULES ARE STILL IN FORCE here (see above; another distribution of WSL2 may enforce)" \
            "if nobody else enforces: nft delete table inet ramnet; nft delete table netdev ramnet"
    fi
    say "ramnet is removed; nothing is enforced any more${running:+, $running run on and are not judged}"
    [ -n "$purge" ] || [ ! -e /etc/ramnet ] || say "/etc/ramnet is left; uninstall --purge removes it too"
}
