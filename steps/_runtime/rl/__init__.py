"""What rl/nemo_rl/{dpo,rlvr,rlhf} share: their rows, rewards, policies, and the two backends that train on them."""
