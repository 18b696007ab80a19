"""GRPO with NeMo-Gym in this process: NeMo-RL's own functions, in the order of its NeMo-Gym example (v0.6.0).

NeMo-RL makes data sets, policy and rollouts; NeMo-Gym's servers give the rewards. Started by ``nemo_rl`` as
``python -m _runtime.rl.nemo_gym --config FILE [KEY=VALUE ...]``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from _runtime import payload
from _runtime.payload import PayloadError
from _runtime.rl import nemo_gym_servers
from _runtime.rl.settings import at, put


def main(cfg: dict[str, Any]) -> None:
    """Train as the config says, the overrides of the command line over it."""
    from omegaconf import OmegaConf

    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("--config")]
    merged = OmegaConf.to_container(OmegaConf.merge(cfg, OmegaConf.from_dotlist(overrides)), resolve=True)
    assert isinstance(merged, dict)
    train({str(k): v for k, v in merged.items()})


def train(cfg: dict[str, Any]) -> None:
    """Set NeMo-RL and NeMo-Gym up, and train.

    Raises:
        PayloadError: settings that NeMo-Gym does not take.
    """
    check(cfg)
    import ray
    from nemo_rl.algorithms import grpo
    from nemo_rl.algorithms.utils import get_tokenizer
    from nemo_rl.data.utils import setup_response_data
    from nemo_rl.distributed.virtual_cluster import init_ray
    from nemo_rl.environments.nemo_gym import NemoGymConfig, setup_nemo_gym_config
    from nemo_rl.environments.utils import create_env
    from nemo_rl.models.generation import configure_generation_config
    from nemo_rl.utils.logger import get_next_experiment_dir

    if at(cfg, "logger.log_dir"):
        put(cfg, "logger.log_dir", get_next_experiment_dir(cfg["logger"]["log_dir"]))
    tokenizer = get_tokenizer(cfg["policy"]["tokenizer"])
    put(cfg, "policy.generation", configure_generation_config(cfg["policy"]["generation"], tokenizer))
    setup_nemo_gym_config(cfg, tokenizer)
    rows, held_out = setup_response_data(tokenizer=tokenizer, data_config=cfg["data"], env_configs=None)
    size_validation(cfg, None if held_out is None else len(held_out))
    init_ray()
    made = grpo.setup(cfg, tokenizer, rows, held_out)
    policy, generation, _, loader, held_out_loader, loss, logger, checkpointer, state, master = made
    collect_only = bool(cfg["env"]["nemo_gym"].pop("is_trajectory_collection", False))
    urls = generation.dp_openai_server_base_urls
    servers = nemo_gym_servers.settled(cfg["env"]["nemo_gym"], generation.cfg["model_name"], urls)
    gym = create_env(
        env_name="nemo_gym",
        env_config=NemoGymConfig(
            model_name=generation.cfg["model_name"], base_urls=urls, initial_global_config_dict=servers
        ),
    )
    ray.get(gym.health_check.remote())
    if collect_only:
        raise PayloadError(
            "config_invalid",
            "env.nemo_gym.is_trajectory_collection=true: nothing is trained, so there is no policy to publish",
            "Set it to false; collect rollouts with NeMo-RL's own example.",
        )
    environments = {"nemo_gym": gym}
    common = {
        "val_dataloader": held_out_loader,
        "tokenizer": tokenizer,
        "loss_fn": loss,
        "task_to_env": environments,
        "val_task_to_env": environments,
        "logger": logger,
        "checkpointer": checkpointer,
        "grpo_save_state": state,
        "master_config": master,
    }
    if at(cfg, "grpo.async_grpo.enabled", False):
        age = int(cfg["grpo"]["async_grpo"]["max_trajectory_age_steps"])
        grpo.async_grpo_train(
            policy=policy, policy_generation=generation, dataloader=loader, max_trajectory_age_steps=age, **common
        )
    else:
        grpo.grpo_train(policy=policy, policy_generation=generation, wrapped_dataloader=loader, **common)


def check(cfg: dict[str, Any]) -> None:
    """Refuse what NeMo-RL would refuse only once all its workers are up.

    Raises:
        PayloadError: naming the keys.
    """
    wrong = []
    if at(cfg, "grpo.max_val_samples") is not None:
        wrong.append("grpo.max_val_samples=null (NeMo-Gym validates on all rows; val_batch_size caps a batch)")
    if not at(cfg, "policy.generation"):
        wrong.append("policy.generation (GRPO generates)")
    if at(cfg, "grpo.async_grpo.enabled", False):
        off = ("grpo.use_dynamic_sampling", "grpo.reward_scaling.enabled", "grpo.reward_shaping.enabled",
               "data.use_multiple_dataloader")  # fmt: skip
        wrong += [f"{key}=false (asynchronous GRPO has none)" for key in off if at(cfg, key, False)]
    if wrong:
        raise PayloadError(
            "mixed_nemo_gym_and_upstream_config",
            f"env.should_use_nemo_gym=true needs {', '.join(wrong)}",
            "Take data, env and grpo of config nemo_gym, or set env.should_use_nemo_gym=false.",
        )


def size_validation(cfg: dict[str, Any], rows: int | None) -> None:
    """Validate on all rows, in batches of ``grpo.val_batch_size`` where that is set and smaller."""
    if rows is None:
        return
    size = at(cfg, "grpo.val_batch_size")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise PayloadError("config_invalid", f"grpo.val_batch_size={size}: must be at least 1, or null", "Mend it.")
    put(cfg, "grpo.max_val_samples", rows)
    put(cfg, "grpo.val_batch_size", min(size or rows, rows))


if __name__ == "__main__":
    payload.run(main, Path("nemo_rl.yaml"))
