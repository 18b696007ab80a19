"""Why a job failed: told from what really failing programs write, and from the words of those that need a cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_dagster.jobs.causes import hide, likely_cause, tail_of

TOKEN = "hf_" + "Q" * 34


def failed(*argv: str, **env: str) -> tuple[int, str]:
    """Exit code and output of a program that must fail."""
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": "/nonexistent", **env}
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ, check=False, timeout=120)
    assert done.returncode != 0
    return done.returncode, done.stdout.decode("utf-8", "replace")


def python(code: str, **env: str) -> tuple[int, str]:
    return failed(sys.executable, "-c", code, **env)


def cause(code: int, log: str, state: str = "FAILED") -> str:
    return likely_cause(state, code, log) or ""


def test_a_real_missing_module_is_named() -> None:
    assert cause(*python("import no_such_package.inner")).startswith("Python has no module `no_such_package`. Install")
    assert "`no_such_package`" in cause(*failed(sys.executable, "-m", "no_such_package"))


def test_a_real_library_that_lacks_a_name_is_told() -> None:
    assert "cannot import name 'loads_all'" in cause(*python("from json import loads_all"))


def test_a_real_segmentation_fault_is_told_by_its_words_or_its_code() -> None:
    crash = "import ctypes; ctypes.string_at(0)"
    told = "A process crashed in native code (segmentation fault)"
    assert cause(*python(f"import faulthandler; faulthandler.enable(); {crash}")).startswith(told)
    code, log = python(crash)
    assert code == -11 and log == "" and cause(code, log).startswith(told)
    assert cause(139, "epoch 1\n").startswith(told)
    assert cause(*failed("bash", "-c", f'{sys.executable} -c "{crash}"; exit 1')).startswith(told)


def test_a_real_lack_of_host_memory_is_told() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)); "
    assert cause(*python(f"{limit}bytearray(2**31)")).startswith("The host's memory ran out")
    assert cause(*python(f"{limit}import mmap; mmap.mmap(-1, 2**31)")).startswith("The host's memory ran out")
    array = "import numpy; numpy.ones(2**29)"
    assert cause(*python(limit.replace("29", "31") + array, OPENBLAS_NUM_THREADS="1")).startswith("The host's memory")


def test_a_real_kill_is_most_often_memory() -> None:
    code, log = failed("bash", "-c", "bash -c 'kill -9 $$'; exit $?")
    assert code == 137 and "Killed" in log
    for seen in (log, ""):
        assert cause(code, seen).startswith("A process was killed (SIGKILL): most often for want of host memory")
    assert cause(-9, "").startswith("A process was killed")


def test_a_real_full_disk_is_told() -> None:
    full = "f = open('/dev/full', 'wb', buffering=0); f.write(b'x')"
    assert cause(*python(full)).startswith("The disk is full.")
    assert cause(*failed("bash", "-c", "echo x > /dev/full")).startswith("The disk is full")
    named = (
        f"import os\ntry:\n  {full}\nexcept OSError as e: raise OSError(e.errno, e.strerror, '/lustre/ckpt') from None"
    )
    assert "The disk is full (/lustre/ckpt)." in cause(*python(named))
    quota = "import errno, os; raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), '/lustre/ckpt')"
    assert cause(*python(quota)).startswith("The disk quota is used up (/lustre/ckpt)")


def test_a_real_port_in_use_is_told() -> None:
    code = "import socket; a = socket.create_server(('127.0.0.1', 0)); socket.create_server(a.getsockname())"
    assert cause(*python(code)).startswith("Port of the rendezvous or of a server is in use")


def test_a_real_denial_names_the_file(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    assert cause(*python(f"import subprocess; subprocess.run([{str(tool)!r}])")).startswith(
        f"Permission denied: {tool}."
    )
    code, log = failed("bash", "-c", str(tool))
    assert code == 126 and cause(code, log).startswith(f"Permission denied: {tool}.")


def test_a_real_missing_file_or_command_is_named() -> None:
    assert cause(*python("open('/nonexistent/train.jsonl')")).startswith("A file is missing: /nonexistent/train.jsonl.")
    assert "/nonexistent/step.py" in cause(*failed(sys.executable, "/nonexistent/step.py"))
    assert "/nonexistent/x" in cause(*failed("cat", "/nonexistent/x"))
    assert cause(*failed("bash", "-c", "no-such-command")).startswith("A command was not found")


def test_a_real_offline_hub_is_told(tmp_path: Path) -> None:
    code = "from huggingface_hub import hf_hub_download; hf_hub_download('nvidia/no-such-model', 'config.json')"
    told = cause(*python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)))
    assert told.startswith("Hugging Face cannot be reached from the job") and "HF_HOME" in told


HUB = "https://huggingface.co/api/models/nvidia/x"
WORDS = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB",
     "The GPU's memory ran out (it wanted 2.50 GiB more)"),
    ("[rank3]: RuntimeError: CUDA error: out of memory", "The GPU's memory ran out on rank 3"),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=66.0. Some of the step tasks have been OOM Killed.",
     "The host's memory ran out"),
    ("srun: error: n2: task 1: Out Of Memory", "The host's memory ran out on host n2"),
    ("RuntimeError: DataLoader worker (pid 77) is killed by signal: Killed. ", "The host's memory ran out"),
    ("RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's "
     "workers are out of shared memory. Please try to raise your shared memory limit: insufficient shared memory (shm)",
     "Shared memory (/dev/shm) is too small"),
    ("RuntimeError: [enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3: file "
     "write failed", "PyTorch could not write a file"),
    ("[rank1]: RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598",
     "PyTorch could not write a file on rank 1"),
    ("OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/lustre/none'.",
     "Hugging Face has no such repository"),
    ("[rank0]: RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:29099. This is "
     "typically caused by a remote worker crashing.", "Another process of the job ended first"),
    ("slurmstepd: error: *** JOB 66 ON n1 CANCELLED AT 2026-01-01T10:00:00 DUE TO TIME LIMIT ***",
     "The job reached its time limit"),
    ("slurmstepd: error: *** STEP 66.0 ON n1 CANCELLED AT 2026-01-01T10:00:00 DUE TO PREEMPTION ***",
     "The job was preempted"),
    ("slurmstepd: error: *** JOB 66 ON n1 CANCELLED AT 2026-01-01T10:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR "
     "DETAILS ***", "A node failed under the job on host n1"),
    ("srun: error: Node failure on n3", "A node failed under the job on host n3"),
    ("[rank1]:[E1218 20:27:21.433 ProcessGroupNCCL.cpp:629] [Rank 1] Watchdog caught collective operation timeout: "
     "WorkNCCL(SeqNum=1, OpType=BROADCAST, Timeout(ms)=600000) ran for 600081 milliseconds before timing out.",
     "Communication between GPUs failed on rank 1"),
    ("n7:811:902 [3] NCCL WARN Call to connect returned Connection refused", 
     "Communication between GPUs failed on host n7"),
    ("torch.distributed.DistBackendError: NCCL error in: /pytorch/NCCLUtils.cpp:94, unhandled cuda error",
     "Communication between GPUs failed"),
    ("torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.",
     "The processes did not find each other"),
    ("torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: "
     "29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use", "Port 29500 is in use"),
    (f"huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url {HUB}.",
     "Hugging Face refuses a gated repository"),
    ("OSError: You are trying to access a gated repo.", "Hugging Face refuses a gated repository"),
    (f"huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found for url: {HUB}.",
     "Hugging Face has no such repository"),
    ("OSError: x/y is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
     "Hugging Face has no such repository"),
    ("datasets.exceptions.DatasetNotFoundError: Dataset 'x/y' doesn't exist on the Hub or cannot be accessed.",
     "Hugging Face has no such repository"),
    (f"requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: {HUB}", "Hugging Face did not accept"),
    ("OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the "
     "cached files.", "Hugging Face cannot be reached"),
    ("RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
     "The job sees no GPU"),
    ("[rank0]: RuntimeError: No CUDA GPUs are available", "The job sees no GPU it can use on rank 0"),
    ("AssertionError: Torch not compiled with CUDA enabled", "The job sees no GPU"),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "A GPU is faulty"),
    ("ValueError: Cannot use chat template functions because tokenizer.chat_template is not set and no template "
     "argument was passed!", "The tokenizer has no chat template"),
    ("OSError: Can't load tokenizer for '/lustre/ckpt'. If you were trying to load it from",
     "The tokenizer cannot be loaded"),
    ("slurmstepd: error: pyxis:     [ERROR] URL https://registry-1.docker.io/v2/nvcr.io/x/manifests/1 returned error "
     "code: 401 Unauthorized", "The container image cannot be had"),
    ("0: slurmstepd: error: pyxis: container start failed with error code: 1", "The container image cannot be had"),
    ("srun: unrecognized option '--container-image=x'", "This Slurm has no pyxis"),
    ("slurmstepd: error: execve(): python3: No such file or directory", "Slurm could not start"),
    ("srun: error: Task launch for StepId=66.0 failed on node n1: Communication connection failure",
     "Slurm could not start"),
    ("slurmstepd: error: couldn't chdir to `/x': No such file or directory: going to /tmp instead",
     "Slurm could not start"),
    ("ImportError: libcudnn.so.9: cannot open shared object file: No such file or directory", "A library does not fit"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "told"), WORDS, ids=lambda v: v[:50])
def test_the_words_of_clusters_and_libraries_are_understood(line: str, told: str) -> None:
    log = f"epoch 1\nTraceback (most recent call last):\n  File 'a.py', line 1, in <module>\n{line}\n"
    said = cause(1, log)
    assert not re.search(r"(?<!\$)\{", said)
    assert said.startswith(told) and said.endswith(".") and "\n" not in said


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("TIMEOUT", "The job reached its time limit"),
        ("OUT_OF_MEMORY", "The host's memory ran out"),
        ("PREEMPTED", "The job was preempted"),
        ("NODE_FAIL", "A node failed under the job."),
        ("DEADLINE", "The job reached its time limit"),
    ],
)
def test_the_schedulers_state_needs_no_log(state: str, told: str) -> None:
    assert cause(0, "", state).startswith(told)
    assert cause(0, "srun: error: n1: task 0: Killed\n", state).startswith(told)


def test_the_first_real_error_of_all_ranks_wins_over_what_follows() -> None:
    log = """\
[rank2]: Traceback (most recent call last):
[rank2]: ModuleNotFoundError: No module named 'flash_attn'
n1:10:11 [0] NCCL WARN [Service thread] Accept failed Connection closed by remote peer
[rank0]:[E1] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)
[rank1]: BrokenPipeError: [Errno 32] Broken pipe
[rank3]: FileNotFoundError: [Errno 2] No such file or directory: '/tmp/torch-socket'
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
  exitcode  : -9 (pid: 7)
srun: error: n1: task 0: Exited with exit code 1
"""
    assert cause(1, log).startswith("Python has no module `flash_attn` on rank 2.")
    later = "\n".join(log.splitlines()[2:3] + log.splitlines()[:2])
    assert cause(1, later).startswith("Python has no module `flash_attn`")
    assert cause(137, log).startswith("Python has no module")
    assert cause(0, log + "slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***", "TIMEOUT") == (
        f"{cause(0, '', 'TIMEOUT')} An error before that: {cause(1, log)}"
    )


def test_a_killed_rank_wins_over_what_the_others_see_of_it() -> None:
    peer = "[rank0]: RuntimeError: Connection closed by peer [127.0.0.1]:29099\n"
    assert cause(1, f"{peer}  exitcode  : -9 (pid: 7)\n").startswith("A process was killed (SIGKILL)")
    assert cause(137, peer).startswith("A process was killed (SIGKILL)")


def test_the_error_is_quoted_not_the_code_that_raised_it() -> None:
    log = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "/x/torch/cuda/__init__.py", line 522, in _lazy_init
[rank1]:     raise AssertionError("Torch not compiled with CUDA enabled")
[rank1]: AssertionError: Torch not compiled with CUDA enabled
"""
    assert "on rank 1: `[rank1]: AssertionError: Torch" in cause(1, log)


def test_a_handled_exception_is_not_the_cause_of_the_one_after_it() -> None:
    log = python(
        "try:\n  import no_such_package\nexcept ImportError:\n  open('/nonexistent/fallback.json')",
    )
    assert "no_such_package" in log[1] and cause(*log).startswith("A file is missing: /nonexistent/fallback.json.")


def test_warnings_are_not_causes() -> None:
    assert likely_cause("FAILED", 1, "WARNING: No CUDA GPUs are available, using the CPU\nValueError: rows\n") is None
    assert likely_cause("FAILED", 1, "x.py:1: UserWarning: Found no NVIDIA driver on your system\n") is None


def test_an_earlier_attempt_is_not_the_cause_of_this_one() -> None:
    first = "slurmstepd: error: *** JOB 66 ON n1 CANCELLED AT 2026-01-01T10:00:00 DUE TO PREEMPTION ***\n"
    assert cause(1, f"{first}ModuleNotFoundError: No module named 'x'\n").startswith("Python has no module `x`")
    assert cause(1, f"OSError: [Errno 28] No space left on device\n{first}").startswith("The job was preempted")


@pytest.mark.parametrize("state", ["COMPLETED", "SUCCEEDED", "CANCELLED", "CANCELLED by 1000", "RUNNING"])
def test_what_did_not_fail_has_no_cause(state: str) -> None:
    assert likely_cause(state, 0, "MemoryError\n") is None


def test_what_nothing_tells_has_no_cause() -> None:
    assert likely_cause("FAILED", 1, "epoch 1 loss 2.0\nValueError: 7 rows are wrong\n") is None
    assert likely_cause("FAILED", 143, "") is None
    assert likely_cause("FAILED", None, "") is None


@pytest.mark.parametrize(
    "text",
    [
        f"OSError: 401 Client Error. Cannot access gated repo for url https://me:PLANTED1@huggingface.co/x?t={TOKEN}",
        "No CUDA GPUs are available HF_TOKEN=PLANTED1",
        "No CUDA GPUs are available {'api_key': 'PLANTED1', \"WANDB_API_KEY\": \"PLANTED1\"}",
        "No CUDA GPUs are available Authorization: Bearer PLANTED1",
        "No CUDA GPUs are available step.py --hf-token PLANTED1 --api-key=PLANTED1",
        "FileNotFoundError: [Errno 2] No such file or directory: 's3://me:PLANTED1@bucket/x'",
    ],
)
def test_no_secret_is_quoted(text: str) -> None:
    for said in (cause(1, text), tail_of(text.encode()), hide(text)):
        assert said and "******" in said and "PLANTED" not in said and TOKEN not in said


def test_what_is_no_secret_stays() -> None:
    for text in ("tokenizer=/lustre/model max_new_tokens=128000", "pad_token='<|endoftext|>'", "num_tokens: 1234567"):
        assert hide(text) == text


def test_the_tail_is_what_a_terminal_would_show_last() -> None:
    bar = "".join(f"\r{i:3}%|{'#' * (i // 10)}" for i in range(101))
    log = f"one\r\n\x1b[31mred\x1b[0m \x1b]0;title\x07{bar}\r\n\x00bell\x07\ttab\u202e\n" + "x" * 5000 + "\n\n\n"
    lines = tail_of(log.encode()).split("\n")
    assert lines[0] == "one" and lines[1] == "100%|##########"
    assert lines[2] == "\\x00bell\\x07  tab\\u202e"
    assert len(lines) == 4 and len(lines[3]) < 500 and "5,000 characters" in lines[3]


def test_the_tail_of_a_file_reads_only_its_end_and_of_none_is_empty(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open(log, "wb") as file:
        file.truncate(5_000_000_000)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast but one \xff\nlast\n")
    assert tail_of(log, 2) == "last but one \ufffd\nlast"
    assert tail_of(b"a\nb\nc", 2) == "b\nc"
    assert tail_of(tmp_path / "none") == tail_of(b"") == tail_of(b" \n\n") == tail_of(tmp_path) == ""


def test_a_huge_or_hostile_log_is_told_too() -> None:
    noise = ("a: " * 40_000 + "\n") * 20 + "/" * 100_000 + "\n" + "\x1b[" * 50_000
    assert cause(1, f"{noise}\nModuleNotFoundError: No module named 'x{{y}}\x1b[2J'\n").startswith(
        "Python has no module"
    )
