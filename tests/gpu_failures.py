#!/usr/bin/env python3
"""What goes wrong on a GPU, before a run and in the middle of it: one line, the exit code of its class, and the trace
of the steps that were done. The program fault_device stands beside cpstep.

usage: gpu_failures.py CPSTEP MPIEXEC SOURCE_DIR [TEST ...]
"""
import shutil
import subprocess
import sys

import h5py

from e2e import check_refusal, expect, expect_code, main, refused

GPU = ("--device", "cuda", "--transport", "nccl")


def test_without_a_device_the_run_says_so(program):
    refused(program, 3, ["--device cuda: no CUDA device can be used: ", "--device cpu"], *GPU,
            env={"CUDA_VISIBLE_DEVICES": ""})


def test_ranks_share_a_gpu_only_where_that_is_asked_for(program):
    refused(program, 2, ["ranks 0 and 1 use one GPU", "--allow-gpu-sharing"], *GPU,
            env={"CUDA_VISIBLE_DEVICES": "0"})


def test_a_step_that_does_not_fit_is_refused_with_its_size(program):
    output = program.path()
    result = program.run("--init", "random", "--hf-checkpoint", "inputs/qwen2.5-0.5b", "--rollout-batch-size", "1",
                         "--n-samples-per-prompt", "1", "--global-batch-size", "1", "--rollout-prompt-len", "1",
                         "--rollout-max-response-len", "999999", "--rollout-fixed-response-len", "--use-dynamic-batch-size",
                         "--max-tokens-per-gpu", "1000000", "--device", "cuda", "--quiet", "--output", output, ranks=1)
    check_refusal(result, output, 4, ["needs up to ", " are free: take fewer samples"])


def test_an_nccl_that_cannot_start_is_told_with_its_own_words(program):
    refused(program, 7, ["nccl", "no socket interface found"], *GPU, "--allow-gpu-sharing",
            env={"NCCL_SOCKET_IFNAME": "=none0"})


def broken(program, what):
    """fault_device on two ranks; both traces must hold the step before the failure, whole."""
    fault_device = program.cpstep.parent / "fault_device"
    expect(fault_device.is_file(), f"{fault_device} is missing, build the tests")
    output = program.path()
    result = program.execute([program.mpiexec, "-np", "2", str(fault_device), what, str(output)])
    expect(len(result.said) == 1, f"expected one line of the program: {result}")
    for file in sorted((output / "ranks").rglob("*.h5")):
        with h5py.File(file, swmr=True) as trace:
            steps, events = trace["steps"][:], trace["events"][:]
            expect(len(steps) == 1 and steps["events"][0] == len(events) > 0, f"{file}: {steps}, {len(events)} events")
    expect(len(list((output / "ranks").rglob("*.h5"))) == 2, "each rank has a trace")
    return result


def test_a_kernel_that_leaves_its_memory_ends_the_job_with_its_error(program):
    result = broken(program, "kernel")
    expect_code(result, 1)
    for text in ("[rank 1/2 ", "illegal memory access", "the device context is lost"):
        expect(text in result.said[0], result.said)


def test_a_peer_whose_nccl_is_gone_ends_the_job(program):
    result = broken(program, "peer")
    expect_code(result, 7)
    expect("[rank 0/2 " in result.said[0], result.said)
    # Over sockets NCCL sees the closed connection; a peer's memory just stays as it is.
    expect("NCCL: remote process exited" in result.said[0] or "timed out after 20 s" in result.said[0], result.said)


if __name__ == "__main__":
    smi = shutil.which("nvidia-smi")
    if smi is None or subprocess.run([smi, "-L"], capture_output=True, check=False).returncode != 0:
        print("SKIPPED: no CUDA device")
        sys.exit(0)
    main(globals())
