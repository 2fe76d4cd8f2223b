#!/usr/bin/env bash
# A Chromium for the tests of the page: the system's own package.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
fail() { echo "$1" >&2; exit 1; }
command -v apt-get >/dev/null || fail "the tests of the page need Chromium; install it"
[ "$(id -u)" = 0 ] || fail "the tests of the page need Chromium; install it (Debian: sudo apt install chromium)"
echo "installing Chromium for the tests of the page (360 MB, once)"
apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } ||
  fail "apt could not install Chromium (above: why)"
