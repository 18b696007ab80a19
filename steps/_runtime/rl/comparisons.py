"""How a generative reward model (GenRM) compares the answers to one prompt, and how comparisons become rewards.

The protocol is that of NeMo-Gym's ``genrm_compare`` server: two answers are two turns of the roles ``response_1`` and
``response_2`` after the conversation, a ``principle`` may follow, and the model replies with
``{"score_1": 1 to 5, "score_2": 1 to 5, "ranking": 1 to 6}``, in which a ranking below 3.5 prefers the first.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from _runtime.rl.layouts import Messages

MIDDLE = 3.5
STRATEGIES = ("circular", "all_pairs")
ROLES = ("genrm", "plain")


@dataclass(frozen=True)
class Rules:
    """``env.nemo_gym.genrm_compare``: which answers are compared, and what counts where nothing can be read."""

    strategy: str = "circular"
    judges: int = 1
    principle: str | None = None
    roles: str = "genrm"
    default_score: float = 3.0
    default_ranking: float = MIDDLE


@dataclass(frozen=True)
class Verdict:
    """What was read from a reply; ``parsed`` is False where nothing could be."""

    score_1: float
    score_2: float
    ranking: float
    parsed: bool = True


def pairs(strategy: str, count: int) -> list[tuple[int, int]]:
    """Which of ``count`` answers are compared: each with the next one of a circle, or all with all."""
    if strategy == "all_pairs":
        return list(itertools.combinations(range(count), 2))
    return [(i, (i + 1) % count) for i in range(count)] if count > 1 else []


def question(rules: Rules, asked: Messages, first: str, second: str) -> Messages:
    """The messages by which a judge is asked. A judge that is no GenRM (roles ``plain``) reads it all as one text."""
    if rules.roles == "genrm":
        said = [*asked, {"role": "response_1", "content": first}, {"role": "response_2", "content": second}]
        return [*said, {"role": "principle", "content": rules.principle}] if rules.principle else said
    turns = "\n".join(f"{turn['role']}: {turn['content']}" for turn in asked)
    text = (
        f"{rules.principle or 'Compare two answers to the last message of this conversation.'}\n\n"
        f"[conversation]\n{turns}\n\n[answer 1]\n{first}\n\n[answer 2]\n{second}\n\n"
        'Reply with nothing but JSON: {"score_1": S, "score_2": S, "ranking": R}. S is 1 (useless) to 5 (excellent); '
        "R is 1 (answer 1 is much better) to 6 (answer 2 is much better)."
    )
    return [{"role": "user", "content": text}]


def verdict(rules: Rules, reply: str) -> Verdict:
    """Read a reply: the last JSON object in it that has one of the three keys."""
    for found in reversed(_objects(reply)):
        inner = found.get("overall")
        values = inner if isinstance(inner, dict) else found
        if not {"score_1", "score_2", "ranking"} & set(values):
            continue
        try:
            return Verdict(
                float(values.get("score_1", rules.default_score)),
                float(values.get("score_2", rules.default_score)),
                float(values.get("ranking", rules.default_ranking)),
            )
        except (TypeError, ValueError):
            continue
    return Verdict(rules.default_score, rules.default_score, rules.default_ranking, parsed=False)


def _objects(text: str) -> list[dict[str, Any]]:
    decoder, found, at = json.JSONDecoder(), [], text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            end = at + 1
        else:
            found.append(value)
        at = text.find("{", end)
    return found


def rewards(rules: Rules, count: int, verdicts: Sequence[tuple[tuple[int, int], Verdict]]) -> list[float]:
    """The mean score of each of ``count`` answers; the ranking decides between equal scores, as in NeMo-Gym."""
    sums, times = [0.0] * count, [0] * count
    for (first, second), seen in verdicts:
        lean = MIDDLE - seen.ranking if seen.score_1 == seen.score_2 else 0.0
        for i, score in ((first, seen.score_1 + lean), (second, seen.score_2 - lean)):
            sums[i] += score
            times[i] += 1
    return [s / n if n else rules.default_score for s, n in zip(sums, times, strict=True)]


def rules(compare: Mapping[str, Any], roles: str) -> Rules:
    """The rules of a config's ``genrm_compare`` section.

    Raises:
        ValueError: naming the key and its value.
    """
    strategy = str(compare.get("comparison_strategy") or "circular")
    if strategy not in STRATEGIES:
        raise ValueError(f"comparison_strategy={strategy}: one of {', '.join(STRATEGIES)}")
    if roles not in ROLES:
        raise ValueError(f"roles={roles}: one of {', '.join(ROLES)}")
    principle = compare.get("default_principle") if compare.get("use_principle") else None
    return Rules(
        strategy=strategy,
        judges=int(compare.get("num_judges_per_comparison") or 1),
        principle=str(principle) if principle else None,
        roles=roles,
        default_score=float(compare.get("default_score", 3.0)),
        default_ranking=float(compare.get("default_ranking", MIDDLE)),
    )
