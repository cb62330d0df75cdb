#!/usr/bin/env bash
# Installs what the tests need beside Python packages: Chromium, a C compiler and openssl.
# Nothing is installed when all of it is there. Debian and Ubuntu: apt-get as root or by sudo without a password, else the
# command that does it is printed and the script fails. XREASONER_CHROMIUM names a browser elsewhere.
set -euo pipefail
python=${1:-python3}

has_chromium() {
  [ -n "${XREASONER_CHROMIUM:-}" ] && [ -x "$XREASONER_CHROMIUM" ] && return 0
  for name in chromium google-chrome google-chrome-stable chrome; do
    command -v "$name" >/dev/null && return 0
  done
  [ -n "$(find "$HOME/.cache/ms-playwright" "$HOME/Library/Caches/ms-playwright" -maxdepth 1 -name 'chromium-*' 2>/dev/null)" ]
}

packages=()
has_chromium || packages+=(chromium)
command -v cc >/dev/null || command -v gcc >/dev/null || packages+=(gcc libc6-dev)
command -v openssl >/dev/null || packages+=(openssl)
[ ${#packages[@]} -gt 0 ] || exit 0

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
# Ubuntu's chromium package is a snap, which does not run headless in a container: there Playwright's own build is taken.
if [ "$(. /etc/os-release 2>/dev/null && echo "${ID:-}")" = ubuntu ] && [ "${packages[0]}" = chromium ]; then
  packages=("${packages[@]:1}")
  "${as_root[@]}" "$python" -m playwright install --with-deps chromium || {
    echo "the tests need Chromium: run '$python -m playwright install --with-deps chromium', or set XREASONER_CHROMIUM" >&2
    exit 1
  }
fi
if [ ${#packages[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "the tests need ${packages[*]}: install them with this system's package manager (XREASONER_CHROMIUM names a browser)" >&2
    exit 1
  fi
  echo "installing ${packages[*]} for the tests"
  { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq "${packages[@]}" >/dev/null; } || {
    echo "the tests need ${packages[*]}: run 'sudo apt-get install ${packages[*]}'" >&2
    exit 1
  }
fi
