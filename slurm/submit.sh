#!/usr/bin/env bash
# Submits a chain of jobs, each of which starts when the one before has succeeded:
# shards → train → prune → evaluate, or with --seeds: shards → all of that for each seed → summary, or
# with --sweep: shards → train → trials of a sweep.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'END'
usage: slurm/submit.sh --data DATASET --out FOLDER [OPTIONS] [--build BUILD…] [-- SETTINGS…]

  --data DATASET   folder of the dataset, or its URL
  --out FOLDER     what the runs are written below: FOLDER/train, FOLDER/pruned
  --source PATH    make the dataset of this first …
  --kind KIND      … which is of this kind: tau2022, folder, table or mnist (default: tau2022)
  --train CONFIG   train with this configuration
  --prune CONFIG   prune what was trained, with this configuration
  --seeds LIST     train, prune and evaluate once for each seed, such as 0-4 or 0,7; 0-9%2: two at a time
  --sweep FILE     run the trials of this sweep, on what was trained if --train is given: FOLDER/sweep
  --agents N       … in so many jobs side by side (default: 4); 8%2: eight jobs, two at a time
  --site FILE      settings of the cluster (default: slurm/site.env)
  --dry-run        print every command and every script, submit nothing
  BUILD            all up to -- is for `cpprune shards build`, such as --fractions 0.7,0.1,0.2
  SETTINGS         for every training, such as --train.epochs 20
END
}

reader=submit.sh # of the site's settings
mistake() {
    echo "submit.sh: error: $1 (see slurm/submit.sh --help)" >&2
    exit 2
}

data='' out='' source='' kind=tau2022 train='' prune='' seeds='' sweep='' agents=4
site=slurm/site.env dry='' build=() settings=()
while (($#)); do
    case $1 in
    --help | -h) usage && exit ;;
    --dry-run) dry=yes ;;
    --build)
        [[ ${2:---} != -- ]] || mistake "--build needs options of cpprune shards build"
        while (($# > 1)) && [[ $2 != -- ]]; do
            build+=("$2") && shift
        done
        ;;
    --)
        settings=("${@:2}")
        break
        ;;
    --data | --out | --source | --kind | --train | --prune | --seeds | --sweep | --agents | \
        --site)
        [[ -n ${2:-} ]] || mistake "$1 needs a value"
        printf -v "${1#--}" %s "$2" && shift
        ;;
    *) mistake "unknown argument $1; settings of a training come after --" ;;
    esac
    shift
done
[[ -n $data && -n $out ]] || mistake "--data and --out are needed"
[[ -n $source$train$prune$sweep ]] || mistake "nothing to do: give --source, --train, --prune or --sweep"
[[ -z $sweep || -z $prune$seeds ]] || mistake "--sweep goes without --prune and --seeds"
[[ -z $seeds || -n $train ]] || mistake "--seeds needs --train"
[[ -n $train$prune$sweep || ${#settings[@]} == 0 ]] ||
    mistake "${settings[0]} after --: nothing is trained; options of the dataset come after --build"
[[ -n $source || ${#build[@]} == 0 ]] || mistake "--build goes with --source"
for word in "${build[@]}"; do
    case ${word%%=*} in
    --data | --kind | --train | --prune | --seeds | --sweep | --agents | --site | --dry-run | --source | --out)
        mistake "${word%%=*} after --build: give it before"
        ;;
    --part | --of) mistake "${word%%=*} after --build: SHARD_TASKS in $site says it" ;;
    --overwrite) mistake "--overwrite after --build: the parts would delete each other; delete $data" ;;
    esac
done
list='[0-9]+(-[0-9]+(:[1-9][0-9]*)?)?' throttle='(%[1-9][0-9]*)?'
[[ $agents =~ ^[1-9][0-9]*$throttle$ ]] ||
    mistake "--agents $agents: must be a whole number, at least 1, or 8%2 for two of eight at a time"
[[ -z $seeds || $seeds =~ ^$list(,$list)*$throttle$ ]] ||
    mistake "--seeds $seeds: must be numbers, such as 0-4 or 0,7, or 0-9%2 for two at a time"
# A path that begins with - must not be taken for an option.
for name in data out source train prune sweep site; do
    [[ ${!name} != -* ]] || printf -v "$name" %s "./${!name}"
done
# SLURM replaces patterns such as %j in the path; a backslash would disable that.
[[ $out != *\\* ]] || mistake "--out $out: SLURM takes no backslash in the path of a log"
for file in "$site" ${train:+"$train"} ${prune:+"$prune"} ${sweep:+"$sweep"}; do
    [[ -f $file ]] || mistake "no file $file"
done
CPPRUNE_SITE=$(realpath "$site")
export CPPRUNE_SITE
# shellcheck source=slurm/read_site.sh
source slurm/read_site.sh
# If this runs inside a job, that job's variables are not for the new ones.
for name in "${!SLURM_@}"; do
    [[ $name == SLURM_CONF || $name == SLURM_JWT || $name == SLURM_CLUSTERS ]] || unset "$name"
done

common=(
    --export=ALL --chdir="$PWD" --output="${out//'%'/%%}/logs/%x-%j.out" --time="$TIME"
    --signal="B:USR1@$SAVE_SECONDS" --ntasks-per-node=1 --cpus-per-task="$CPUS_PER_NODE"
    ${PARTITION:+--partition="$PARTITION"} ${ACCOUNT:+--account="$ACCOUNT"}
    ${MEMORY_PER_NODE:+--mem="$MEMORY_PER_NODE"} "${OPTIONS[@]}"
)
single=(--nodes=1 ${CPU_PARTITION:+--partition="$CPU_PARTITION"} "${CPU_OPTIONS[@]}")
if ((gpus == 0)); then
    resources=("${CPU_OPTIONS[@]}")
elif [[ $GPUS_PER_NODE == gpu:* ]]; then
    resources=(--gres="$GPUS_PER_NODE" "${GPU_OPTIONS[@]}")
else
    resources=(--gpus-per-node="$GPUS_PER_NODE" "${GPU_OPTIONS[@]}")
fi
training=(--nodes="$NODES" "${resources[@]}")

# Submits one job, to start after the one before. usage: submit NAME OPTION… SCRIPT ARGUMENT…
before='' submitted=()
submit() {
    local name=$1 after=()
    # Without the second option, a job would wait for ever for one that has failed.
    [[ -z $before ]] || after=(--dependency="afterok:$before" --kill-on-invalid-dep=yes)
    shift
    set -- sbatch --parsable --job-name="$name" "${common[@]}" "${after[@]}" "$@"
    if [[ -n $dry ]]; then
        printf '%q ' "$@"
        printf '\n'
        before=ID_OF_$name
        return
    fi
    before=$("$@") || take_back "$name"
    before=${before%%;*}
    submitted+=("$before")
    echo "$name: job $before"
}

# Cancels the submitted jobs because SLURM refuses this one. usage: take_back NAME
take_back() {
    ((${#submitted[@]} == 0)) || scancel "${submitted[@]}"
    mistake "sbatch refuses $1, see above${submitted[*]:+; cancelled: ${submitted[*]}}"
}

if [[ -n $dry ]]; then
    for script in slurm/read_site.sh slurm/job.sh slurm/stage.sh slurm/on_node.sh slurm/*.sbatch; do
        printf '# ---- %s\n' "$script"
        cat "$script"
    done
    printf '# ---- commands\n'
else
    mkdir -p "$out/logs" || mistake "--out $out: cannot be written"
fi
if [[ -n $source ]]; then
    making=(slurm/shards.sbatch "$data" "$kind" "$source" "${build[@]}")
    submit shards "${single[@]}" --array="1-$SHARD_TASKS" "${making[@]}"
    submit join "${single[@]}" "${making[@]}"
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
    submit sweep --nodes=1 "${resources[@]}" --array="1-$agents" slurm/sweep.sbatch "$data" "$out" \
        "$sweep" ${train:+--init="$out/train/model"} "${settings[@]}"
    exit
fi
if ((${#runs[@]})); then
    submit evaluate "${single[@]}" slurm/evaluate.sbatch "$data" "${runs[@]}"
fi
