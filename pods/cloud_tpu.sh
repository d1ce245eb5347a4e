#!/usr/bin/env bash
# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# A run on a Cloud TPU slice, one process a host: asks for the slice, starts the run on all its hosts, gives the slice
# back. Fill in what is empty, here or in the environment, and, in the checkout,
#
#   NAME=pets PROJECT=… ZONE=… CONFIG=configs/images.py … pods/cloud_tpu.sh [--config.x=y ...]
#
# A run that was stopped, or whose slice was taken away, goes on in the same workdir on the next slice.

NAME=${NAME:-}                             # of the queued resource and of its node
PROJECT=${PROJECT:-}                       # of Google Cloud
ZONE=${ZONE:-}                             # us-west4-a
ACCELERATOR=${ACCELERATOR:-}               # v5litepod-16
RUNTIME=${RUNTIME:-}                       # v2-alpha-tpuv5-lite
CONFIG=${CONFIG:-}                         # a .py file, a run's config.json, or the name of a shipped config
WORKDIR=${WORKDIR:-}                       # that all hosts see: gs://…, or a mounted share
OPTIONS=${OPTIONS:---spot}                 # of queued-resources create, one or several; " " for none
SETUP=${SETUP:-python3 -m pip install -q '.[tpu]' gcsfs}    # run on every host before it starts
ATTEMPTS=${ATTEMPTS:-100}                  # slices to ask for, at most
WAIT=${WAIT:-30}                           # seconds between two looks

set -u
for name in NAME PROJECT ZONE ACCELERATOR RUNTIME CONFIG WORKDIR; do
  [ -n "${!name}" ] || { echo "error: $name is empty; see the top of pods/cloud_tpu.sh" >&2; exit 2; }
done

tpus() { gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }

state() { tpus queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null; }

give_back() { tpus queued-resources delete "$NAME" --force --quiet; }

# A slice that is ours and up.
get_slice() {
  while true; do
    case $(state) in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING) give_back ;;
      "")
        # shellcheck disable=SC2086  # Several options in one variable.
        tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR" \
          --runtime-version="$RUNTIME" $OPTIONS || return 1
        ;;
    esac
    sleep "$WAIT"
  done
}

archive=$(mktemp --suffix=.tar.gz) || exit 1
trap 'rm -f "$archive"' EXIT
tar -czf "$archive" --exclude=./runs --exclude=./.git . || exit 1
printf -v command '%q ' python3 launch.py train --config="$CONFIG" --workdir="$WORKDIR" --distributed "$@"
unpack='rm -rf tl_jax && mkdir tl_jax && tar -xzf tl_jax.tar.gz -C tl_jax && cd tl_jax'
# gcloud tells of the worst host alone, so each says how it ended.
remote="$unpack && $SETUP && { $command; echo \"launch.py ended with \$?\"; }"

said() { grep -qx "$1" <<<"$ended"; }

failures=0
for _ in $(seq "$ATTEMPTS"); do
  get_slice || exit 1
  ended=$(
    tpus tpu-vm scp "$archive" "$NAME:tl_jax.tar.gz" --worker=all >&2 &&
      tpus tpu-vm ssh "$NAME" --worker=all --command="$remote" 2>&1 | tee /dev/stderr |
      sed -n 's/.*launch\.py ended with \([0-9]*\).*/\1/p' | sort -u
  )
  if [ "$ended" = 0 ]; then
    give_back
    exit 0
  fi
  # Wrong input stays wrong, and what fails three times fails again. All else, 75 or a slice that was taken away while
  # it ran, goes on from what was saved.
  if said 2; then
    give_back
    exit 2
  fi
  if said 1; then failures=$((failures + 1)); fi
  [ "$failures" -lt 3 ] || break
  sleep "$WAIT"
done
give_back
echo "error: not done, see above" >&2
exit 1
