#!/usr/bin/env bash
# One node: launch/torchrun.sh RUN.yaml [--nproc N] [--dry-run] [-- ARGUMENT...]
#
#   launch/torchrun.sh configs/pretrain/deepseekmath_base_7b.yaml --nproc 8 -- --set output=runs/second_try
#
# --nproc N    processes (else DSMATH_NPROC; else one for each GPU; without a GPU 2)
# --dry-run    checks the run file, prints the environment and the command, and starts nothing (also DSMATH_DRY_RUN=1)
# ARGUMENT     goes to `dsmath train`
#
# Exit codes: 0 done, 70 failed and a restart may help, 75 stopped on a signal and saved: run it again, 78 refused.

set -euo pipefail
launch=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/supervise.sh
source "$launch/supervise.sh"
read_command_line "$@"
# shellcheck source=launch/environment.sh
source "$launch/environment.sh" "$processes"
check_run "$processes"

command=(
    torchrun --standalone --nproc-per-node "$processes" --max-restarts 0
    --signals-to-handle "$SIGNALS" --shutdown-timeout "$DSMATH_SHUTDOWN_SECONDS"
    -m megatron_dsmath train "$run_file" "${train_arguments[@]}"
)
run "${command[@]}"
