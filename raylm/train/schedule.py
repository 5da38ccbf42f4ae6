"""A step in, its learning rate out: a pure function of the step, so that a resume cannot shift it."""

from __future__ import annotations

import math

from raylm.config.optim import OptimSettings


def learning_rate(optim: OptimSettings, *, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (0-based) in a run of `total_steps`.

    Warm-up is linear and reaches the peak at step `warmup_steps`. After it, cosine and linear fall to
    `min_lr_ratio` of the peak at the last step; wsd (warm-up, stable, decay; Hu et al. 2024, MiniCPM) stays
    at the peak and falls linearly over the last `decay_steps`.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / (optim.warmup_steps + 1)
    floor = optim.min_lr_ratio
    match optim.schedule:
        case "constant":
            return optim.lr
        case "wsd":
            decay = optim.decay_steps if optim.decay_steps is not None else max(1, total_steps // 10)
            start = max(optim.warmup_steps, total_steps - decay)
            return optim.lr * (1 - (1 - floor) * _fraction(step, start, total_steps))
        case "linear":
            return optim.lr * (1 - (1 - floor) * _fraction(step, optim.warmup_steps, total_steps))
        case "cosine":
            done = _fraction(step, optim.warmup_steps, total_steps)
            return optim.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def _fraction(step: int, start: int, total_steps: int) -> float:
    """How far step lies between start (0) and the last step (1)."""
    if step < start:
        return 0.0
    return min(1.0, (step - start) / max(1, total_steps - 1 - start))
