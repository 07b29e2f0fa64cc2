#!/usr/bin/env bash
# Runs three nodes of a cluster on this machine, in the foreground: data in ./data, Ctrl-C stops all of them.
# Usage: demo/cluster.sh BINARY [flags for every node...]
set -euo pipefail

binary=$1
shift
flags=("$@")
base=${STRAND_BASE_PORT:-8000}
pids=()

stop() {
  trap '' INT TERM
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  wait
  exit "${1:-0}"
}
trap 'stop 0' INT TERM

# How a node that has been here before is started: its data directory knows the others.
again() {
  echo "$binary serve --id node$1 --port $((base + $1 - 1)) --cluster-port $((base + $1 + 999))" \
    "--data-dir data/cluster/node$1 ${flags[*]}"
}

for node in 1 2 3; do
  peers=()
  for other in 1 2 3; do
    [ "$other" = "$node" ] || peers+=("node$other@127.0.0.1:$((base + other - 1))")
  done
  "$binary" serve --id "node$node" --port $((base + node - 1)) --data-dir "data/cluster/node$node" \
    --peers "$(IFS=,; echo "${peers[*]}")" --shards 4 --log-format text "${flags[@]}" 2> >(sed -u "s/^/node$node  /" >&2) &
  pids+=("$!")
done

cat <<TEXT

Three nodes start on 127.0.0.1:$base, $((base + 1)) and $((base + 2)) with their data in ./data/cluster; Ctrl-C stops them.
Any node takes any request. From another terminal:

  echo '{"command":"SET","key":"foo","value":"bar"}' | nc -q1 localhost $base
  echo '{"command":"GET","key":"foo"}' | nc -q1 localhost $((base + 2))
  echo '{"command":"CLUSTER"}' | nc -q1 localhost $((base + 1))
  $binary cli --address 127.0.0.1:$base

  $binary cluster status --address 127.0.0.1:$base

Kill one of them and go on, the other two serve after a second or two; the line that tells of its end says how it comes back:

  kill -9 ${pids[2]}

TEXT
# A node that ends is told of and missed by nobody else: that is what a cluster is for.
running=("${pids[@]}")
while [ "${#running[@]}" -gt 0 ]; do
  wait -n -p ended "${running[@]}" || true
  for at in "${!running[@]}"; do
    [ "${running[$at]}" = "$ended" ] || continue
    unset "running[$at]"
  done
  for node in 1 2 3; do
    [ "${pids[$((node - 1))]}" = "$ended" ] || continue
    echo "node$node ended; start it again with: $(again "$node")" >&2
  done
done
echo "No node is left." >&2
exit 1
