#!/usr/bin/env bash
# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# A run on a TPU slice of Google Kubernetes Engine, one process a host: prints the JobSet. Fill in what is empty, here
# or in the environment, and
#
#   NAME=pets IMAGE=… CONFIG=configs/images.py … pods/gke.sh [--config.x=y ...] | kubectl apply -f -
#
# The cluster needs JobSet 0.6 or later. A run that was told to stop saves and exits with 75; the JobSet then starts all
# hosts again, as often as it takes, as it does when a node is taken away. Anything else is tried 3 times more.

NAME=${NAME:-}                             # of the JobSet: small letters, digits and dashes
IMAGE=${IMAGE:-}                           # a container with this checkout in /tl_jax and tl_jax[tpu] installed
CLAIM=${CLAIM:-}                           # a PersistentVolumeClaim that all hosts may write to, mounted at /shared
CONFIG=${CONFIG:-}                         # a .py file, a run's config.json, or the name of a shipped config
WORKDIR=${WORKDIR:-}                       # below /shared
ACCELERATOR=${ACCELERATOR:-}               # tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice
TOPOLOGY=${TOPOLOGY:-}                     # 4x4
HOSTS=${HOSTS:-}                           # 4; chips of the topology by CHIPS
CHIPS=${CHIPS:-4}                          # of one host

set -u
for name in NAME IMAGE CLAIM CONFIG WORKDIR ACCELERATOR TOPOLOGY HOSTS CHIPS; do
  [ -n "${!name}" ] || { echo "error: $name is empty; see the top of pods/gke.sh" >&2; exit 2; }
done

command=(python launch.py train --config="$CONFIG" --workdir="$WORKDIR" --distributed "$@")
quoted=()
for word in "${command[@]}"; do
  # YAML's single quotes, in which nothing but the quote itself is special.
  quoted+=("'${word//\'/\'\'}'")
done

cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    # All hosts of a slice, and none of another.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 3
    rules:
      - action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          parallelism: $HOSTS
          completions: $HOSTS
          backoffLimit: 0
          podFailurePolicy:
            rules:
              # Saved; run again to go on.
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [75]
              # The node was taken away.
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
          template:
            spec:
              restartPolicy: Never
              # To finish a step and save.
              terminationGracePeriodSeconds: 180
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
              containers:
                - name: train
                  image: $IMAGE
                  workingDir: /tl_jax
                  # Without a shell before it, Python gets the SIGTERM itself.
                  command: [$(IFS=,; echo "${quoted[*]}")]
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    requests: {google.com/tpu: $CHIPS}
                    limits: {google.com/tpu: $CHIPS}
                  volumeMounts:
                    - {name: shared, mountPath: /shared}
              volumes:
                - name: shared
                  persistentVolumeClaim: {claimName: $CLAIM}
YAML
