"""Text from a trained model: comes in a prompt and sampling settings, leaves pieces of valid UTF-8 one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raylm.errors import ConfigError
from raylm.storage import Connection, StoragePath
from raylm.trained import Trained, open_trained

if TYPE_CHECKING:
    from torch import Tensor

_BROKEN = "\ufffd"  # how a decoder shows bytes that are not, or not yet, a character
_SCENE_TOKENS = 4


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest; top_k 0 and top_p 1 leave all to choose from."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
        ):
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)} cannot work", hint=f"give {wanted}")


def generate(
    run: str | StoragePath | Trained,
    prompt: str,
    settings: Sampling = Sampling(),
    connection: Connection = Connection(),  # noqa: B008
) -> Iterator[str]:
    """What follows the prompt, in pieces, until the model ends the text or `max_new_tokens` are made.

    The same settings and model give the same text. Where the text outgrows the rows the model was trained on, it sees
    the newest half of a row and what follows.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the prompt is not UTF-8", hint="give it as UTF-8 text") from error
    trained = run if isinstance(run, Trained) else open_trained(run, connection)
    return decoded(trained.tokenizer, _tokens(trained, prompt, settings))


def decoded(tokenizer: Any, tokens: Iterator[int]) -> Iterator[str]:
    """The text of tokens, each piece given out when no later token can change it."""
    scene: list[int] = []  # tokens before the pending ones: some vocabularies drop a space where a text begins
    pending: list[int] = []
    given = text = ""
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(scene + pending, skip_special_tokens=True)
        # A character cut between tokens shows as one broken one at the end, until the rest of its bytes is there.
        whole = text.removesuffix(_BROKEN)
        if len(whole) > len(given):
            yield whole[len(given) :]
            given = whole
        if whole == text:
            scene, pending = pending[-_SCENE_TOKENS:], []
            given = text = tokenizer.decode(scene, skip_special_tokens=True)
    if len(text) > len(given):
        yield text[len(given) :]


def _tokens(trained: Trained, prompt: str, settings: Sampling) -> Iterator[int]:
    """New tokens one by one, each from the ones before, with what they left in the cache."""
    import torch

    tokenizer, device = trained.tokenizer, trained.device
    seen: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not seen:
        # Documents follow each other with this token between them, so after it one begins.
        seen = [tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0]
    context = trained.info.context
    source = torch.Generator(device="cpu").manual_seed(settings.seed)
    cache: Any = None
    fed = 0
    for _ in range(settings.max_new_tokens):
        if context is not None and len(seen) - fed + _cached(cache) > context:
            seen, cache, fed = seen[-max(1, context // 2) :], None, 0
        with torch.inference_mode():
            inputs = torch.tensor([seen[fed:]], device=device)
            output = trained.model(input_ids=inputs, past_key_values=cache, use_cache=True)
        cache, fed = getattr(output, "past_key_values", None), len(seen)
        if cache is None:
            fed = 0  # a model without a cache reads everything again
        token = choose(output.logits[0, -1, : len(tokenizer)].float().cpu(), settings, source)
        if token == tokenizer.eos_token_id:
            return
        seen.append(token)
        yield token


def _cached(cache: Any) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def choose(scores: Tensor, settings: Sampling, source: Any) -> int:
    """One token from the scores (vocabulary,) of all."""
    import torch

    if settings.temperature == 0:
        return int(scores.argmax())
    scores = scores / settings.temperature
    order = torch.argsort(scores, descending=True, stable=True)
    shares = torch.softmax(scores[order], dim=0)
    # Kept: every token before which less than top_p has been reached, so at least one.
    kept = shares.cumsum(0) - shares < settings.top_p
    if settings.top_k:
        kept[settings.top_k :] = False
    picked = torch.multinomial(shares.where(kept, 0.0), 1, generator=source)
    return int(order[picked])
