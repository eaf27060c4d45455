#!/usr/bin/env bash
# Submits a chain of jobs, each of which starts when the one before has done its work:
# shards → train → prune → evaluate, or with --seeds: shards → all of that for each seed → summary, or
# with --sweep: shards → train → trials of a sweep.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'END'
usage: slurm/submit.sh --data DATASET --out FOLDER [OPTIONS] [-- SETTINGS]

  --data DATASET   folder of the dataset
  --out FOLDER     what the runs are written below: FOLDER/train, FOLDER/pruned
  --source PATH    make the dataset of this first …
  --kind KIND      … which is of this kind: tau2022, folder, table or mnist (default: tau2022)
  --train CONFIG   train with this configuration
  --prune CONFIG   prune what was trained, with this configuration
  --seeds LIST     train, prune and evaluate once for each seed, such as 0-4 or 0,7
  --sweep FILE     run the trials of this sweep, on what was trained if --train is given: FOLDER/sweep
  --agents N       … in so many jobs side by side (default: 4)
  --site FILE      settings of the cluster (default: slurm/site.env)
  --dry-run        print every command and every script, submit nothing
  SETTINGS         for every training, such as --train.epochs 20
END
}

mistake() {
    echo "submit.sh: error: $1 (see slurm/submit.sh --help)" >&2
    exit 2
}

data='' out='' source='' kind=tau2022 train='' prune='' seeds='' sweep='' agents=4
site=slurm/site.env dry=''
while (($#)); do
    case $1 in
    --help | -h) usage && exit ;;
    --dry-run) dry=yes ;;
    --) shift && break ;;
    --data | --out | --source | --kind | --train | --prune | --seeds | --sweep | --agents | \
        --site)
        (($# > 1)) || mistake "$1 needs a value"
        printf -v "${1#--}" %s "$2" && shift
        ;;
    *) mistake "unknown argument $1; settings of a training come after --" ;;
    esac
    shift
done
settings=("$@")
[[ -n $data && -n $out ]] || mistake "--data and --out are needed"
[[ -n $source$train$prune$sweep ]] || mistake "nothing to do: give --source, --train, --prune or --sweep"
[[ -z $sweep || -z $prune$seeds ]] || mistake "--sweep goes without --prune and --seeds"
[[ $agents =~ ^[1-9][0-9]*$ ]] || mistake "--agents $agents: must be a whole number, at least 1"
[[ -z $seeds || -n $train ]] || mistake "--seeds needs --train"
for file in "$site" $train $prune $sweep; do
    [[ -f $file ]] || mistake "no file $file"
done
site=$(realpath "$site")
# shellcheck source=slurm/site.env
source "$site"
export CPPRUNE_SITE=$site

common=(
    --export=ALL --chdir="$PWD" --output="$out/logs/%x-%j.out" --time="$TIME"
    --signal="B:USR1@$SAVE_SECONDS" --ntasks-per-node=1 --cpus-per-task="$CPUS_PER_NODE"
    ${PARTITION:+--partition="$PARTITION"} ${ACCOUNT:+--account="$ACCOUNT"}
    ${MEMORY_PER_NODE:+--mem="$MEMORY_PER_NODE"} "${OPTIONS[@]}"
)
single=(--nodes=1 ${CPU_PARTITION:+--partition="$CPU_PARTITION"})
gpus=()
((GPUS_PER_NODE == 0)) || gpus+=(--gpus-per-node="$GPUS_PER_NODE")
training=(--nodes="$NODES" "${gpus[@]}")

# Submits one job, to start after the one before. usage: submit NAME OPTION… SCRIPT ARGUMENT…
before=''
submit() {
    local name=$1 after=()
    # Without the second option a job would wait for ever for one that has failed.
    [[ -z $before ]] || after=(--dependency="afterok:$before" --kill-on-invalid-dep=yes)
    shift
    set -- sbatch --parsable --job-name="$name" "${common[@]}" "${after[@]}" "$@"
    if [[ -n $dry ]]; then
        printf '%q ' "$@"
        printf '\n'
        before=ID_OF_$name
        return
    fi
    before=$("$@")
    before=${before%%;*}
    echo "$name: job $before"
}

if [[ -n $dry ]]; then
    for script in slurm/job.sh slurm/stage.sh slurm/on_node.sh slurm/*.sbatch; do
        printf '# ---- %s\n' "$script"
        cat "$script"
    done
    printf '# ---- commands\n'
else
    mkdir -p "$out/logs"
fi
if [[ -n $source ]]; then
    submit shards "${single[@]}" --array="1-$SHARD_TASKS" slurm/shards.sbatch "$data" "$kind" "$source"
    submit join "${single[@]}" slurm/shards.sbatch "$data" "$kind" "$source"
fi
if [[ -n $seeds ]]; then
    submit seeds "${training[@]}" --array="$seeds" slurm/seeds.sbatch "$data" "$out" "$train" \
        "$prune" "${settings[@]}"
    submit summary "${single[@]}" slurm/summary.sbatch "$out" train ${prune:+pruned}
    exit
fi
runs=()
if [[ -n $train ]]; then
    submit train "${training[@]}" slurm/train.sbatch "$data" "$out" "$train" "${settings[@]}"
    runs+=("$out/train")
fi
if [[ -n $prune ]]; then
    submit prune "${training[@]}" slurm/prune.sbatch "$data" "$out" "$prune" "${settings[@]}"
    runs+=("$out/pruned")
fi
if [[ -n $sweep ]]; then
    submit sweep --nodes=1 "${gpus[@]}" --array="1-$agents" slurm/sweep.sbatch "$data" "$out" "$sweep" \
        ${train:+--init="$out/train/model"} "${settings[@]}"
    exit
fi
if ((${#runs[@]})); then
    submit evaluate "${single[@]}" slurm/evaluate.sbatch "$data" "${runs[@]}"
fi
