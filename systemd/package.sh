#!/bin/bash
# shellcheck disable=SC2154 # checkout, cache and log are of bootstrap
# A release of ramnet as a tree, and the Debian package that carries one. Sourced by bootstrap, whose
# checkout, cache, die, say, logged, release and system_python it uses.
#
# A release holds no path of the machine that built it, so it may be moved, packed and compared:
# scripts find their environment by where they are, compiled files name the place where releases
# are used, and the same sources give the same bytes.

# The place where a release is used; only tracebacks show it.
release_home=/opt/ramnet/current

# --- a release ------------------------------------------------------------------------------

# base_python: the interpreter itself, with its minor version (/usr/bin/python3.11).
base_python() {
    local python
    python=$(system_python) || die 1 "no Python of 3.11 or newer" "install python3, or set RAMNET_PYTHON"
    "$python" -c 'import os, sys; print(os.path.realpath(sys._base_executable))'
}

# source_epoch: when the sources were last changed, for everything that has to name a time.
source_epoch() {
    if [ -n "${SOURCE_DATE_EPOCH-}" ]; then
        printf %s "$SOURCE_DATE_EPOCH"
    elif ! git -c safe.directory='*' -C "$checkout" log -1 --format=%ct 2>/dev/null; then
        # A tarball, or no git here.
        find "$checkout"/{pyproject.toml,ramnet,systemd} -type f -name '[!.]*.*' ! -name '*.pyc' \
            -printf '%Ts\n' | sort -n | tail -n 1
    fi
}

# unpack_pip PYTHON DIR: the pip that ensurepip brings, as it is. To install it takes far longer.
unpack_pip() {
    "$1" - "$2" <<'PYTHON'
import ensurepip, sys, zipfile
from pathlib import Path

# Distributions keep its wheel in a place of their own.
places = [Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels")]
wheels = [wheel for place in places for wheel in sorted(place.glob("pip-*.whl"))]
zipfile.ZipFile(wheels[0]).extractall(sys.argv[1])
PYTHON
}

# compiled DIR INSIDE: compile in a fixed order and with fixed hashes; the result never looks at
# the times of the sources, which unpacking may change.
compiled() {
    logged env PYTHONHASHSEED=0 "$builder/bin/python" -m compileall -q -j 1 \
        --invalidation-mode unchecked-hash -s "$1" -p "$release_home/venv/$2" "$1" ||
        die 1 "cannot compile the Python packages" "see $log"
}

# without_traces DIR: take out what an installation notes about itself: programs with the path of
# their interpreter, and where a package was found.
without_traces() {
    rm -rf "${1:?}/bin"
    find "$1" -name direct_url.json -delete
    find "$1" -path '*.dist-info/RECORD' -exec sed -i -e '/^\.\.\//d' -e '/^bin\//d' -e '/direct_url\.json,/d' {} +
}

# locked_packages PYTHON: the locked packages as a folder, compiled; sets $builder and $packages.
# Kept in the cache, since they change with the lock file only.
locked_packages() {
    local python=$1 key home
    key=$({ "$python" -c 'import sys, sysconfig
print(sysconfig.get_platform(), sys.version)' && cat "$checkout/requirements.lock" "${BASH_SOURCE[0]}"; } | sha256sum | cut -c1-12)
    home=$cache/packages-$key
    builder=$home/builder packages=$home/site
    [ ! -e "$home/ready" ] || return 0
    say "installing Python packages ($("$python" -V), requirements.lock)"
    rm -rf "$cache"/packages-*
    mkdir -p "$home"
    if ! { logged "$python" -m venv --without-pip "$builder" && logged unpack_pip "$python" "$home/pip"; }; then
        die 1 "cannot make a virtual environment with $python" "is its venv package installed?"
    fi
    logged env "PYTHONPATH=$home/pip" "$builder/bin/python" -m pip install -q --no-input \
        --disable-pip-version-check --root-user-action=ignore --no-compile --no-deps \
        --require-hashes --only-binary :all: --target "$packages" -r "$checkout/requirements.lock" ||
        die 1 "cannot install Python packages" \
            "is this machine online? pip's index and proxy come from its own configuration (pip config list)"
    without_traces "$packages"
    # Builds ramnet itself; no release needs it.
    mkdir "$home/build"
    mv "$packages"/flit_core* "$home/build"
    compiled "$packages" "$(site_of "$python")"
    touch "$home/ready"
}

# site_of PYTHON: where its packages are, inside an environment.
site_of() { printf 'lib/%s/site-packages' "${1##*/}"; }

# build_release DIR: fill the empty folder DIR with a release: venv, libexec, systemd, share.
build_release() {
    local dir=$1 python site work
    python=$(base_python)
    site=$(site_of "$python")
    locked_packages "$python"
    work=$(mktemp -d "$cache/release.XXXXXX")
    mkdir -p "$dir/venv/bin" "$dir/venv/${site%/*}" "$dir/libexec/docker" "$dir/systemd" "$dir/share"
    cp -r "$packages" "$dir/venv/$site"
    # From a copy: the checkout may hold what an editor or an interpreter left there.
    mkdir "$work/source"
    cp -r "$checkout"/{pyproject.toml,README.md,ramnet} "$work/source"
    mkdir "$work/wheel"
    # A wheel without compiled code is only unpacked.
    if ! { logged env "PYTHONPATH=$packages/../build" "SOURCE_DATE_EPOCH=$(source_epoch)" \
        "$builder/bin/python" -m flit_core.wheel --outdir "$work/wheel" "$work/source" &&
        logged "$builder/bin/python" -m zipfile -e "$work"/wheel/*.whl "$work/site"; }; then
        die 1 "cannot build the Python package of ramnet" "see $log"
    fi
    without_traces "$work/site"
    compiled "$work/site" "$site"
    cp -r "$work/site/." "$dir/venv/$site"
    rm -rf "$work"
    environment_files "$dir/venv" "$python"
    install -m 755 "$checkout"/systemd/ramnet-{lock,wait,boot,docker-proxy} "$dir/libexec"
    ln -s ../ramnet-docker-proxy "$dir/libexec/docker/docker-proxy"
    install -m 644 "$checkout"/systemd/*.{service,socket,slice,conf} "$dir/systemd"
    install -m 644 "$checkout/docs/ramnet.8" "$dir/share"
    completions "$dir"
    without_build_paths "$dir"
}

# environment_files VENV PYTHON: what makes the folder an environment, with no path but Python's own.
environment_files() {
    ln -s "$2" "$1/bin/python3"
    ln -s python3 "$1/bin/python"
    printf 'home = %s\ninclude-system-site-packages = false\nversion = %s\n' \
        "${2%/*}" "${2##*python}" >"$1/pyvenv.cfg"
    cat >"$1/bin/ramnet" <<'SCRIPT'
#!/bin/sh
# ramnet, in the environment where this file is: no path is written down, so a release can be moved.
self=$(readlink -f -- "$0")
exec "${self%/*}/python3" -sP -m ramnet "$@"
SCRIPT
    chmod 755 "$1/bin/ramnet"
}

# completions DIR: made by the program itself, for the shells that it knows.
completions() {
    mkdir "$1/share/completions"
    # In one process. The version of bash, which click asks it for, is left out: a build machine's own.
    "$1/venv/bin/python3" -sP - "$1/share/completions" <<'PYTHON' || die 1 "cannot write the completions" "see ramnet/cli/main.py"
import sys
from pathlib import Path

from click.shell_completion import BashComplete, FishComplete, ZshComplete
from ramnet.cli.main import cli

for kind, name in (BashComplete, "ramnet.bash"), (ZshComplete, "_ramnet"), (FishComplete, "ramnet.fish"):
    shell = kind(cli, {}, "ramnet", "_RAMNET_COMPLETE")
    Path(sys.argv[1], name).write_text(shell.source_template % shell.source_vars() + "\n", "utf-8")
PYTHON
}

# without_build_paths DIR: nothing in it may name where it was built. Compiled files too.
without_build_paths() {
    local found
    found=$(grep -rlFe "$packages" -e "$builder" -e "$cache/release." -e "$1/" -e "$checkout/ramnet/" "$1") ||
        return 0
    die 1 "a path of this machine is in the release: ${found%%$'\n'*}" "a fault of systemd/package.sh"
}

# release_id DIR VERSION: a name that changes with the content.
release_id() {
    local hash
    hash=$(cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
    printf '%s-%s' "$2" "${hash:0:10}"
}

# --- the Debian package ---------------------------------------------------------------------

# package_deb [--output DIR]: print the path of the package that was built.
package_deb() {
    local output=$cache/debs
    while [ $# -gt 0 ]; do
        case $1 in
            --output)
                shift
                output=${1-}
                ;;
            --output=*) output=${1#*=} ;;
            *) die 2 "unknown argument: '$1'" "usage: ./bootstrap deb [--output DIR]" ;;
        esac
        [ -n "$output" ] || die 2 "--output needs a folder" "usage: ./bootstrap deb [--output DIR]"
        shift
    done
    mkdir -p "$output" || die 1 "cannot write to $output" "choose another --output"
    local python stage file
    python=$(base_python)
    case $python in
        /usr/bin/python3.*) ;;
        *) die 2 "$python is of no Debian package" "unset RAMNET_PYTHON: a package can depend on the system's own Python only" ;;
    esac
    command -v dpkg-deb >/dev/null || die 3 "no dpkg-deb here" "Debian packages are built on Debian or Ubuntu"
    stage=$(mktemp -d "$cache/deb-stage.XXXXXX")
    (
        trap 'rm -rf "$stage"' EXIT
        deb_tree "$stage" "$python"
        deb_control "$stage" "$python"
        SOURCE_DATE_EPOCH=$(source_epoch)
        export SOURCE_DATE_EPOCH
        find "$stage" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
        # A file of that name is there whole or not at all.
        file=ramnet_$(deb_version "$stage")_$(dpkg --print-architecture).deb
        say "packing $file"
        logged dpkg-deb --root-owner-group --build "$stage" "$output/.$file" ||
            die 1 "cannot build the package" "see $log"
        mv "$output/.$file" "$output/$file"
        printf '%s/%s\n' "$output" "$file"
    )
}

deb_version() { "$1/usr/lib/ramnet/release/venv/bin/python3" -sP -c 'import ramnet; print(ramnet.__version__)'; }

# deb_tree STAGE PYTHON: the files of the package.
deb_tree() {
    local stage=$1 root release engine doc
    release=$stage/usr/lib/ramnet/release
    root=$stage/usr/lib/systemd/system
    doc=$stage/usr/share/doc/ramnet
    chmod 755 "$stage"
    mkdir -p "$release" "$root" "$doc" "$stage"/usr/bin "$stage"/usr/share/{man/man8,lintian/overrides} \
        "$stage"/usr/share/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
    build_release "$release"
    ln -s "$release_home/venv/bin/ramnet" "$stage/usr/bin/ramnet"
    install -m 644 "$release"/systemd/*.{service,socket,slice} "$root"
    for engine in docker containerd podman buildkit; do
        install -D -m 644 "$release/systemd/engine.conf" "$root/$engine.service.d/10-ramnet.conf"
    done
    gzip -9nc "$release/share/ramnet.8" >"$stage/usr/share/man/man8/ramnet.8.gz"
    cp "$release/share/completions/ramnet.bash" "$stage/usr/share/bash-completion/completions/ramnet"
    cp "$release/share/completions/_ramnet" "$stage/usr/share/zsh/vendor-completions"
    cp "$release/share/completions/ramnet.fish" "$stage/usr/share/fish/vendor_completions.d"
    deb_text changelog "$checkout/CHANGELOG.md" "$(deb_version "$stage")" "$(deb_maintainer)" \
        "$(source_epoch)" | gzip -9n >"$doc/changelog.gz"
    deb_text copyright "$release/venv/$(site_of "$2")" "$(date -u -d "@$(source_epoch)" +%Y)" \
        >"$doc/copyright"
    install -m 644 "$checkout/README.md" "$doc"
    install -m 644 "$checkout/systemd/debian/lintian-overrides" "$stage/usr/share/lintian/overrides/ramnet"
}

deb_maintainer() { printf '%s <%s>' "${DEBFULLNAME:-The ramnet project}" "${DEBEMAIL:-ramnet@ramnet.invalid}"; }

# deb_text ARGUMENT...: see systemd/debian/texts.py
deb_text() { "$builder/bin/python" -I "$checkout/systemd/debian/texts.py" "$@"; }

# deb_control STAGE PYTHON: the control file and the maintainer scripts.
deb_control() {
    local stage=$1 python=${2##*/} version id script target=$1/DEBIAN
    version=$(deb_version "$stage")
    id=$(release_id "$stage/usr/lib/ramnet/release" "$version")
    mkdir "$target"
    (cd "$stage" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$target/md5sums"
    sed -e "s|@VERSION@|$version|" -e "s|@ARCH@|$(dpkg --print-architecture)|" -e "s|@PYTHON@|$python|" \
        -e "s|@MAINTAINER@|$(deb_maintainer)|" -e "s|@SIZE@|$(du -sk --apparent-size "$stage/usr" | cut -f1)|" \
        "$checkout/systemd/debian/control" >"$target/control"
    for script in preinst postinst prerm postrm; do
        # What is shared is written into each: no script may need a file that is gone or not yet there.
        sed -e "s|@ID@|$id|" -e "/^#LIFECYCLE#\$/{
            r $checkout/systemd/lifecycle.sh
            d
        }" "$checkout/systemd/debian/$script" >"$target/$script"
        chmod 755 "$target/$script"
    done
    chmod 644 "$target/control" "$target/md5sums"
}
