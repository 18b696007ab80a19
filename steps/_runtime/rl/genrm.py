"""Rewards of a judge: the answers to each prompt are compared by a generative reward model (GenRM).

env.judge.base_url       an OpenAI-compatible endpoint; null serves the checkpoint itself, for the run
env.judge.model          its name there; null: that of the checkpoint
env.judge.{api_key_env, timeout_s, max_retries, at_once, roles}
env.nemo_gym.genrm_compare.resources_servers.genrm_compare.*     what is compared, as in NeMo-Gym
env.nemo_gym.genrm_model.responses_api_models.genrm_model.model  the checkpoint
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runtime import chat_data, cpu, hf_checkpoint
from _runtime.payload import PayloadError
from _runtime.rl import comparisons, judge_server, layouts, warm_start
from _runtime.rl import judge as judges
from _runtime.rl.settings import at, real, whole

COMPARE = "env.nemo_gym.genrm_compare.resources_servers.genrm_compare"
MODEL = "env.nemo_gym.genrm_model.responses_api_models.genrm_model.model"


@dataclass(frozen=True)
class Asked:
    """A prompt without anything to check its answers against."""

    prompt: layouts.Messages


@contextlib.contextmanager
def judge(
    cfg: Mapping[str, Any], output: Path, seed: int, policy: str
) -> Iterator[tuple[judges.Endpoint, dict[str, Any]]]:
    """The endpoint of the judge, and the facts about it; one that is served here stops with the block.

    Raises:
        PayloadError: no judge is named, or the policy is its own.
    """
    if at(cfg, "env.should_use_nemo_gym", True) is False:
        raise PayloadError(
            "trl_unsupported",
            "env.should_use_nemo_gym=false has no judge, and so no reward",
            "Set it to true, or train with rl/nemo_rl/rlvr.",
        )
    params = at(cfg, f"{COMPARE}.genrm_responses_create_params", {})
    given = {"max_tokens": "max_output_tokens", "temperature": "temperature", "top_p": "top_p"}
    sampling = {name: params[key] for name, key in given.items() if params.get(key) is not None}
    url, model = at(cfg, "env.judge.base_url"), at(cfg, MODEL)
    key_env = at(cfg, "env.judge.api_key_env")

    def endpoint(base_url: str, name: str) -> judges.Endpoint:
        return judges.Endpoint(
            base_url=base_url,
            model=name,
            key_env=str(key_env) if key_env else None,
            timeout_s=real(cfg, "env.judge.timeout_s", 60.0),
            retries=whole(cfg, "env.judge.max_retries", 5, least=0),
            at_once=whole(cfg, "env.judge.at_once", 32),
            sampling=sampling,
        )

    if url:
        name = str(at(cfg, "env.judge.model") or model or "")
        if not chat_data.given(name):
            raise PayloadError("judge_missing", "env.judge.model is not set", "Name the model at env.judge.base_url.")
        asked = endpoint(str(url), name)
        asked.key()
        yield asked, {"judge": name, "judge_url": str(url)}
        return
    if not chat_data.given(model):
        raise PayloadError("judge_missing", f"{MODEL} is not set", "Give a checkpoint, or env.judge.base_url.")
    directory, facts = _checkpoint(str(model), output, seed, policy)
    with judge_server.serving(directory, str(model)) as base_url:
        print(f"judge {model} is served for this run at {base_url}", flush=True)
        yield endpoint(base_url, str(model)), {"judge": str(model), "judge_served": True, **facts}


def _checkpoint(model: str, output: Path, seed: int, policy: str) -> tuple[str, dict[str, Any]]:
    if model == "tiny_llama":
        made = output / "judge"
        return str(made), {"judge_warm_start": warm_start.make(made, "judge", seed)}
    hf_checkpoint.check_base(model, MODEL)
    if model == policy or (hf_checkpoint.is_local(model) and Path(model).resolve() == Path(policy).resolve()):
        raise PayloadError(
            "reward_model_policy_confused",
            f"{MODEL}={model} is the policy itself",
            "Give two checkpoints: the policy in policy.model_name, the judge in this key.",
        )
    hf_checkpoint.load_tokenizer(model, MODEL)
    if not cpu.has_cuda():
        cpu.refuse_large(model, key=MODEL, done="served")
    return model, {}


def score(
    cfg: Mapping[str, Any], endpoint: judges.Endpoint, prompts: Sequence[layouts.Messages]
) -> Callable[[Sequence[int], Sequence[str], Callable[[str, float], None]], list[float]]:
    """The reward function: answers to one prompt, which come one after the other, are compared with each other.

    Raises:
        PayloadError: a setting of the comparison is not known.
    """
    try:
        rules = comparisons.rules(at(cfg, COMPARE, {}), str(at(cfg, "env.judge.roles", "genrm")))
    except (ValueError, TypeError) as e:
        raise PayloadError("config_invalid", f"{COMPARE}: {e}", "Mend that key.") from None

    def rewards(rows: Sequence[int], answers: Sequence[str], log_metric: Callable[[str, float], None]) -> list[float]:
        groups = _groups(rows)
        asked = [
            (group, pair)
            for group in groups
            for _ in range(rules.judges)
            for pair in comparisons.pairs(rules.strategy, len(group))
        ]
        questions = [
            comparisons.question(rules, prompts[rows[group[0]]], answers[group[i]], answers[group[j]])
            for group, (i, j) in asked
        ]
        read = [comparisons.verdict(rules, reply) for reply in judges.ask_all(endpoint, questions)]
        unread = sum(not v.parsed for v in read)
        if read and unread == len(read):
            raise PayloadError(
                "judge_unparseable",
                f"none of {len(read)} replies of the judge {endpoint.model} holds the JSON that is asked for",
                "Give a GenRM, set env.judge.roles=plain for an ordinary model, or raise max_output_tokens.",
            )
        log_metric("judge_unparseable", unread / len(read) if read else 0.0)
        found = [rules.default_score] * len(answers)
        for group in groups:
            mine = [(pair, v) for (g, pair), v in zip(asked, read, strict=True) if g is group]
            for place, value in zip(group, comparisons.rewards(rules, len(group), mine), strict=True):
                found[place] = value
        return found

    return rewards


def _groups(rows: Sequence[int]) -> list[list[int]]:
    """Places of answers to the same row."""
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(int(row), []).append(place)
    return list(groups.values())
