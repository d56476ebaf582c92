#!/usr/bin/env bash
# Submits the stages of a recipe, or runs, as SLURM jobs: launch/chain.sh RECIPE.yaml [--dry-run] [-- OPTION...]
#                                                         launch/chain.sh RUN.yaml RUN.yaml... [--dry-run] [-- OPTION...]
#
#   launch/chain.sh configs/recipes/deepseekmath_7b.yaml -- --gpus-per-node 8 --time 24:00:00
#
# RECIPE.yaml  each stage that is not done is a job that starts when the stages it depends on have succeeded
# RUN.yaml     each run is a job that starts when the one before has succeeded
# --dry-run    checks everything, prints the commands, and submits nothing
# OPTION       goes to sbatch for every job, before the options of the stage (`sbatch` in the recipe)
#
# Submit from the repository's root, as for slurm.sbatch, which starts the runs; the other stages are one process each.
# A job whose predecessor failed or was stopped is cancelled: run the same command again, and it continues.
# Exit codes: 0 submitted, 70 sbatch failed, 78 refused.

set -euo pipefail
launch=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/supervise.sh
source "$launch/supervise.sh"
trap - ${SIGNALS//,/ } # nothing here has to be saved

files=() options=() dry_run=''
while (($#)); do
    case $1 in
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
        --dry-run) dry_run=1 ;;
        --)
            options=("${@:2}")
            break
            ;;
        -*) refuse "unknown option $1" 'put options of sbatch after --' ;;
        *) files+=("$1") ;;
    esac
    shift
done
((${#files[@]})) || refuse 'no recipe and no run file' "for example ${0##*/} configs/recipes/deepseekmath_7b.yaml; see --help"

# The plan of a recipe (JSON on standard input) as words that end with NUL: for each stage that is not done its name, the
# names of the stages it waits for, the number of words of its job, and these words. argv: the script for runs.
# shellcheck disable=SC2016  # this is Python
readonly READ_PLAN='
import json, shlex, sys
plan = json.load(sys.stdin)
refused = [stage for stage in plan if stage["status"] in ("missing", "out of date")]
for stage in refused:
    fix = "copy or make it first" if stage["status"] == "missing" else "move its output to another place"
    print("error[usage]: the stage {stage} cannot run\n  found:    {state}\n  fix:      ".format(**stage) + fix, file=sys.stderr)
if refused:
    sys.exit(78)
for stage in plan:
    if stage["status"] == "done":
        print(stage["stage"] + ": done", file=sys.stderr)
        continue
    verb, *words = stage["arguments"]
    if verb == "train":
        job = [sys.argv[1], words[0], *(["--", *words[1:]] if words[1:] else [])]
    else:
        job = ["--wrap=" + shlex.join(["exec", "python", "-m", "megatron_dsmath", verb, *words])]
    job = [*stage["sbatch"], *job]
    print(stage["stage"], " ".join(stage["depends_on"]), len(job), *job, sep="\0", end="\0")
'

names=() ids=() # of the jobs that are submitted
report_submitted() {
    local code=$? index
    if ((code && ${#ids[@]})); then
        for index in "${!ids[@]}"; do printf '%s: job %s is submitted\n' "${names[index]}" "${ids[index]}" >&2; done
        printf 'to cancel them: scancel %s\n' "${ids[*]}" >&2
    fi
}
trap report_submitted EXIT

# submit NAME "PREDECESSOR..." WORD...: submits a job, to start when those predecessors that are submitted have succeeded.
submit() {
    local name=$1 predecessors=" $2 " after='' index command id
    for index in "${!names[@]}"; do
        [[ $predecessors != *" ${names[index]} "* ]] || after+=:${ids[index]}
    done
    command=(sbatch --parsable "${options[@]}" --job-name="$name")
    [[ -z $after ]] || command+=(--dependency="afterok$after" --kill-on-invalid-dep=yes)
    command+=("${@:3}")
    if [[ $dry_run == 1 ]]; then
        show_command "${command[@]}"
        id="JOB_OF_$name"
    else
        id=$("${command[@]}") || { echo "sbatch refused the job of $name" >&2 && exit "$EXIT_INTERNAL"; }
        id=${id%%;*} # a federation adds the name of the cluster
        [[ $id =~ ^[0-9]+$ ]] || { echo "sbatch gave no job id for $name: $id" >&2 && exit "$EXIT_INTERNAL"; }
        printf '%s: job %s\n' "$name" "$id"
    fi
    names+=("$name") ids+=("$id")
}

if ((${#files[@]} == 1)) && grep -q '^stages:' -- "${files[0]}"; then
    code=0
    plan=$(python -m megatron_dsmath recipe "${files[0]}" --plan --json) || code=$?
    [[ $code -eq 0 ]] || exit "$((code == EXIT_REFUSED ? EXIT_REFUSED : EXIT_INTERNAL))"
    # A process substitution has no exit code to test, and a variable holds no NUL: the words go through a file.
    words_file=$(mktemp)
    trap 'report_submitted; rm -f -- "$words_file"' EXIT
    python -c "$READ_PLAN" "$launch/slurm.sbatch" <<<"$plan" >"$words_file"
    mapfile -d '' -t words <"$words_file"
    position=0
    while ((position < ${#words[@]})); do
        count=${words[position + 2]}
        submit "${words[position]}" "${words[position + 1]}" "${words[@]:position + 3:count}"
        position=$((position + 3 + count))
    done
else
    train_arguments=()
    for run_file in "${files[@]}"; do check_run ''; done
    previous=''
    for index in "${!files[@]}"; do
        name=run_$((index + 1))
        submit "$name" "$previous" "$launch/slurm.sbatch" "${files[index]}"
        previous=$name
    done
fi
