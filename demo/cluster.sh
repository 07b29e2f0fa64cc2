#!/usr/bin/env bash
# Runs three nodes of a cluster on this machine, in the foreground: data in ./data, Ctrl-C stops all of them.
# Usage: demo/cluster.sh BINARY [flags for every node...]
set -euo pipefail

binary=$1
shift
base=${STRAND_BASE_PORT:-8000}
pids=()

stop() {
  trap '' INT TERM
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  wait
  exit "${1:-0}"
}
trap 'stop 0' INT TERM

for node in 1 2 3; do
  peers=()
  for other in 1 2 3; do
    [ "$other" = "$node" ] || peers+=("node$other@127.0.0.1:$((base + other - 1))")
  done
  "$binary" serve --id "node$node" --port $((base + node - 1)) --data-dir "data/cluster/node$node" \
    --peers "$(IFS=,; echo "${peers[*]}")" --shards 4 --log-format text "$@" 2> >(sed -u "s/^/node$node  /" >&2) &
  pids+=("$!")
done

cat <<TEXT

Three nodes start on 127.0.0.1:$base, $((base + 1)) and $((base + 2)) with their data in ./data/cluster; Ctrl-C stops them.
Any node takes any request. From another terminal:

  echo '{"command":"SET","key":"foo","value":"bar"}' | nc -q1 localhost $base
  echo '{"command":"GET","key":"foo"}' | nc -q1 localhost $((base + 2))
  echo '{"command":"CLUSTER"}' | nc -q1 localhost $((base + 1))
  $binary cli --address 127.0.0.1:$base

Kill one of them (kill -9) and go on: the other two serve after a second or two.

TEXT
wait -n || true
echo "A node ended; stopping the others." >&2
stop 1
