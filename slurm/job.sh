# shellcheck shell=bash
# What the jobs share. Sourced by slurm/*.sbatch, in the repository's root.
set -euo pipefail

# Whoever ends the job signals all of it. This script outlives its steps, so that they can save.
told_to_stop=
trap 'told_to_stop=yes' TERM
# SLURM says SAVE_SECONDS before the time limit that it is near.
time_is_up=
trap 'time_is_up=yes' USR1

: "${CPPRUNE_SITE:?has to be exported: the site.env of this cluster}"
# shellcheck source=slurm/read_site.sh
source slurm/read_site.sh
cpprune=("${CONTAINER[@]}" "$PYTHON" -m cpprune)

# Puts the job back into the queue and ends it. A job that is being cancelled, or that SLURM itself has
# put back, no longer runs, and is left alone.
# usage: requeue WHY
requeue() {
    local job=$SLURM_JOB_ID comment count=0
    # One task of an array has the array's own number, which stands for all of them.
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]] || exit 1
    if [[ -n $told_to_stop && -z $time_is_up ]]; then
        echo "slurm: $1: back into the queue" >&2
        scontrol requeue "$job"
        exit 1
    fi
    # The job's comment counts, as SLURM_RESTART_COUNT also counts preemptions and nodes that failed.
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

# Runs a command to its end. When the job has to stop before, the command is told to, and the job goes
# back into the queue, to do it again.
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
        sleep 1 || true # which is signalled too
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

# Trains on all nodes until the run has its result. Ends the job when the run has to go on later: its
# time is up, it was told to stop, or it failed after it had saved something new.
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
        # Again and again: a run that starts only now takes an earlier STOP away.
        [[ -z $time_is_up ]] || { mkdir -p "$run" && touch "$run/STOP"; }
        sleep 1 || true # which is signalled too
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
        exit "$status" # it would again
    elif [[ $(last_checkpoint "$run") != "$before" ]]; then
        requeue "it failed, but has saved something new"
    else
        echo "slurm: the run failed before it had saved anything new: see above" >&2
        exit "$status"
    fi
}

# Measures the best model of a run on the test split, into RUN/test.json.
# usage: evaluate DATASET RUN
evaluate() {
    to_end "${cpprune[@]}" evaluate "$2/model" --data="$1" --json >"$2/test.json.new"
    mv "$2/test.json.new" "$2/test.json"
}
