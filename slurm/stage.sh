# shellcheck shell=bash
# Staging of datasets to the disk of a node. Sourced on each node after the site's settings, in the
# repository's root.
shopt -s inherit_errexit

# Copies a dataset to SCRATCH, unless that was done before, and prints the folder to read it from. That is
# the original one if SCRATCH is not set, if the dataset is a URL, or, with a line that says why, if it
# cannot be copied safely.
# usage: staged DATASET
staged() {
    local own sha256 folder lock
    if [[ -z $SCRATCH || $1 == *://* ]]; then
        echo "$1"
        return
    fi
    own=$SCRATCH/cpprune-$(id -un)
    mkdir -p "$SCRATCH"
    mkdir -m 700 "$own" 2>/dev/null || true
    if [[ ! -e $own && ! -L $own ]]; then
        echo "slurm: no folder can be made in SCRATCH=$SCRATCH: $1 is read where it is" >&2
        echo "$1"
        return
    fi
    if ! only_ours "$own"; then
        echo "slurm: $own can be written by others, or was made by them: $1 is read where it is;" \
            "remove that folder, or set SCRATCH to another one" >&2
        echo "$1"
        return
    fi
    sha256=$(sha256sum <"$1/dataset.json")
    folder=$own/${sha256:0:16}
    exec {lock}>"$folder.lock"
    flock "$lock" # other jobs on this node
    if [[ $(contents "$folder") != "$(contents "$1")" ]]; then
        rm -rf "$folder" "$folder.new"
        if ! fits "$1" "$own" || ! cp -rL "$1" "$folder.new"; then
            rm -rf "$folder.new"
            echo "slurm: $1 cannot be copied to $SCRATCH on $(hostname), which may have no room: it is read" \
                "where it is" >&2
            exec {lock}>&-
            echo "$1"
            return
        fi
        if ! "${CONTAINER[@]}" "$PYTHON" -m cpprune shards verify "$folder.new" >&2; then
            rm -rf "$folder.new"
            echo "slurm: the copy of $1 is damaged: see above" >&2
            return 1
        fi
        mv "$folder.new" "$folder"
        echo "slurm: $1 is copied to $folder on $(hostname)" >&2
    fi
    exec {lock}>&-
    echo "$folder"
}

# Puts the cache of a dataset behind a URL on SCRATCH, unless CPPRUNE_CACHE names another folder.
# usage: keep_on_scratch DATASET
keep_on_scratch() {
    local own
    [[ -n $SCRATCH && $1 == *://* && -z ${CPPRUNE_CACHE:-} ]] || return 0
    own=$SCRATCH/cpprune-$(id -un)
    mkdir -p "$SCRATCH"
    mkdir -m 700 "$own" 2>/dev/null || true
    if only_ours "$own"; then
        export CPPRUNE_CACHE=$own/cache
    fi
}

# Whether a folder is owned by this user, is not a link, and is not writable by others.
only_ours() {
    local mode
    [[ ! -L $1 && -d $1 && -O $1 ]] || return 1
    mode=$(stat -c %a "$1")
    (((8#$mode & 8#022) == 0))
}

# Prints the fingerprint of a dataset and the names and sizes of its files. The reader checks every clip.
contents() {
    [[ -f $1/dataset.json ]] || return 0
    sha256sum <"$1/dataset.json"
    find -L "$1" -maxdepth 1 -type f -printf '%s %f\n' | sort
}

# Whether the contents of one folder fit on the disk of another.
fits() {
    local needed free
    needed=$(du -sLb "$1")
    free=$(df -B1 --output=avail "$2" | tail -n 1)
    ((${needed%%[[:space:]]*} < free))
}
