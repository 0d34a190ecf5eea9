"""Options with which runs of the bundles take seconds on a CPU."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {"preset": "nano", "num_workers": 0, "device": "$torch.device('cpu')"}
SMALL_PRETRAIN = SMALL | {
    "level_sizes": [[40, 40, 32], [16, 16, 16], [8, 8, 8]],
    "input_size": [32, 32, 32],
    "projection_dim": 16,
}
SMALL_PRETRAIN_RUN = SMALL_PRETRAIN | {
    "global_batch_size": 2,
    "batch_size": 1,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "log_interval": 1,
    "checkpoint_interval": 2,
}
