"""Whether a profile suits a step and its config: the rules of ``env/guardrails.toml``, one function each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nemotron_dagster.config.guardrail_case import Case, Finding, strings, value
from nemotron_dagster.config.guardrail_facts import image_family, whole

_PROCESSES = ("nproc_per_node", "nprocs_per_node", "ntasks_per_node")


def _processes(case: Case) -> Iterator[Finding]:
    """More processes than GPUs cannot start; fewer leave GPUs idle. Only a torchrun step has one process per GPU."""
    gpus = case.facts.gpus
    launch = case.step.runspec.launch if case.step and case.step.runspec else None
    key = next((k for k in _PROCESSES if whole(case.settings.get(k)) is not None), None)
    if launch != "torchrun" or not gpus or key is None or case.executor == "local":
        return
    count = int(case.settings[key])
    if count > gpus:
        text = f"{key} = {count} processes share {gpus} GPUs of a node; NCCL refuses that. Set {key} = {gpus}."
        yield case.find("error", key, text)
    elif count < gpus:
        text = f"{key} = {count} leaves {gpus - count} of {gpus} GPUs per node idle. Set {key} = {gpus}."
        yield case.find("warning", key, text)


def _gpus(case: Case) -> Iterator[Finding]:
    assert case.step is not None
    need, gpus = case.needs.get("gpus", "any"), case.facts.gpus
    if gpus is None:
        return
    waived = whole(value(case.config, "run.env.gpus_per_node")) == 0
    if need == "required" and gpus == 0 and not waived:
        text = f"{case.step.id} needs GPUs, this profile gives none. Use a profile with gpus_per_node > 0"
        tiny = ", or -c tiny" if "tiny" in case.step.configs and case.executor == "local" else ""
        yield case.find("error", "gpus_per_node", f"{text}{tiny}.")
    if need == "none" and gpus > 0:
        text = f"{case.step.id} uses no GPU; {gpus} per node would stay idle. Use a CPU profile (gpus_per_node = 0)."
        yield case.find("warning", "gpus_per_node", text)


def _nodes(case: Case) -> Iterator[Finding]:
    assert case.step is not None
    needs, nodes = case.needs, case.facts.nodes
    if nodes is None:
        return
    keys = [k for k in needs.get("nodes_of", ()) if whole(value(case.config, k)) is not None]
    least = max(needs.get("nodes", 1), sum(whole(value(case.config, k)) or 0 for k in keys))
    recommended, most = needs.get("recommended_nodes", 0), needs.get("max_nodes")
    if nodes < least:
        why = f" ({' + '.join(keys)})" if keys else ""
        text = (
            f"{case.step.id} needs {least} nodes{why}, this profile has {nodes}. Set nodes = {max(least, recommended)}."
        )
        yield case.find("error", "nodes", text)
    elif nodes < recommended:
        text = f"{case.step.id} with {nodes} nodes is short; {recommended} are recommended. Set nodes = {recommended}."
        yield case.find("warning", "nodes", text)
    if most is not None and nodes > most:
        text = f"{case.step.id} uses {most} node; the other {nodes - most} would stay idle. Set nodes = {most}."
        yield case.find("warning", "nodes", text)
    if nodes > 1 and case.rules.of_executor(case.executor).get("one_node"):
        text = f"{case.executor} has one node, this asks for {nodes}. Set nodes = 1, or use a cluster's profile."
        yield case.find("error", "nodes", text)


def _config_sizes(case: Case) -> Iterator[Finding]:
    """Sizes that the config itself names against what a node has."""
    for rule, offered, key, unit in (
        ("gpus_of", case.facts.gpus, "gpus_per_node", "GPUs"),
        ("cpus_of", case.facts.cpus, "cpus_per_task", "CPUs"),
    ):
        for name in case.needs.get(rule, ()):
            wanted = whole(value(case.config, name))
            if wanted is not None and offered is not None and wanted > offered:
                text = f"the config's {name} = {wanted}, but a node has {offered:g} {unit}. Lower it or raise {key}."
                yield case.find("error", key, text)


def _parallel(case: Case) -> Iterator[Finding]:
    world = case.facts.world
    if not world:
        return
    for keys in case.needs.get("parallel", ()):
        sizes = {k: whole(value(case.config, k)) for k in keys}
        if any(value(case.config, k) is not None and v is None for k, v in sizes.items()):
            continue  # unknown here
        product = 1
        for size in sizes.values():
            product *= size or 1
        if product > 1 and world % product:
            named = " x ".join(f"{k.rpartition('.')[2]} {v}" for k, v in sizes.items() if v and v > 1)
            have = f"this profile has {world} ({case.facts.nodes} x {case.facts.gpus})"
            text = f"{named} needs a multiple of {product} GPUs; {have}"
            own = next((e for e in case.step.errors if "parallel" in e.get("check", ())), None) if case.step else None
            fix = own["recovery"] if own else "Change nodes, gpus_per_node or the config's parallel sizes."
            yield case.find("error", "nodes", f"{text}. {fix}")


def _model(case: Case) -> Iterator[Finding]:
    """The manifest's min_gpus of the model that the config names."""
    assert case.step is not None
    world = case.facts.world
    names = set(strings(case.config))
    for model in case.step.models:
        least = whole(model.get("min_gpus"))
        if least and world and world < least and model.get("name") in names:
            text = f"{model['name']} needs {least} GPUs, this profile has {world}. Use more, or a smaller model."
            yield case.find("warning", "nodes", text)


def _cpus(case: Case) -> Iterator[Finding]:
    assert case.step is not None
    cpus, least, good = case.facts.cpus, case.needs.get("cpus", 0), case.needs.get("recommended_cpus", 0)
    key = "cpus_per_task" if case.executor == "slurm" else "resource_shape" if case.executor == "lepton" else "cpus"
    if cpus is None:
        if case.executor == "slurm" and good and not {"cpus_per_task", "cpus_per_gpu"} & case.unknown:
            text = f"no cpus_per_task: Slurm gives one CPU, {case.step.id} wants {good}. Set cpus_per_task = {good}."
            if not case.settings.get("exclusive"):
                yield case.find("warning", key, text)
        return
    if cpus < least:
        text = f"{case.step.id} needs {least} CPUs per node, this profile gives {cpus:g}. Raise {key}."
        yield case.find("error", key, text)
    elif cpus < good:
        yield case.find(
            "warning", key, f"{case.step.id} is slow or stalls below {good} CPUs; {cpus:g} here. Raise {key}."
        )


def _memory(case: Case) -> Iterator[Finding]:
    assert case.step is not None
    least, given = case.needs.get("memory_gb"), case.facts.memory_gb
    if least and given is not None and given < least:
        key = {"slurm": "mem", "lepton": "resource_shape"}.get(case.executor, "memory")
        yield case.find(
            "warning", key, f"{given:.3g} GiB per node is little for {case.step.id} ({least}). Raise {key}."
        )
    least, shared = case.needs.get("shared_memory_mib"), whole(case.settings.get("shared_memory_size"))
    if least and shared is not None and shared < least:
        text = f"shared_memory_size = {shared} MiB is little for {case.step.id} ({least}). Raise it."
        yield case.find("warning", "shared_memory_size", text)


def _image(case: Case) -> Iterator[Finding]:
    assert case.step is not None
    wanted, image = case.needs.get("images"), case.facts.image
    if not wanted or not image or case.executor == "local":
        return
    family = image_family(image, case.rules.table("images"))
    if family is None or family in wanted:
        return
    installs = any(case.settings.get(k) for k in ("startup_commands", "pip_extras", "run_command", "setup_lines"))
    text = f"{image} lacks the libraries of {case.step.id}, which are in {' or '.join(wanted)}"
    fix = "unless the profile's commands install them" if installs else f"set container_image to a {wanted[0]} image"
    yield case.find("warning" if installs else "error", "container_image", f"{text}; {fix}.")


def _variables(case: Case) -> Iterator[Finding]:
    assert case.step is not None
    given = case.settings.get("env_vars") or {}
    stored = case.settings.get("secret_vars") or {}
    for name in case.needs.get("variables", ()):
        if case.executor != "local" and name not in given and name not in stored:
            text = f"{case.step.id} wants {name}, and a {case.executor} job does not inherit it."
            yield case.find("warning", "env_vars", f'{text} Add {name} = "${{oc.env:{name}}}" to env_vars.')


CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    _gpus, _nodes, _processes, _config_sizes, _parallel, _model, _cpus, _memory, _image, _variables,
)  # fmt: skip
