#!/usr/bin/env bash
# Started by srun on each node of a training: stages the dataset if the site has SCRATCH, then starts the
# processes of this node.
# usage: on_node.sh SCRIPT DATASET SETTINGS…
set -euo pipefail
# shellcheck source=slurm/read_site.sh
source slurm/read_site.sh
source slurm/stage.sh
script=$1 data=$2
shift 2

keep_on_scratch "$data"
data=$(staged "$data")
export OMP_NUM_THREADS=$threads

# SLURM signals the launcher and the processes alike. The processes save and exit with status 0; the
# launcher fails, which is then not a failure of the run.
told_to_end=
trap 'told_to_end=yes' TERM
"${CONTAINER[@]}" "$PYTHON" -m torch.distributed.run \
    --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" --nproc_per_node "$processes" \
    --master_addr "$SLURM_LAUNCH_NODE_IPADDR" --master_port $((10000 + SLURM_JOB_ID % 20000)) \
    -- "$script" --data.path="$data" "$@" &
launcher=$! status=0
wait "$launcher" || status=$?
if [[ -n $told_to_end ]]; then
    wait "$launcher" || true # the signal has interrupted the first wait
    status=0
fi
exit "$status"
