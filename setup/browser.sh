#!/usr/bin/env bash
# A Chromium for the tests of the page: the system's own package. Without one those tests say that they are skipped.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
skip() { echo "$1; without it these tests are skipped" >&2; exit 0; }
command -v apt-get >/dev/null || skip "the tests of the page need Chromium; install it"
[ "$(id -u)" = 0 ] || skip "the tests of the page need Chromium; install it (Debian: sudo apt install chromium)"
echo "installing Chromium for the tests of the page (360 MB, once)"
apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } ||
  skip "apt could not install Chromium for the tests of the page (above: why)"
