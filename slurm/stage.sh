# shellcheck shell=bash
# Sourced by what runs on a node, after the site's settings, in the repository's root.
shopt -s inherit_errexit

# Copies a dataset to the node, unless that was done before, and prints where it is; without SCRATCH it
# stays where it is.
# usage: staged DATASET
staged() {
    local sha256 folder
    if [[ -z $SCRATCH ]]; then
        echo "$1"
        return
    fi
    sha256=$(sha256sum "$1/dataset.json")
    folder=$SCRATCH/cpprune-$(id -un)/${sha256:0:16}
    mkdir -p "${folder%/*}"
    exec {lock}>"$folder.lock"
    flock "$lock" # other jobs on this node
    if [[ ! -d $folder ]]; then
        rm -rf "$folder.new"
        cp -r "$1" "$folder.new"
        "${CONTAINER[@]}" "$PYTHON" -m cpprune.cli shards verify "$folder.new" >&2
        mv "$folder.new" "$folder"
        echo "slurm: $1 is copied to $folder on $(hostname)" >&2
    fi
    exec {lock}>&-
    echo "$folder"
}
