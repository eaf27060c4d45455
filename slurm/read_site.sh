# shellcheck shell=bash
# Reads and checks the site's settings. Sourced by submit.sh, by every job and on every node, in the
# repository's root.

site_mistake() {
    echo "${reader:-slurm}: error: $CPPRUNE_SITE: $1" >&2
    exit 2
}

bash -n "$CPPRUNE_SITE" || site_mistake "cannot be read, see above"
# `module load` and `conda activate` expect a shell that continues after a failure and treats unset
# variables as empty. Their output goes to standard error, as it is not part of a script's answer.
set +eu +o pipefail
# shellcheck source=slurm/site.env
source "$CPPRUNE_SITE" >&2
set -euo pipefail

for name in OPTIONS GPU_OPTIONS CPU_OPTIONS CONTAINER; do
    # A plain text would be split into words differently than intended.
    [[ -z ${!name:-} || $(declare -p "$name") == "declare -"[aA]* ]] ||
        site_mistake "$name must be a list: $name=(${!name})"
    [[ -n ${!name:-} ]] || declare -a "$name=()"
done
for name in NODES CPUS_PER_NODE SAVE_SECONDS; do
    [[ ${!name:-} =~ ^[1-9][0-9]*$ ]] ||
        site_mistake "$name=${!name:-}: must be a whole number, at least 1"
done
[[ ${MAX_REQUEUES:-} =~ ^(0|[1-9][0-9]*)$ ]] ||
    site_mistake "MAX_REQUEUES=${MAX_REQUEUES:-}: must be a whole number"
[[ ${SHARD_TASKS:-} =~ ^[1-9][0-9]*(%[1-9][0-9]*)?$ ]] ||
    site_mistake "SHARD_TASKS=${SHARD_TASKS:-}: must be a number, or 8%2 for two at a time"
for name in TIME PYTHON; do
    [[ -n ${!name:-} ]] || site_mistake "$name is not set"
done
for name in PARTITION CPU_PARTITION ACCOUNT MEMORY_PER_NODE SCRATCH; do
    [[ -n ${!name:-} ]] || printf -v "$name" ''
done

# GPUs as --gpus-per-node or --gres asks for them, and their number.
GPUS_PER_NODE=${GPUS_PER_NODE:-}
GPUS_PER_NODE=${GPUS_PER_NODE#--gres=}
[[ $GPUS_PER_NODE =~ ^(gpu:)?([A-Za-z][A-Za-z0-9_.-]*:)?(0|[1-9][0-9]*)$ ]] ||
    site_mistake "GPUS_PER_NODE=$GPUS_PER_NODE: must be a number, such as 4, with a type, a100:4, or as in --gres, gpu:a100:4"
gpus=${GPUS_PER_NODE##*:}
processes=$((gpus > 0 ? gpus : 1)) # on a node
# shellcheck disable=SC2034
threads=$((CPUS_PER_NODE > processes ? CPUS_PER_NODE / processes : 1)) # of a process
