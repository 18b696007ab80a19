r"""Messages by which a failed job tells its cause, and what to do about each.

A pattern is searched in one line of the log, whose rank prefix is taken off. Its named groups fill ``{name}`` of the
text; ``{where}`` is the rank and the host as far as the line says them. The patterns are the words of PyTorch, NCCL,
Slurm, pyxis, enroot, huggingface_hub, transformers and libc.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: How sure a rule is: the scheduler's own word, an error, what is an error at times, what follows another rank's error.
VERDICT, ERROR, HINT, ECHO = 0, 1, 2, 3


@dataclass(frozen=True)
class Rule:
    """What one kind of message means."""

    pattern: re.Pattern[str]
    text: str
    level: int = ERROR


def _rule(text: str, *patterns: str, level: int = ERROR) -> list[Rule]:
    return [Rule(re.compile(p), text, level) for p in patterns]


TIME_LIMIT = (
    "The job reached its time limit. Raise `time` in the profile, or do less: a step that can resume continues from "
    "its last checkpoint when it is run again."
)
PREEMPTED = (
    "The job was preempted: one of higher priority took its nodes. Run it again, or use a partition or qos that is "
    "not preempted."
)
NODE_FAILED = (
    "A node failed under the job{where}. Run it again; if it is the same node, name it in `exclude` of the profile."
)
HOST_MEMORY = (
    "The host's memory ran out{where}. Ask for more (`mem` in the profile), or use fewer workers or smaller batches."
)
PERHAPS_MEMORY = (
    "A process was killed (SIGKILL){where}: most often for want of host memory. Ask for more (`mem` in the profile), "
    "or use fewer workers or smaller batches."
)
SEGFAULT = (
    "A process crashed in native code (segmentation fault){where}. See the stack in the log; most often a library was "
    "built for another version of CUDA, PyTorch or Python than the one that is there."
)
NOT_EXECUTABLE = "The command could not be executed. Check that the interpreter and the image fit the node."
NO_COMMAND = (
    "A command was not found. Check `python`, `startup_commands` and the image of the profile: the job's own "
    "environment has to have it."
)
GPU_MEMORY = (
    "The GPU's memory ran out{where}{size}. Lower the micro batch size or the sequence length, turn on activation "
    "checkpointing, or spread the model over more GPUs."
)
_DISK = "The disk is full{where}{path}. Free space there, or write to another file system."
_QUOTA = "The disk quota is used up{where}{path}. Free space there, or write to another file system."
_CHECKPOINT = (
    "PyTorch could not write a file{where}: `{line}`, most often for want of disk space or quota. Free space there, or "
    "write to another file system."
)
_PEER = "Another process of the job ended first. Look for its error further up in the log, or on the other nodes."
_MODULE = (
    "Python has no module `{module}`{where}. Install it in the job's environment: `startup_commands`, another image, "
    "or the step's environment."
)
_NCCL = (
    "Communication between GPUs failed{where}: `{line}`. Look for an earlier error on the other ranks; else check the "
    "network interface (NCCL_SOCKET_IFNAME) and run it with NCCL_DEBUG=INFO."
)
_MEETING = (
    "The processes did not find each other{where}: `{line}`. Look for an earlier error on the other ranks; else check "
    "that nodes reach each other and MASTER_ADDR is the first one."
)
_PORT = (
    "Port {port} is in use{where}. Something else runs on the node; set another MASTER_PORT, or take nodes for itself "
    "(`exclusive`)."
)
_GATED = (
    "Hugging Face refuses a gated repository: `{line}`. Ask for access on its page, and put a token of that account "
    'into the profile: env_vars.HF_TOKEN = "${{oc.env:HF_TOKEN}}".'
)
_TOKEN = (
    "Hugging Face did not accept the token: `{line}`. Set a valid HF_TOKEN where you submit, and name it in env_vars "
    "of the profile."
)
_NO_REPOSITORY = (
    "Hugging Face has no such repository or file, or the token may not see it: `{line}`. Check the name, the revision "
    "and HF_TOKEN; a local path must exist on the target."
)
_OFFLINE = (
    "Hugging Face cannot be reached from the job: `{line}`. Download the files beforehand (HF_HOME on shared storage), "
    "name a local path, or unset HF_HUB_OFFLINE where there is a network."
)
_NO_GPU = (
    "The job sees no GPU it can use{where}: `{line}`. Ask for GPUs (`gpus_per_node`), and check that image and driver "
    "fit each other."
)
_GPU_BROKEN = (
    "A GPU is faulty{where}: `{line}`. Tell the administrators, and name the node in `exclude` of the profile."
)
_TOKENIZER = (
    "The tokenizer cannot be loaded: `{line}`. Check that the model's folder holds its tokenizer files, or name the "
    "tokenizer of the base model."
)
_TEMPLATE = (
    "The tokenizer has no chat template. Use the tokenizer of an instruction-tuned model, or put a chat_template into "
    "tokenizer_config.json."
)
_IMAGE = (
    "The container image cannot be had or started{where}: `{line}`. Check its name, and the credentials of the "
    "registry (enroot/.credentials); registries other than Docker Hub are written host#image to pyxis."
)
_PYXIS = (
    "This Slurm has no pyxis, which starts containers. Ask the administrators for it, or use a profile without "
    "container_image."
)
_LAUNCH = (
    "Slurm could not start the job's processes{where}: `{line}`. Check that the directory and the interpreter exist on "
    "the nodes; if it is one node, name it in `exclude`."
)
_FILE = (
    "A file is missing{where}: {path}. Check the path in the config; on a cluster it must lie on storage that the "
    "nodes see."
)
_PERMISSION = "Permission denied{where}: {path}. Check who owns it, and that the profile's mounts are writable for you."
_SHM = (
    "Shared memory (/dev/shm) is too small for the data loader{where}. Use fewer workers, or give the container more."
)
_IMPORT = (
    "A library does not fit the others{where}: `{line}`. Use the versions of the image or of the step's lock; what "
    "`startup_commands` install may have replaced them."
)

RULES: tuple[Rule, ...] = (
    # the scheduler's own words
    *_rule(TIME_LIMIT, r"CANCELLED AT \S+ DUE TO TIME LIMIT", level=VERDICT),
    *_rule(PREEMPTED, r"CANCELLED AT \S+ DUE TO PREEMPTION", level=VERDICT),
    *_rule(
        NODE_FAILED,
        r" ON (?P<host>\S+) CANCELLED AT \S+ DUE TO NODE FAILURE",
        r"srun: error: Node failure on (?P<host>\S+)",
        level=VERDICT,
    ),
    *_rule(
        HOST_MEMORY,
        r"Detected \d+ oom[_-]kill event",
        r"have been OOM Killed",
        r"srun: error: (?P<host>\S+): tasks? \S+: Out Of Memory",
        r"Out of memory: Killed process",
        level=VERDICT,
    ),
    # memory
    *_rule(
        GPU_MEMORY,
        r"CUDA out of memory\.?(?: Tried to allocate (?P<size>[\d.]+ [KMGT]iB))?",
        r"CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED",
        r"NCCL WARN .*[Ff]ailure '?out of memory",
    ),
    *_rule(_SHM, r"insufficient shared memory \(shm\)", r"unable to allocate shared memory\(shm\)"),
    *_rule(
        HOST_MEMORY,
        r"^(?:[\w.]+\.)?(?:_Array)?MemoryError\b",
        r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)",
        r"Cannot allocate memory",
        r"std::bad_alloc",
        r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) is killed by signal: Killed",
        r"ArrowMemoryError|ray\.exceptions\.OutOfMemoryError",
    ),
    *_rule(PERHAPS_MEMORY, r"^(?:\S+: line \d+: +\d+ )?Killed(?: |$)", r"exitcode +: -9 \(pid", level=HINT),
    *_rule(PERHAPS_MEMORY, r"srun: error: (?P<host>\S+): tasks? \S+: Killed", level=HINT),
    # Python's environment
    *_rule(_MODULE, r"^(?:ModuleNotFoundError|ImportError): No module named '(?P<module>[^']+)'"),
    *_rule(_MODULE, r"python[\d.]*: (?:Error while finding module specification.*|No module named )(?P<module>[\w.]+)"),
    *_rule(
        _IMPORT,
        r"^ImportError: cannot import name ",
        r"^ImportError: .*(?:undefined symbol|cannot open shared object file|version `\S+' not found)",
        r"error while loading shared libraries: ",
    ),
    # disk
    *_rule(
        _DISK,
        r"No space left on device(?:: '(?P<path>[^']+)')?",
        r"StorageFull",
    ),
    *_rule(
        _CHECKPOINT,
        r"PytorchStreamWriter failed writing file|RuntimeError: basic_ios::clear: iostream error",
        r"inline_container\.cc:\d+\] \. unexpected pos",
        level=HINT,
    ),
    *_rule(_QUOTA, r"[Dd]isk quota exceeded(?:: '(?P<path>[^']+)')?"),
    # GPUs
    *_rule(
        _GPU_BROKEN,
        r"uncorrectable (?:NVLink|ECC) error|GPU has fallen off the bus|GPU is lost",
        r"CUDA error: unspecified launch failure",
    ),
    *_rule(
        _NO_GPU,
        r"Found no NVIDIA driver on your system|No CUDA GPUs are available|Torch not compiled with CUDA enabled",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient",
        r"no CUDA-capable device is detected",
        r"no kernel image is available for execution on the device|CUDA error: invalid device ordinal",
        r"on a CUDA device but torch\.cuda\.is_available\(\) is False|NVIDIA-SMI has failed",
        r"CUDA-capable device\(s\) is/are busy or unavailable",
    ),
    # Hugging Face
    *_rule(_GATED, r"gated repo|GatedRepoError|is awaiting a review|Access to model \S+ is restricted"),
    *_rule(_TOKEN, r"Invalid user token|Invalid credentials in Authorization header|Invalid username or password"),
    *_rule(
        _OFFLINE,
        r"offline mode is enabled|OfflineModeIsEnabled|outgoing traffic has been disabled",
        r"couldn't connect to 'https?://huggingface\.co|[Cc]ouldn't reach '?\S+ on the Hub",
        r"huggingface\.co.*(?:Max retries exceeded|Name or service not known|Temporary failure in name resolution)",
        r"^(?:[\w.]+\.)?LocalEntryNotFoundError",
    ),
    *_rule(
        _NO_REPOSITORY,
        r"Repository Not Found for url|(?:Repository|Revision|RemoteEntry|Dataset)NotFoundError",
        r"is not a local folder and is not a valid model identifier|Incorrect path_or_model_id",
        r"Repo id must be in the form",
        r"does not appear to have a file named|doesn't exist on the Hub or cannot be accessed",
    ),
    *_rule(_TOKEN, r"\b401 Client Error.*huggingface\.co"),
    # model files
    *_rule(_TEMPLATE, r"chat_template is not set|does not have a chat template"),
    *_rule(
        _TOKENIZER,
        r"Can't load tokenizer for|Couldn't instantiate the backend tokenizer|Unable to load vocabulary from file",
        r"Tokenizer class \S+ does not exist or is not currently imported",
    ),
    # ports
    *_rule(
        _PORT,
        r"failed to listen on.*port: (?P<port>\d+).*(?:EADDRINUSE|[Aa]ddress already in use)",
        r"(?:EADDRINUSE|[Aa]ddress already in use)",
    ),
    # containers
    *_rule(_PYXIS, r"unrecognized option '?--container-"),
    *_rule(
        _IMAGE,
        r"URL \S+ returned error code: \d+",
        r"ErrImagePull|ImagePullBackOff|manifest unknown|toomanyrequests: |pull access denied",
        r"pyxis: +\[ERROR\] ",
    ),
    *_rule(
        _IMAGE,
        r"pyxis: (?:failed to import|failed to create container|container start failed|couldn't start container)",
        level=HINT,
    ),
    # Slurm
    *_rule(
        _LAUNCH,
        r"execve\(\): .*(?:No such file|Permission denied|bad interpreter|Exec format)",
        r"srun: error: (?:Unable to create step|Application launch failed|Task launch for)",
        r"slurmstepd: error: couldn't chdir to",
    ),
    # files
    *_rule(
        _FILE,
        r"^FileNotFoundError: \[Errno 2\] No such file or directory: '(?P<path>[^']+)'",
        r"can't open file '(?P<path>[^']+)': \[Errno 2\]",
    ),
    *_rule(_FILE, r"^(?:[\w./-]+: )+(?:line \d+: )?'?(?P<path>/[^:']+)'?: No such file or directory", level=HINT),
    *_rule(
        _PERMISSION,
        r"^PermissionError: \[Errno \d+\] [^:]+: '(?P<path>[^']+)'",
        r"cannot (?:create|open|touch|remove|stat)[^:]*? [‘'](?P<path>[^’']+)['’]: Permission denied",
        r"(?P<path>/[^:\s]+): (?:Permission denied|Read-only file system)",
        r"Read-only file system: '(?P<path>[^']+)'",
    ),
    *_rule(NO_COMMAND, r": command not found$", level=HINT),
    # crashes
    *_rule(
        SEGFAULT,
        r"Fatal Python error: Segmentation fault|Segfault encountered|^(?:\S+: line \d+: +\d+ )?Segmentation fault",
        r"srun: error: (?P<host>\S+): tasks? \S+: Segmentation fault",
        r"exitcode +: -11 \(pid",
    ),
    # what the other ranks see of an error
    *_rule(
        _NCCL,
        r"Watchdog caught collective operation timeout",
        r"ncclUnhandledCudaError|ncclSystemError|ncclInternalError|ncclInvalidUsage|ncclRemoteError|NCCL error",
        r"NCCL WARN .*(?:[Ff]ail|error|refused|timed out|closed by remote peer)",
        r"Timed out waiting \d+ms for (?:recv|send) operation",
        level=ECHO,
    ),
    *_rule(
        _MEETING,
        r"Timed out after \d+ seconds waiting for clients",
        r"client socket has (?:timed out|failed) .*trying to connect|client socket has failed to connect",
        r"RendezvousTimeoutError|RendezvousConnectionError|Gloo connectFullMesh failed|DistNetworkError",
        level=ECHO,
    ),
    *_rule(_PEER, r"Connection closed by peer \[|typically caused by a remote worker crashing", level=ECHO),
)
