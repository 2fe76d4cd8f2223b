#!/usr/bin/env bash
# Time from the packed folder's download to the demo's first training step: tests/measured/install.sh FILE.tar.zst
# The download is a copy from this machine's own web server over loopback: add size / bandwidth for a real one.
set -euo pipefail
file=$(realpath "${1:?usage: tests/measured/install.sh FILE.tar.zst}")
place=$(mktemp -d)
python3 -m http.server --bind 127.0.0.1 --directory "$(dirname "$file")" 8797 >/dev/null 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; rm -rf "$place"' EXIT
cd "$place"
until curl -sfI http://127.0.0.1:8797/ >/dev/null; do sleep 0.1; done

now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", b - a }'; }

start=$(now)
curl -sfO "http://127.0.0.1:8797/$(basename "$file")"
echo "downloaded   $(since "$start"), $(du -m --apparent-size "$(basename "$file")" | cut -f1) MiB"
tar --zstd -xf "$(basename "$file")"
echo "unpacked     $(since "$start"), $(du -sm --apparent-size "$(basename "$file" .tar.zst)" | cut -f1) MiB"
env -i PATH=/usr/bin:/bin HOME="$place" "$(basename "$file" .tar.zst)/lorabooth" doctor >/dev/null
echo "doctor       $(since "$start")"
touch demo.log
env -i PATH=/usr/bin:/bin HOME="$place" "$(basename "$file" .tar.zst)/lorabooth" demo --device cpu > demo.log 2>&1 &
demo=$!
until grep -qE 'training +[1-9][0-9]*/' demo.log; do kill -0 $demo || { cat demo.log; exit 1; }; sleep 0.2; done
echo "first step   $(since "$start"), of which the demo had $(ps -o cputimes= -p $demo | tr -d ' ') s of a core"
kill $demo; wait $demo || true
