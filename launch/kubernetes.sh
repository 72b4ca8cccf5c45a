#!/usr/bin/env bash
# Trains in Kubernetes, as an indexed job with a pod for each host:
#
#     bash launch/kubernetes.sh --image=IMAGE --claim=CLAIM --name=moecl --hosts=2 --gpus=8 \
#         --config=FILE.py --workdir=/shared/DIR [--config.KEY=VALUE ...] [--dry-run]
#
# --image holds the installed repository as its working folder; --claim is a volume claim that all
# pods may write, mounted at /shared, where the workdir must be. --dry-run prints the manifest.
moecl_defaults="image= claim= name=moecl hosts=1 gpus=8"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

[[ " ${moecl_train[*]}" == *" --workdir=/shared/"* ]] ||
  moecl_fail "--workdir must be in /shared, the volume that all pods write"
moecl_over_all_devices
command="$(moecl_quoted python3 -m moecl_jax train "${moecl_train[@]}" \
  --coordinator="$name-0.$name:1234") --process=\$JOB_COMPLETION_INDEX/$hosts"
manifest="apiVersion: v1
kind: Service
metadata:
  name: $name
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    job-name: $name
---
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
spec:
  completionMode: Indexed
  completions: $hosts
  parallelism: $hosts
  backoffLimit: 0
  template:
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
      containers:
        - name: train
          image: $image
          command: [sh, -c]
          args:
            - |-
              exec $command
          resources:
            limits:
              nvidia.com/gpu: $gpus
          volumeMounts:
            - name: shared
              mountPath: /shared
      volumes:
        - name: shared
          persistentVolumeClaim:
            claimName: $claim"
if ((moecl_dry_run)); then
  printf '%s\n' "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
