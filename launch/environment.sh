# shellcheck shell=bash
# The environment of every process of a run; variables that are already set are not changed. Sourced by torchrun.sh and
# slurm.sbatch, with the number of processes on a node.

environment=()

# default NAME VALUE: exports NAME, with VALUE unless it is already set.
default() {
    export "$1=${!1:-$2}"
    environment+=("$1")
}

show_environment() {
    local name
    for name in "${environment[@]}"; do
        printf 'export %s=%q\n' "$name" "${!name}"
    done
}

cores_per_process=$(($(nproc) / $1))

# torchrun would set 1, which leaves cores idle for work on the CPU; more than a share of the cores makes processes wait.
default OMP_NUM_THREADS $((cores_per_process > 0 ? cores_per_process : 1))
# One hardware queue keeps kernels in the order they were issued, so that tensor-parallel communication starts before
# the matrix product it is to hide behind; megatron-core asks for it with tensor and sequence parallelism.
default CUDA_DEVICE_MAX_CONNECTIONS 1
# By default NCCL does not report a network that it cannot use; with WARN it reports problems only.
default NCCL_DEBUG WARN
# A collective that never ends (a dead peer, a deadlock) becomes an error, and with it a restart, not a silent wait.
default TORCH_NCCL_ASYNC_ERROR_HANDLING 1
# A rank that crashes inside a library prints its Python stack.
default PYTHONFAULTHANDLER 1
# Lines are written to the log at once, so that the log of a killed rank is complete.
default PYTHONUNBUFFERED 1
# Seconds that torchrun waits between passing on a stop and killing: a step and a save must fit. Its default of 30 is too
# few for a large checkpoint; slurm.sbatch is warned 300 s before the time limit, so this stays below.
default DSMATH_SHUTDOWN_SECONDS 270
