#!/usr/bin/env bash
# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# A run on the GPUs of a SLURM cluster, one process a node. Fill in what is empty, here or in the environment, and
#
#   CONFIG=configs/text.py WORKDIR=/shared/runs/text sbatch --nodes=2 --gpus-per-node=8 pods/slurm.sh [--config.x=y ...]
#
# with what your cluster wants beside it (--account, --partition, --time). Shortly before its time is over, and when it
# is preempted, the run saves and the job goes back into the queue; it then goes on in the same workdir.

#SBATCH --job-name=tl_jax
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180

CONFIG=${CONFIG:-}                         # a .py file, a run's config.json, or the name of a shipped config
WORKDIR=${WORKDIR:-}                       # a folder that all nodes see
CODE=${CODE:-${SLURM_SUBMIT_DIR:-}}        # the checkout with launch.py, which all nodes see
PYTHON=${PYTHON:-python}                   # of the environment that tl_jax is installed in

set -u
for name in CONFIG WORKDIR CODE; do
  [ -n "${!name}" ] || { echo "error: $name is empty; see the top of pods/slurm.sh" >&2; exit 2; }
done
cd "$CODE" || exit 2

# Told by SLURM of one process a node, JAX would give that process one GPU.
if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

# A process that is done saving must not take down one that still saves.
srun --kill-on-bad-exit=0 "$PYTHON" launch.py train --config="$CONFIG" --workdir="$WORKDIR" --distributed "$@" &
step=$!

# To the processes: a SIGTERM to srun itself would end them at once.
trap 'asked=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
while true; do
  asked=
  wait "$step"
  status=$?
  # A signal ends the waiting, not the run.
  [ -n "$asked" ] || break
done

if [ "$status" -eq 75 ]; then
  echo "saved and stopped; job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
