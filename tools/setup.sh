#!/bin/sh
# Installs what `make demo` or `make test` needs and this machine lacks.
#
#   tools/setup.sh demo    the servers of the demo
#   tools/setup.sh test    also PgBouncer, Node.js, a C compiler (for go test -race)
#                          and a browser
#
# As root on Debian or a derivative it installs packages; anywhere else it
# prints what is missing and how to get it, and the caller goes on with what
# is there. Nothing is installed that is already there, no package may start
# a service or create a database cluster, and the machine's own policy on
# that is left as it was found.
set -eu

purpose=${1:?usage: tools/setup.sh demo|test}

have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

have_postgres() { # Debian keeps the servers' programs off PATH
    have initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1
}

have_fonts() { # without any font, a page in the browser has no letters
    [ -n "$(find /usr/share/fonts /usr/local/share/fonts -name '*.[to]t[fc]' 2>/dev/null | head -n 1)" ]
}

missing=
need() { missing="$missing $1"; }

have_postgres || need postgresql-15
have redis-server || need redis-server
have memcached || need memcached
case $purpose in
demo) ;;
test)
    have pgbouncer || need pgbouncer
    have node || need nodejs # for a client that is not in Go
    have npm || need npm
    have gcc || need gcc
    [ -e /usr/include/stdlib.h ] || need libc6-dev
    have chromium || need chromium
    have_fonts || need fonts-liberation
    ;;
*)
    echo "setup: unknown purpose \"$purpose\": want demo or test" >&2
    exit 2
    ;;
esac

if ! command -v go >/dev/null 2>&1; then
    echo "setup: Go is missing: install Go 1.26 or newer from https://go.dev/dl and put it on PATH" >&2
    exit 1
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: missing on this machine:$missing" >&2
    if command -v apt-get >/dev/null 2>&1; then
        echo "setup: get it with: sudo apt-get install --no-install-recommends$missing" >&2
    else
        echo "setup: those are Debian's names; install your system's packages of the same, with PostgreSQL" >&2
        echo "setup: 15, PgBouncer 1.18, Redis 7.0 and memcached 1.6 or newer, and see that the programs" >&2
        echo "setup: are on PATH" >&2
    fi
    exit 0
fi

policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.conf
saved=$(mktemp -d)

restore() {
    if [ -e "$saved/policy" ] || [ -L "$saved/policy" ]; then
        mv -f "$saved/policy" "$policy"
    else
        rm -f "$policy"
    fi
    if [ -e "$saved/clusters" ]; then
        cp -p "$saved/clusters" "$clusters"
    fi
    rm -rf "$saved"
}
# A signal must leave the policy as it was, too.
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ -e "$policy" ] || [ -L "$policy" ]; then
    mv "$policy" "$saved/policy"
fi
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o Dpkg::Use-Pty=0 "$@" >"$saved/log" 2>&1 || {
        echo "setup: apt-get install $* failed:" >&2
        tail -n 20 "$saved/log" >&2
        exit 1
    }
}

echo "setup: installing$missing"
apt-get update -qq >"$saved/log" 2>&1 || tail -n 5 "$saved/log" >&2
case $missing in
*postgresql-15*)
    # The package of the server creates a cluster when it is configured,
    # unless this file, which another package brings, says no.
    install postgresql-common
    cp -p "$clusters" "$saved/clusters"
    echo 'create_main_cluster = false' >>"$clusters"
    ;;
esac
# shellcheck disable=SC2086 # a list of names
install $missing
