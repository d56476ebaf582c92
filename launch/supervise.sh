# shellcheck shell=bash
# The common part of both launchers: read the command line, check the run file, forward signals, and exit with the
# run's exit code (docs/decisions/0010-launch-exit-codes.md). Sourced by them.

readonly EXIT_INTERNAL=70 EXIT_STOPPED=75 EXIT_REFUSED=78 # as in megatron_dsmath/errors.py
readonly SIGNALS=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1     # what asks a run to stop; SLURM sends the last

# refuse WHAT FIX: prints an error and exits with 78, as every command of this project does on a user's mistake.
refuse() {
    printf 'error[usage]: %s\n  fix:      %s\n' "$1" "$2" >&2
    exit "$EXIT_REFUSED"
}

# read_command_line RUN.yaml [--nproc N] [--dry-run] [-- ARGUMENT...]: sets run_file, processes (of one node), dry_run
# and train_arguments, which go to `dsmath train` as they are.
read_command_line() {
    run_file='' processes=${DSMATH_NPROC:-} dry_run=${DSMATH_DRY_RUN:-} train_arguments=()
    while (($#)); do
        case $1 in
            -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
            --dry-run) dry_run=1 ;;
            --nproc)
                (($# > 1)) || refuse '--nproc needs a number' 'for example --nproc 8'
                processes=$2
                shift
                ;;
            --)
                train_arguments=("${@:2}")
                break
                ;;
            -*) refuse "unknown option $1" 'put arguments of dsmath train after --' ;;
            *)
                [[ -z $run_file ]] || refuse "a second run file: $1" 'give one run file; put arguments of dsmath train after --'
                run_file=$1
                ;;
        esac
        shift
    done
    [[ -n $run_file ]] || refuse 'no run file' "for example ${0##*/} configs/quickstart/pretrain.yaml; see --help"
    processes=${processes:-$(default_processes)}
    [[ $processes =~ ^[1-9][0-9]*$ ]] || refuse "the number of processes is not valid: $processes" 'give --nproc a positive integer'
}

# One process for each GPU that a run may use; without a GPU two, the smallest number that is parallel.
default_processes() {
    local gpus
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -Ec '^[^-]' || true) # -1 means none
    else
        gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true)
    fi
    echo "$((gpus > 0 ? gpus : 2))"
}

# check_run WORLD_SIZE [PREFIX...]: validates the run file (and that the layout fits that many processes, if it is not
# empty) before any process of the run starts, and sets run_directory, which the check prints as its last line.
# PREFIX is the command that runs another command on the node of the run.
check_run() {
    local check printed code=0
    check=("${@:2}" python -m megatron_dsmath train "$run_file" "${train_arguments[@]}" ${1:+--nproc "$1"} --check)
    printed=$("${check[@]}") || code=$?
    [[ $code -ne $EXIT_REFUSED ]] || exit "$EXIT_REFUSED"
    [[ $code -eq 0 ]] || { echo "the check of $run_file itself failed ($code)" >&2 && exit "$EXIT_INTERNAL"; }
    run_directory=${printed##*$'\n'}
}

stop_signal='' stop_as='' child='' passed_on='' # stop_as: what the command gets in place of any signal

# The first signal is forwarded, once: torchrun abandons its workers when it is interrupted while it waits for them.
ask_to_stop() {
    [[ -z $stop_signal ]] || echo 'already stopping: the run ends when its state is saved' >&2
    stop_signal=${stop_signal:-$1}
    pass_on
}

pass_on() {
    if [[ -n $child && -n $stop_signal && -z $passed_on ]]; then
        passed_on=1
        kill -s "${stop_as:-$stop_signal}" "$child" 2>/dev/null || true # it may have ended by itself just now
    fi
}

for signal in ${SIGNALS//,/ }; do
    # shellcheck disable=SC2064  # expand the signal now
    trap "ask_to_stop $signal" "$signal"
done

show_command() {
    local word
    for word in "$@"; do
        [[ $word =~ ^[[:alnum:]_./:,=@%+-]+$ ]] || word=${word@Q}
        printf '%s ' "$word"
    done
    echo
}

read_status() { cat -- "$run_directory/STATUS.json" 2>/dev/null || true; }

# run COMMAND...: runs it to its end, also when signals come, and exits with the run's exit code. A dry run prints the
# environment and the command instead, quoted for a shell.
run() {
    if [[ $dry_run == 1 ]]; then
        show_environment && show_command "$@" && exit 0
    fi
    local status_before
    status_before=$(read_status)
    [[ -z $stop_signal ]] || exit "$EXIT_STOPPED" # asked before anything ran: nothing to save
    set -m # its own process group: Ctrl-C reaches it through ask_to_stop alone, and SIGINT is not ignored in it
    "$@" </dev/null &
    child=$!
    set +m
    pass_on # a signal may have come between the last two lines
    # A signal ends `wait`, not the command, so that `wait` is called again until the command has ended.
    while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
    exit_as_the_run "$status_before"
}

# exit_as_the_run STATUS_BEFORE: torchrun replaces every exit code by 1, so that the code is read from STATUS.json. A
# STATUS.json that has not changed since the start is that of an earlier run.
exit_as_the_run() {
    local status code=$EXIT_INTERNAL
    status=$(read_status)
    if [[ $status == "$1" ]]; then
        [[ -z $stop_signal ]] || code=$EXIT_STOPPED # stopped while it was starting: nothing to save
    elif [[ ! $status =~ '"state":'[[:space:]]*'"running"' && $status =~ '"exit_code":'[[:space:]]*(0|70|75|78)[^0-9] ]]; then
        code=${BASH_REMATCH[1]}
    fi
    printf '%s: exit code %s\n' "$run_directory" "$code" >&2
    exit "$code"
}
