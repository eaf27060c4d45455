# shellcheck shell=bash
# Functions of all jobs: requeueing, training, evaluation. Sourced by slurm/*.sbatch in the repository's root.
set -euo pipefail

# SIGTERM goes to all processes of the job. This script outlives its steps, so that they can save.
told_to_stop=
trap 'told_to_stop=yes' TERM
# SLURM sends SIGUSR1 SAVE_SECONDS before the time limit.
time_is_up=
trap 'time_is_up=yes' USR1

: "${CPPRUNE_SITE:?has to be exported: the site.env of this cluster}"
# shellcheck source=slurm/read_site.sh
source slurm/read_site.sh
cpprune=("${CONTAINER[@]}" "$PYTHON" -m cpprune)

# Requeues the job and ends it. A job that is being cancelled, or that SLURM has requeued itself, is no
# longer RUNNING and is left alone.
# usage: requeue WHY
requeue() {
    local job=$SLURM_JOB_ID comment count=0
    # SLURM_JOB_ID of the last task of an array is the array's own number, which stands for all its tasks.
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]] || exit 1
    if [[ -n $told_to_stop && -z $time_is_up ]]; then
        echo "slurm: $1: back into the queue" >&2
        scontrol requeue "$job"
        exit 1
    fi
    # Counted in the job's comment: SLURM_RESTART_COUNT also counts preemptions and node failures.
    comment=$(squeue --noheader --jobs="$job" --format=%k)
    [[ $comment != "(null)" ]] || comment=
    if [[ $comment =~ ^(.*)\ *requeues=([0-9]+)$ ]]; then
        comment=${BASH_REMATCH[1]% } count=${BASH_REMATCH[2]}
    fi
    if ((count >= MAX_REQUEUES)); then
        echo "slurm: $1: given up after $count returns to the queue (MAX_REQUEUES)" >&2
        exit 1
    fi
    scontrol update JobId="$job" Comment="${comment:+$comment }requeues=$((count + 1))"
    echo "slurm: $1: back into the queue ($((count + 1)) of $MAX_REQUEUES)" >&2
    scontrol requeue "$job"
    exit 1
}

# Runs a command to its end. If the job has to stop before, it passes SIGTERM on to the command and
# requeues the job, which then runs the command again.
# usage: to_end COMMAND…
to_end() {
    local child told='' status=0
    "$@" &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        if [[ -n $told_to_stop$time_is_up && -z $told ]]; then
            kill -TERM "$child" 2>/dev/null || true
            told=yes
        fi
        sleep 1 || true # sleep receives the signal too
    done
    wait "$child" || status=$?
    ((status != 0)) || return 0
    [[ -z $time_is_up ]] || requeue "its time is up"
    [[ -z $told_to_stop ]] || requeue "it was told to stop"
    exit "$status"
}

last_checkpoint() {
    local -a found=()
    [[ ! -d $1/checkpoints ]] ||
        mapfile -d '' found < <(find "$1/checkpoints" -name 'step-*' -print0 | sort -z)
    ((${#found[@]} == 0)) || echo "${found[-1]}"
}

has_diverged() {
    grep -qs '^ *"failed":' "$1/result.json"
}

# Trains on all nodes until the run has its result. Requeues the job if the run has to be continued: its
# time is up, it was told to stop, or it failed after it had written a new checkpoint.
# usage: train_to_end SCRIPT DATASET RUN SETTINGS…
train_to_end() {
    local script=$1 data=$2 run=$3 before step status=0
    shift 3
    before=$(last_checkpoint "$run")
    rm -f "$run/STOP"
    srun --kill-on-bad-exit=1 --cpus-per-task="$CPUS_PER_NODE" \
        slurm/on_node.sh "$script" "$data" --run="$run" "$@" &
    step=$!
    while kill -0 "$step" 2>/dev/null; do
        # Repeatedly: a run that is only starting removes an earlier STOP file.
        [[ -z $time_is_up ]] || { mkdir -p "$run" && touch "$run/STOP"; }
        sleep 1 || true # sleep receives the signal too
    done
    wait "$step" || status=$?
    if ((status == 0)) && [[ -f $run/result.json ]] && ! has_diverged "$run"; then
        rm -f "$run/STOP"
    elif [[ -n $time_is_up ]]; then
        requeue "its time is up"
    elif [[ -f $run/STOP ]]; then
        echo "slurm: stopped by $run/STOP; submit it again to go on" >&2
        exit 1
    elif ((status == 0)) || [[ -n $told_to_stop ]]; then
        requeue "it was told to stop"
    elif has_diverged "$run"; then
        exit "$status" # it would diverge again
    elif [[ $(last_checkpoint "$run") != "$before" ]]; then
        requeue "it failed, but has saved something new"
    else
        echo "slurm: the run failed before it had saved anything new: see above" >&2
        exit "$status"
    fi
}

# Evaluates the best model of a run on the test split and writes RUN/test.json.
# usage: evaluate DATASET RUN
evaluate() {
    to_end "${cpprune[@]}" evaluate "$2/model" --data="$1" --json >"$2/test.json.new"
    mv "$2/test.json.new" "$2/test.json"
}
