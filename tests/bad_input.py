"""The table of bad inputs: what is put where, the command, and what it must say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY, FIFO, CIRCLE, DANGLING = object(), object(), object(), object()

#: Exit codes by what is wrong.
USAGE, CONFIG, PROFILE, NOT_BUILT = 2, 3, 4, 9


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        says: patterns that stderr must match, the last one being the fix.
        files: below the project, what stands there: text, bytes, or one of the objects above.
    """

    name: str
    argv: tuple[str, ...]
    code: int
    says: tuple[str, ...]
    files: Mapping[str, object] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


RUN = ("steps", "run", "demo/rows", "-d")
CONFIG_FILE = "steps/demo/rows/config/bad.yaml"
BROKEN = "steps/demo/broken/step.toml"
PIPELINE = "pipelines/bad.yaml"
LAUGHS = "a: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 40)
)
RTL, EMOJI, COMBINING, SURROGATE = "\u202egnp.exe", "\U0001f600", "e\u0301", "\udcff"
INJECTIONS = ("$(touch pwned)", "`touch pwned`", ";touch pwned", "|touch pwned", "&&touch pwned", "\ntouch pwned\n")


def place(root: Path, files: Mapping[str, object]) -> None:
    """Put the case's files below ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is DIRECTORY:
            path.mkdir()
        elif content is FIFO:
            os.mkfifo(path)
        elif content is CIRCLE:
            path.symlink_to(path.name)
        elif content is DANGLING:
            path.symlink_to("nowhere")
        else:
            path.write_bytes(content if isinstance(content, bytes) else str(content).encode("utf-8", "surrogatepass"))


def yaml_cases() -> Iterable[Case]:
    """Malformed and odd configs of a step."""
    texts: dict[str, tuple[object, ...]] = {
        "unclosed": ("a: [1\n", r"bad\.yaml:2:1"),
        "unclosed_quote": ("a: 'x\n", r"bad\.yaml:2:1"),
        "indentation": ("a: 1\n  b: 2\n", r"bad\.yaml:2:4"),
        "tab": ("a:\n\tb: 1\n", r"bad\.yaml:2:1", "tab"),
        "at_sign": ("a: @x\n", r"bad\.yaml:1:4", "quote it"),
        "percent": ("%x: 1\n", r"bad\.yaml:1:3"),
        "duplicate": ("n: 1\nn: 2\n", r"bad\.yaml:2:1", "duplicate key 'n'"),
        "duplicate_deep": ("section: {inner: 1, inner: 2}\n", r"bad\.yaml:1:21", "duplicate key 'inner'"),
        "duplicate_number": ("1: x\n'1': y\n", r"bad\.yaml:2:1", "duplicate key '1'"),
        "documents": ("a: 1\n---\nb: 1\n", r"bad\.yaml:2:1", "second document"),
        "null_key": ("~: 1\n", r"bad\.yaml:1:1", "null key"),
        "list_key": ("? [a]\n: 1\n", r"bad\.yaml:1:3", "cannot be a key"),
        "python_tag": ("a: !!python/object/apply:os.system ['touch pwned']\n", r"bad\.yaml:1:4", "not supported"),
        "own_tag": ("a: !x y\n", r"bad\.yaml:1:4", "not supported"),
        "binary_tag": ("a: !!binary aGk=\n", r"bad\.yaml:1:4"),
        "set_tag": ("a: !!set {x}\n", r"bad\.yaml:1:4"),
        "int_tag": ("a: !!int x\n", r"bad\.yaml:1:4", "no !!int"),
        "huge_number": (f"a: {'9' * 5000}\n", r"bad\.yaml:1:4"),
        "undefined_alias": ("a: *x\n", r"bad\.yaml:1:4", "anchor 'x'"),
        "recursive_alias": ("a: &x [*x]\n", r"bad\.yaml:1:8", "contains itself"),
        "merge_of_text": ("<<: 1\n", r"bad\.yaml:1:5", "mapping"),
        "nul": ("a: 'x\x00'\n", r"bad\.yaml:1:6", r"U\+0000"),
        "escape": ("a: \x1b[31m\n", r"bad\.yaml:1:4", r"U\+001B"),
        "latin_1": ("a: é\n".encode("latin-1"), r"bad\.yaml:1:4", "UTF-8"),
        "utf_16": ("a: 1\n".encode("utf-16"), r"bad\.yaml:1:1", "UTF-8"),
        "surrogate": ("a: \ud800\n", r"bad\.yaml:1:4", "UTF-8"),
        "image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), r"bad\.yaml:1:1", "UTF-8"),
        "list": ("- 1\n", r"bad\.yaml: is not a mapping"),
        "text": ("hello\n", r"bad\.yaml: is not a mapping"),
        "number": ("5\n", r"bad\.yaml: is not a mapping"),
        "laughs": (LAUGHS, r"bad\.yaml:\d+:\d+", "more than 100,000 values"),
        "deep_flow": ("a: " + "[" * 100_000, r"bad\.yaml:1:\d+", "nests deeper"),
        "deep_block": ("\n".join(" " * i + "a:" for i in range(500)), r"bad\.yaml:\d+:\d+", "nests deeper"),
        "deep_dashes": ("- " * 50_000, r"bad\.yaml:1:\d+", "nests deeper"),
        "circle_of_itself": ("defaults: bad\n", r"circle: .*bad\.yaml -> .*bad\.yaml"),
        "base_missing": ("defaults: nope\n", r"nope\.yaml \(a base of .*bad\.yaml\)"),
        "base_outside": ("defaults: ../../../../../../../../../../etc/passwd\n", r"passwd\.yaml", "defaults"),
        "base_absolute": ("defaults: /etc/nothing/here\n", r"/etc/nothing/here\.yaml", "defaults"),
        "base_metacharacters": ("defaults: '$(touch pwned)'\n", r"touch pwned", "defaults"),
        "interpolation_missing": ("defaults: default\nn: ${nothing.here}\n", "n: .*nothing.here"),
        "interpolation_unset": ("defaults: default\nn: ${oc.env:SURELY_UNSET_X}\n", "n: .*SURELY_UNSET_X"),
        "interpolation_circle": ("defaults: default\na: ${b}\nb: ${a}\n", "a|b"),
        "interpolation_of_itself": ("defaults: default\na: ${a}\n", "a"),
        "interpolation_unclosed": ("defaults: default\nn: ${x\n", "n"),
        "interpolation_resolver": ("defaults: default\nn: ${nope:1}\n", "n: .*nope"),
        "interpolation_empty": ("defaults: default\nn: ${}\n", "n"),
        "mandatory": ("defaults: default\nm:\n  q: ???\n", r"m\.q", r"m\.q=VALUE"),
    }
    for name, (text, *says) in texts.items():
        yield Case(f"yaml_{name}", (*RUN, "-c", "bad"), CONFIG, (*map(str, says),), {CONFIG_FILE: text})
    chain = {f"steps/demo/rows/config/{a}.yaml": f"defaults: {b}\n" for a, b in ("ab", "bc", "ca")}
    yield Case(
        "yaml_circle_of_three", (*RUN, "-c", "a"), CONFIG, (r"circle: .*a\.yaml -> .*b.* -> .*c.* -> .*a",), chain
    )
    base = {CONFIG_FILE: "defaults: base\n", "steps/demo/rows/config/base.yaml": "a: [\n"}
    yield Case("yaml_base_malformed", (*RUN, "-c", "bad"), CONFIG, (r"base\.yaml:2:1",), base)
    for name, kind in {"directory": DIRECTORY, "fifo": FIFO, "circle": CIRCLE, "dangling": DANGLING}.items():
        argv = (*RUN, "-c", "./other.yaml")
        yield Case(f"yaml_is_{name}", argv, CONFIG, (r"other\.yaml",), {"other.yaml": kind})
        files = {CONFIG_FILE: "defaults: base\n", "steps/demo/rows/config/base.yaml": kind}
        yield Case(f"yaml_base_is_{name}", (*RUN, "-c", "bad"), CONFIG, (r"base\.yaml",), files)


def config_name_cases() -> Iterable[Case]:
    """Names of configs that are none."""
    for name, config, code, *says in [
        ("unknown", "defualt", USAGE, "'defualt'", "Did you mean default"),
        ("empty", "", USAGE, "config"),
        ("parent", "../../../../etc/passwd", CONFIG, "etc/passwd", "Name a YAML file"),
        ("absolute", "/etc/nothing.yaml", CONFIG, "/etc/nothing.yaml", "Name a YAML file"),
        ("directory", "/etc", CONFIG, "directory", "Name a YAML file"),
        ("here", ".", USAGE, "config"),
        ("missing_path", "./missing.yaml", CONFIG, r"missing\.yaml", "Name a YAML file"),
        ("nul", "a\x00b.yaml", CONFIG, "a.*b"),
        ("long_name", "x" * 5000, USAGE, "xxx"),
        ("long_path", "x" * 5000 + "/y.yaml", CONFIG, "xxx"),
        ("no_such_user", "~nobody-of-that-name/x.yaml", CONFIG, "nobody-of-that-name"),
        ("surrogate", f"{SURROGATE}.yaml", CONFIG, "yaml"),
        ("rtl", RTL, USAGE, "config"),
        ("emoji", EMOJI, USAGE, "config"),
        ("glob", "*", USAGE, r"\*"),
        ("upper", "DEFAULT", USAGE, "DEFAULT"),
    ]:
        yield Case(f"config_name_{name}", (*RUN, "-c", config), code, tuple(says))
    for i, text in enumerate(INJECTIONS):
        yield Case(f"config_name_injection_{i}", (*RUN, "-c", text), USAGE, ("touch pwned", "Available: default"))


def override_cases() -> Iterable[Case]:
    """Overrides that are refused."""
    tokens: dict[str, tuple[str, ...]] = {
        "unknown": ("nn=1", "'nn'", "Did you mean n"),
        "unknown_deep": ("section.iner=1", "section.iner", "Did you mean section.inner"),
        "unknown_rtl": (f"x{RTL}=1", "x"),
        "unknown_emoji": (f"x{EMOJI}=1", "x"),
        "unknown_combining": (f"{COMBINING}n=1", "n"),
        "section": ("section=1", "section", "Name a key in it|inner"),
        "through_a_value": ("n.x.y=1", "n"),
        "choice": ("mode=c", "mode=c", "a, b, null"),
        "secret": ("api_token=abc", "secret", r"\$\{oc.env:NAME\}"),
        "two_dots": ("a..b=1", r"a\.\.b", "Write section.key=value"),
        "leading_dot": (".a=1", r"'\.a'", "Write section.key=value"),
        "trailing_dot": ("a.=1", r"'a\.'", "Write section.key=value"),
        "no_key": ("=1", "=1", "Write section.key=value"),
        "open_bracket": ("n[=1", r"n\[", "Write section.key=value"),
        "key_nul": ("n\x00=1", "n", "Write section.key=value"),
        "key_newline": ("n\nm=1", "n", "Write section.key=value"),
        "yaml_list": ("n=[1", "n", "quote it"),
        "yaml_mapping": ("n={a: 1", "n", "quote it"),
        "yaml_at": ("n=@x", "n", "quote it"),
        "yaml_duplicate": ("section={inner: 1, inner: 2}", "section", "duplicate"),
        "yaml_alias": ("n=*x", "n", "quote it"),
        "yaml_python": ("n=!!python/object/apply:os.system ['touch pwned']", "n", "plain data"),
        "yaml_recursive": ("n=&a [*a]", "n", "quote it"),
        "yaml_documents": ("n=1\n---\n2", "n", "quote it"),
        "yaml_nul": ("n=a\x00b", "n", "quote it"),
        "yaml_escape": ("n=a\x1b[31mb", "n", "quote it"),
        "yaml_surrogate": (f"n=a{SURROGATE}", "n", "quote it"),
        "huge_number": ("n=" + "9" * 5000, "n", "quote it"),
        "deep": ("n=" + "[" * 100_000, "n", "nests deeper"),
        "laughs": ("n=" + LAUGHS, "n", "more than 100,000"),
        "ten_megabytes": ("n=" + "x" * 10_000_000, "n", "config file"),
        "ten_megabytes_of_key": ("n" * 10_000_000 + "=1", "nnn"),
        "interpolation_missing": ("n=${nothing.here}", "nothing.here"),
        "interpolation_unclosed": ("n=${x", "n"),
        "mandatory": ("n=???", "n", "n=VALUE"),
    }
    for name, (token, *says) in tokens.items():
        yield Case(f"override_{name}", (*RUN, token), CONFIG, tuple(says))
        if name in ("unknown", "choice", "secret", "yaml_list", "mandatory"):  # without -d: before anything runs
            yield Case(f"override_{name}_for_real", ("steps", "run", "demo/rows", token), CONFIG, tuple(says))
    circle = (*RUN, "n=${mode}", "mode=${n}", "--allow-unknown")
    yield Case("override_interpolation_circle", circle, CONFIG, ("n|mode",))
    for i, text in enumerate(INJECTIONS):
        yield Case(f"override_injection_{i}", (*RUN, f"{text}=1"), CONFIG, ("touch pwned",))


def env_toml_cases() -> Iterable[Case]:
    """env.toml and its profiles; every case runs with -r p."""
    texts: dict[str, tuple[object, ...]] = {
        "unclosed_header": ("[p\n", r"env\.toml:1:3"),
        "no_value": ("[p]\na =\n", r"env\.toml:2:\d"),
        "no_equals": ("[p]\na\n", r"env\.toml:2:2"),
        "bare_word": ("[p]\na = yes\n", r"env\.toml:2:5"),
        "unclosed_text": ('[p]\na = "x\n', r"env\.toml:2:\d"),
        "duplicate_key": ('[p]\nexecutor = "local"\nexecutor = "slurm"\n', r"env\.toml:3:\d"),
        "duplicate_table": ('[p]\nexecutor = "local"\n[p]\n', r"env\.toml:3:\d"),
        "nul": ("[p]\na = 'x\x00'\n", r"env\.toml:2:\d"),
        "latin_1": ("[p]\na = 'é'\n".encode("latin-1"), r"env\.toml:2:6", "UTF-8"),
        "utf_16": ("[p]\n".encode("utf-16"), r"env\.toml:1:1", "UTF-8"),
        "deep": ("[p]\na = " + "[" * 5000, r"env\.toml", "nests deeper"),
        "long_key": ("a." * 300_000 + "a = 1", r"env\.toml:1:1", "parts"),
        "huge_number": ("[p]\na = " + "9" * 5000, r"env\.toml:2:1", "digits"),
        "too_large": (b"#" * 2_000_000, r"env\.toml", "larger than"),
        "yaml_instead": ("p:\n  executor: local\n", r"env\.toml:1:2"),
        "directory": (DIRECTORY, r"env\.toml", "directory"),
        "fifo": (FIFO, r"env\.toml", "regular file"),
        "circle": (CIRCLE, r"env\.toml", "symbolic links"),
        "dangling": (DANGLING, r"env\.toml", "no such file"),
        "no_profiles": ("", r"env\.toml", "'p'"),
        "close_name": ('[pp]\nexecutor = "local"\n', "'p'", "Did you mean pp|pp"),
        "profile_is_text": ('p = "local"\n', "p"),
        "profile_is_list": ('[[p]]\nexecutor = "local"\n', "p"),
        "extends_list": ('[p]\nextends = ["a", "b"]\n[a]\n[b]\n', "extends", "one parent|text"),
        "extends_number": ("[p]\nextends = 5\n", "extends"),
        "extends_table": ("[p.extends]\na = 1\n", "extends"),
        "extends_unknown": ('[p]\nextends = "bass"\n[base]\n', "'bass'", "Did you mean base"),
        "extends_itself": ('[p]\nextends = "p"\n', "circle: p -> p"),
        "extends_circle": ('[p]\nextends = "q"\n[q]\nextends = "r"\n[r]\nextends = "p"\n', "circle: p -> q -> r -> p"),
        "extends_reserved": ('[p]\nextends = "wandb"\n[wandb]\nproject = "x"\n', "'wandb'"),
        "executor_unknown": ('[p]\nexecutor = "slrum"\n', "slrum", "slurm"),
        "executor_number": ("[p]\nexecutor = 5\n", "executor"),
        "executor_path": ('[p]\nexecutor = "../local"\n', r"\.\./local"),
        "executor_injection": ('[p]\nexecutor = "$(touch pwned)"\n', "touch pwned"),
        "key_unknown": ('[p]\nexecutor = "local"\nexecuter = "x"\n', "executer", "Did you mean executor|executor"),
        "unset_variable": ('[p]\nexecutor = "local"\nremote_job_dir = "${oc.env:SURELY_UNSET_X}"\n', "SURELY_UNSET_X"),
        "circle_of_values": ('[p]\nexecutor = "local"\na = "${b}"\nb = "${a}"\n', "a|b"),
        "unclosed_reference": ('[p]\nexecutor = "${x"\n', "executor"),
        "date": ("[p]\nexecutor = 2020-01-01\n", "executor"),
        "nodes_text": ('[p]\nexecutor = "local"\nnodes = "two"\n', "nodes"),
        "nodes_negative": ('[p]\nexecutor = "local"\nnodes = -1\n', "nodes"),
        "env_vars_list": ('[p]\nexecutor = "local"\nenv_vars = ["A=1"]\n', "env_vars"),
        "startup_commands_text": ('[p]\nexecutor = "local"\nstartup_commands = 5\n', "startup_commands"),
        "mounts_text": ('[p]\nexecutor = "local"\nmounts = "a:b"\n', "mounts"),
    }
    for name, (text, *says) in texts.items():
        yield Case(f"env_{name}", (*RUN, "-r", "p"), PROFILE, tuple(map(str, says)), {"env.toml": text})
    good = {"env.toml": '[p]\nexecutor = "local"\n[wandb]\nproject = "x"\n'}
    for name, profile, *says in [
        ("unknown", "gpu", "'gpu'", "p"),
        ("reserved_wandb", "wandb", "'wandb'"),
        ("reserved_cli", "cli", "'cli'"),
        ("reserved_cache", "cache", "'cache'"),
        ("reserved_artifacts", "artifacts", "'artifacts'"),
        ("traversal", "../p", r"\.\./p"),
        ("absolute", "/etc/passwd", "/etc/passwd"),
        ("dotted", "p.executor", r"p\.executor"),
        ("upper", "P", "'P'"),
        ("space", " p", "' p'"),
        ("rtl", RTL, "gnp"),
        ("emoji", EMOJI, "profile"),
        ("long", "x" * 10_000, "xxx"),
    ]:
        yield Case(f"profile_name_{name}", (*RUN, "-r", profile), PROFILE, tuple(says), good)
    for i, text in enumerate(INJECTIONS):
        yield Case(f"profile_name_injection_{i}", (*RUN, "-r", text), PROFILE, ("touch pwned",), good)
    yield Case("profile_without_env_toml", (*RUN, "-r", "p"), PROFILE, (r"env\.toml", "'p'"))
    for name, content, value, *says in [
        ("missing", None, "{root}/none.toml", r"none\.toml", "no such file"),
        ("directory", DIRECTORY, "{root}/named", "named", "directory"),
        ("binary", bytes(range(256)), "{root}/named", "named:2:"),
        ("fifo", FIFO, "{root}/named", "named", "regular file"),
        ("device", None, "/dev/zero", "/dev/zero", "regular file"),
        ("long", None, "/" + "x" * 5000, "xxx", "too long"),
    ]:
        files = {} if content is None else {"named": content}
        env = {"NEMOTRON_ENV_FILE": value}
        yield Case(f"env_file_{name}", (*RUN, "-r", "p"), PROFILE, tuple(map(str, says)), files, env)
        if name != "long":
            yield Case(f"env_file_{name}_without_profile", RUN, PROFILE, tuple(map(str, says)), files, env)


def manifest_cases() -> Iterable[Case]:
    """step.toml, step.py and types.toml."""
    show = ("steps", "show", "demo/broken")
    head = '[step]\nid = "demo/broken"\n'
    texts: dict[str, tuple[object, ...]] = {
        "malformed": ("[step\n", r"step\.toml:1:6"),
        "empty": ("", r"step\.toml", "Add one"),
        "other_id": ('[step]\nid = "other/id"\n', r"step\.toml:2:1", "demo/broken"),
        "unknown_key": (head + 'naem = "x"\n', r"step\.toml:3:1", "Did you mean name"),
        "unknown_table": (head + "[consume]\n", r"step\.toml:3:2", "Did you mean consumes"),
        "tags_number": (head + "tags = 5\n", r"step\.toml:3:1: tags = 5", "Write"),
        "resumable_text": (head + 'resumable = "no"\n', r"step\.toml:3:1: resumable", "Write"),
        "payload": (head + 'payload = "done"\n', r"step\.toml:3:1: payload", "'planned'"),
        "consumes_text": ('consumes = "x"\n' + head, r"step\.toml:1:1: consumes", "Write"),
        "type_unknown": (head + '[[consumes]]\ntype = "raw_json"\n', "raw_json", "Did you mean raw_jsonl|raw_jsonl"),
        "type_missing": (head + "[[consumes]]\n", r"step\.toml:3:3", "Name an artifact type"),
        "bind_list": (head + '[[consumes]]\ntype = "raw_jsonl"\nbind = []\n', r"step\.toml:5:1: bind", "Write"),
        "path_outside": (
            head + '[[produces]]\ntype = "raw_jsonl"\npath = "../../x"\n',
            r"step\.toml:5:1: path",
            "Write",
        ),
        "choices_text": (head + '[[parameters]]\nname = "n"\nchoices = "a"\n', r"step\.toml:5:1: choices", "Write"),
        "latin_1": (head.encode() + "name = 'é'\n".encode("latin-1"), r"step\.toml:3:9", "UTF-8"),
        "directory": (DIRECTORY, r"step\.toml", "directory"),
        "fifo": (FIFO, r"step\.toml", "regular file"),
        "circle": (CIRCLE, r"step\.toml", "symbolic links"),
        "too_large": (b"#" * 2_000_000, r"step\.toml", "larger than"),
        "deep": (head + "x = " + "[" * 5000, r"step\.toml", "nests deeper"),
    }
    for name, (text, *says) in texts.items():
        yield Case(f"manifest_{name}", show, CONFIG, tuple(map(str, says)), {BROKEN: text})
        if name in ("malformed", "directory", "tags_number"):
            run = ("steps", "run", "demo/broken", "-d")
            yield Case(f"manifest_{name}_run", run, CONFIG, tuple(map(str, says)), {BROKEN: text})
    spec = '# /// script\n# [tool.runspec]\n# name = "x"\n{}\n# ///\n'
    scripts: dict[str, tuple[object, ...]] = {
        "no_block": ("print()\n", "no `# /// script` block", "Add one"),
        "malformed": (spec.format("# ="), r"step\.py:4:\d"),
        "launch": (spec.format('# [tool.runspec.run]\n# launch = "pyhton"'), r"step\.py:5:3", "Use one of them"),
        "nodes": (spec.format('# [tool.runspec.resources]\n# nodes = "two"'), r"step\.py:5:3: nodes", "Write"),
        "config_outside": (spec.format('# [tool.runspec.config]\n# dir = "../.."'), r"step\.py:5:3", "Move it"),
        "directory": (DIRECTORY, r"step\.py", "directory"),
        "fifo": (FIFO, r"step\.py", "regular file"),
        "binary": (bytes(range(256)), r"step\.py:\d", "UTF-8"),
    }
    for name, (text, *says) in scripts.items():
        files = {BROKEN: head, "steps/demo/broken/step.py": text}
        yield Case(f"script_{name}", show, CONFIG, tuple(map(str, says)), files)
    run, whole = (
        ("steps", "run", "demo/broken", "-d"),
        {BROKEN: head + '[[produces]]\ntype = "raw_jsonl"\nbind = "o"\n'},
    )
    yield Case("script_missing_run", run, CONFIG, (r"no step\.py", "Add one"), whole)
    types: dict[str, tuple[object, ...]] = {
        "malformed": ("[mine\n", r"types\.toml:1:6"),
        "not_a_table": ("mine = 1\n", r"types\.toml:1:1", "Write a table"),
        "is_a_text": ("[mine]\nis_a = 'raw_jsonl'\n", r"types\.toml:2:1", "Write"),
        "is_a_unknown": ("[mine]\nis_a = ['raw_json']\n", r"types\.toml:2:1", "Did you mean raw_jsonl"),
        "unknown_key": ("[mine]\nisa = []\n", r"types\.toml:2:1", "Did you mean is_a"),
        "directory": (DIRECTORY, r"types\.toml", "directory"),
        "dangling": (DANGLING, r"types\.toml", "no such file"),
    }
    for name, (text, *says) in types.items():
        yield Case(f"types_{name}", ("steps", "list"), CONFIG, tuple(map(str, says)), {"steps/types.toml": text})


def pipeline_cases() -> Iterable[Case]:
    """Pipelines of the project."""
    row, fed = "{step: demo/rows", "{step: demo/count, inputs: {training_jsonl: "
    texts: dict[str, tuple[object, ...]] = {
        "malformed": ("nodes: [\n", r"bad\.yaml:2:1"),
        "laughs": (LAUGHS, r"bad\.yaml:\d+:\d+", "more than 100,000"),
        "empty": ("", r"bad\.yaml", "Name at least one node"),
        "nodes_list": ("nodes: []\n", r"bad\.yaml", "Name at least one node"),
        "nodes_empty": ("nodes: {}\n", r"bad\.yaml", "Name at least one node"),
        "unknown_key": (f"nods: 1\nnodes: {{a: {row}}}}}\n", r"bad\.yaml:1:1: unknown key", "Did you mean nodes"),
        "name_list": (f"name: []\nnodes: {{a: {row}}}}}\n", r"bad\.yaml:1:1", "Write text"),
        "name_path": (f"name: ../x\nnodes: {{a: {row}}}}}\n", r"bad\.yaml:1:1", "Rename it"),
        "name_taken": (f"name: catalog\nnodes: {{a: {row}}}}}\n", r"bad\.yaml:1:1", "Choose another"),
        "node_number": ("nodes: {a: 5}\n", "node 'a'", "Write `step: <id>`"),
        "node_name": (f"nodes: {{a-b: {row}}}}}\n", r"bad\.yaml:1:9.*'a-b'", "Rename it"),
        "node_name_unicode": (f"nodes: {{é: {row}}}}}\n", r"bad\.yaml:1:9", "Rename it"),
        "node_key": (f"nodes: {{a: {row}, inptus: {{}}}}}}\n", r"bad\.yaml:1:30", "Did you mean inputs"),
        "step_number": ("nodes: {a: {step: 5}}\n", r"bad\.yaml:1:13", "Write text"),
        "step_unknown": ("nodes: {a: {step: demo/rowz}}\n", r"bad\.yaml:1:13", "Did you mean: demo/rows"),
        "step_traversal": ("nodes: {a: {step: ../../etc}}\n", r"bad\.yaml:1:13", "steps list"),
        "inputs_list": (f"nodes: {{a: {row}, inputs: []}}}}\n", r"bad\.yaml:1:30", "Write"),
        "input_unknown": (f"nodes: {{a: {row}, inputs: {{x: b}}}}}}\n", r"bad\.yaml:1:39", "Inputs: none"),
        "input_number": (f"nodes: {{a: {fed}5}}}}}}\n", r"bad\.yaml:1:40", "Name a node"),
        "input_nowhere": (f"nodes: {{a: {fed}b}}}}}}\n", r"bad\.yaml:1:40", "has a /"),
        "overrides_text": (f"nodes: {{a: {row}, overrides: n=1}}}}\n", r"bad\.yaml:1:30", "Write"),
        "config_list": (f"nodes: {{a: {row}, config: [x]}}}}\n", r"bad\.yaml:1:30", "Write text"),
        "profile_number": (f"nodes: {{a: {row}, profile: 5}}}}\n", r"bad\.yaml:1:30", "Write text"),
        "circle": (
            "nodes:\n  a: {step: demo/count, inputs: {training_jsonl: b}}\n"
            "  b: {step: demo/count, inputs: {training_jsonl: a}}\n", "circle", "Cut one input",
        ),
        "circle_of_itself": (f"nodes: {{a: {fed}a}}}}}}\n", "circle", "Cut one input"),
        "types": (
            "nodes:\n  a: {step: demo/count, inputs: {training_jsonl: b}}\n  b: {step: convert/merge_lora}\n",
            "training_jsonl", "Choose a producer",
        ),
        "directory": (DIRECTORY, r"bad\.yaml", "directory"),
        "fifo": (FIFO, r"bad\.yaml", "regular file"),
        "dangling": (DANGLING, r"bad\.yaml", "no such file"),
    }  # fmt: skip
    for name, (text, *says) in texts.items():
        yield Case(f"pipeline_{name}", ("pipelines", "list"), CONFIG, tuple(map(str, says)), {PIPELINE: text})
    good = f"name: same\nnodes: {{a: {row}}}}}\n"
    twice = {PIPELINE: good, "pipelines/other.yaml": good}
    yield Case("pipeline_twice", ("pipelines", "list"), CONFIG, ("'same'", "another `name`"), twice)
    run = ("pipelines", "run", "nope")
    yield Case("pipeline_unknown", run, USAGE, ("'nope'", "Known: same"), {PIPELINE: good})
    yield Case("pipeline_none", run, USAGE, ("'nope'", r"pipelines/\*\.yaml"))


def command_cases() -> Iterable[Case]:
    """Commands, options and step ids."""
    for name, argv, *says in [
        ("group", ["stpes"], "stpes"),
        ("command", ["steps", "lst"], "lst"),
        ("option", ["steps", "list", "--bogus"], "--bogus"),
        ("option_show", ["steps", "show", "demo/rows", "--tree"], "--tree"),
        ("argument", ["steps", "list", "extra"], "extra"),
        ("show_nothing", ["steps", "show"], "(?i)step_id"),
        ("run_nothing", ["steps", "run"], "(?i)step_id"),
        ("config_value", ["steps", "run", "demo/rows", "-c"], "-c"),
        ("profile_value", ["steps", "run", "demo/rows", "-r"], "-r"),
        ("batch_value", ["steps", "run", "demo/rows", "-b"], "-b"),
        ("category_value", ["steps", "list", "--category"], "--category"),
        ("both_profiles", ["steps", "run", "demo/rows", "-r", "p", "-b", "p"], "-b"),
        ("env_command", ["env", "biuld"], "biuld"),
        ("pipelines_command", ["pipelines", "rnu"], "rnu"),
        ("pipelines_nothing", ["pipelines", "run"], "(?i)name"),
        ("ui_option", ["ui", "--prot", "1"], "--prot"),
        ("flag_with_value", ["steps", "list", "--json=yes"], "--json"),
    ]:
        yield Case(f"command_{name}", tuple(argv), USAGE, tuple(says))
    for name, step, *says in [
        ("unknown", "demo/rowz", "demo/rowz", "Did you mean: demo/rows"),
        ("folder", "rowz", "rowz", "steps list"),
        ("category", "demo", "demo", "steps list"),
        ("upper", "DEMO/ROWS", "DEMO/ROWS", "steps list"),
        ("slash", "demo/rows/", "demo/rows/", "steps list"),
        ("traversal", "../../../etc/passwd", "etc/passwd", "steps list"),
        ("inner_traversal", "demo/../demo/rows", "demo", "steps list"),
        ("absolute", "/etc/passwd", "/etc/passwd", "steps list"),
        ("empty", "", "step", "steps list"),
        ("nul", "demo/rows\x00", "demo/rows", "steps list"),
        ("rtl", RTL, "gnp", "steps list"),
        ("emoji", EMOJI, "step", "steps list"),
        ("surrogate", SURROGATE, "step", "steps list"),
        ("long", "x" * 100_000, "xxx", "steps list"),
        ("ambiguous", "automodel", "Did you mean: peft/automodel", "steps list"),
        ("injection", "$(touch pwned)", "touch pwned", "steps list"),
    ]:
        yield Case(f"step_{name}_show", ("steps", "show", step), USAGE, tuple(says))
        yield Case(f"step_{name}_run", ("steps", "run", step, "-d"), USAGE, tuple(says))
    yield Case("step_planned", ("steps", "run", "sdg/data_designer"), NOT_BUILT, ("not built", "steps show"))


def cases() -> list[Case]:
    """The whole table."""
    return [
        *yaml_cases(), *config_name_cases(), *override_cases(), *env_toml_cases(), *manifest_cases(), *pipeline_cases(),
        *command_cases(),
    ]  # fmt: skip
