"""Text from a trained model, by transformers' own `generate`: streamed for one prompt, in a batch for several."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raylm.errors import CheckpointError, ConfigError
from raylm.storage import Connection, StoragePath
from raylm.trained import Trained, open_trained

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from raylm.config.job import Job

_BROKEN = "\ufffd"  # how a decoder shows bytes that are not, or not yet, a character
_CONTEXT_TOKENS = 4


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    Temperature 0 takes the likeliest; top_k 0 and top_p 1 leave all to choose from. The text ends before the first of
    the strings in `stop`.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    max_new_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("stop", all(self.stop), "strings of at least one character"),
        ):
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)} cannot work", hint=f"give {wanted}")


def generate(
    run: str | Path | StoragePath | Job | Trained,
    prompt: str,
    settings: Sampling = Sampling(),
    connection: Connection = Connection(),  # noqa: B008
) -> Iterator[str]:
    """What follows the prompt, in parts of valid UTF-8, until the model ends the text or `settings` do.

    The same settings and model give the same text. Where the text outgrows the rows the model was trained on, it sees
    the newest half of a row and what follows.
    """
    _check(prompt, settings)
    trained = run if isinstance(run, Trained) else open_trained(run, connection)
    return before_stop(decoded(trained.tokenizer, _tokens(trained, prompt, settings)), settings.stop)


def generate_batch(
    run: str | Path | StoragePath | Job | Trained,
    prompts: Sequence[str],
    settings: Sampling = Sampling(),
    connection: Connection = Connection(),  # noqa: B008
) -> list[str]:
    """What follows each prompt, computed together.

    Each prompt draws from a source of its own with the settings' seed, so that its text does not hang on the others,
    up to how the device rounds in a batch. What may outgrow the model's rows is generated alone, by `generate`.
    """
    for prompt in prompts:
        _check(prompt, settings)
    trained = run if isinstance(run, Trained) else open_trained(run, connection)
    encoded = [_prompt_tokens(trained, prompt) for prompt in prompts]
    context = trained.info.context
    fits = [context is None or len(tokens) + settings.max_new_tokens <= context + 1 for tokens in encoded]
    together = iter(_batched(trained, [tokens for tokens, fit in zip(encoded, fits, strict=True) if fit], settings))
    return [
        next(together) if fit else "".join(generate(trained, prompt, settings))
        for prompt, fit in zip(prompts, fits, strict=True)
    ]


def _check(prompt: object, settings: object) -> None:
    if not isinstance(settings, Sampling):
        raise ConfigError(
            f"settings are a Sampling, not the {type(settings).__name__} {str(settings)[:80]}",
            hint="from raylm.generation import Sampling; Sampling(temperature=0, max_new_tokens=64)",
        )
    if not isinstance(prompt, str):
        raise ConfigError(f"a prompt is a text, not {str(prompt)[:80]!r}", hint="generate_batch takes several")
    _check_utf8(prompt)


def decoded(tokenizer: Any, tokens: Iterator[int]) -> Iterator[str]:
    """The text of tokens, each part given out when no later token can change it."""
    before: list[int] = []  # tokens before the pending ones: some vocabularies drop a space where a text begins
    pending: list[int] = []
    given = text = ""
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(before + pending, skip_special_tokens=True)
        # A character cut between tokens shows as one broken one at the end, until the rest of its bytes is there.
        whole = text.removesuffix(_BROKEN)
        if len(whole) > len(given):
            yield whole[len(given) :]
            given = whole
        if whole == text:
            before, pending = pending[-_CONTEXT_TOKENS:], []
            given = text = tokenizer.decode(before, skip_special_tokens=True)
    if len(text) > len(given):
        yield text[len(given) :]


def before_stop(parts: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """The text of the parts up to the first of the strings in `stop`; what may be the beginning of one waits."""
    held = ""
    for part in parts:
        held += part
        ends = [held.find(end) for end in stop if end in held]
        if ends:
            if min(ends):
                yield held[: min(ends)]
            return
        waiting = max((n for end in stop for n in range(1, len(end)) if held.endswith(end[:n])), default=0)
        if len(held) > waiting:
            yield held[: len(held) - waiting]
            held = held[len(held) - waiting :]
    if held:
        yield held


class SeededChoice:
    """A logits processor that makes the likeliest token a drawn one: one source of random numbers per row.

    The largest of the scores plus Gumbel noise is a draw from their softmax. transformers' own sampling draws from
    PyTorch's global source, which belongs to the caller, and one for the whole batch.
    """

    def __init__(self, seed: int, rows: int) -> None:
        import torch

        self._sources = [torch.Generator(device="cpu").manual_seed(seed) for _ in range(rows)]

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Scores with noise, (rows, vocabulary)."""
        import torch

        noise = [torch.empty(scores.shape[1]).exponential_(generator=source) for source in self._sources]
        return scores - torch.stack(noise).log_().to(scores.device)


class OnlyNumbers:
    """A logits processor that refuses scores that are no numbers, from which nothing can be drawn."""

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are, (rows, vocabulary)."""
        import torch

        if bool((scores.isnan() | (scores == torch.inf)).any()):
            raise CheckpointError(
                "the model gives scores that are no numbers (NaN or infinite)",
                hint="its weights are broken: use an earlier checkpoint, from before the loss was NaN",
            )
        return scores


def logits_processors(settings: Sampling, rows: int) -> list[Any]:
    """What turns scores (rows, vocabulary) into those of which the largest is the next token."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if settings.temperature == 0:
        return []
    return [
        TemperatureLogitsWarper(float(settings.temperature)),
        *([TopKLogitsWarper(settings.top_k)] if settings.top_k else []),
        *([TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []),
        SeededChoice(settings.seed, rows),
    ]


class _Decoding:
    """One model's `generate`, with the settings turned into what it takes; random numbers go on from call to call."""

    def __init__(self, trained: Trained, settings: Sampling, rows: int) -> None:
        from transformers import SuppressTokensLogitsProcessor

        tokenizer, self._model = trained.tokenizer, trained.model
        self._device = trained.device
        self.eos: int | None = tokenizer.eos_token_id
        self._pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._processors = logits_processors(settings, rows)
        width = self._model.config.get_text_config().vocab_size
        spare = sorted(set(range(width)) - set(tokenizer.get_vocab().values()))
        if spare:  # rows of the embedding that no token has: ids may have gaps
            self._processors.insert(0, SuppressTokensLogitsProcessor(spare, device=self._device))
        self._processors.insert(0, OnlyNumbers())

    def __call__(self, prompts: Sequence[Sequence[int]], new: int, **more: Any) -> list[list[int]]:
        """At most `new` tokens behind each prompt, those behind an end of text included."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        longest = max(map(len, prompts))
        pad = 0 if self._pad is None else self._pad
        tokens = torch.tensor([[pad] * (longest - len(one)) + list(one) for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        # An export's own defaults are for other programs: what is asked for here is all that counts.
        self._model.generation_config = GenerationConfig()
        config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=self.eos, pad_token_id=pad)
        with torch.inference_mode():
            made = self._model.generate(
                tokens.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=config,
                logits_processor=LogitsProcessorList(self._processors),
                **more,
            )
        return [row[longest:].tolist() for row in made]


class _TokenQueue:
    """A streamer of transformers' that hands new tokens to another thread."""

    def __init__(self, tokens: queue.SimpleQueue[int | None]) -> None:
        self._tokens = tokens
        self._prompt_is_due = True

    def put(self, value: Tensor) -> None:
        """The prompt, (1, tokens), and then each new token, (1,)."""
        if not self._prompt_is_due:
            self._tokens.put(int(value[0]))
        self._prompt_is_due = False

    def end(self) -> None:
        """Nothing: more may follow in another call."""


def _tokens(trained: Trained, prompt: str, settings: Sampling) -> Iterator[int]:
    """New tokens one by one, while a thread computes the next ones."""
    tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    unwanted = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            work = pool.submit(_produce, trained, prompt, settings, tokens, unwanted)
            work.add_done_callback(lambda _: tokens.put(None))
            while (token := tokens.get()) is not None:
                if token != trained.tokenizer.eos_token_id:
                    yield token
            work.result()
        finally:
            unwanted.set()


def _produce(
    trained: Trained,
    prompt: str,
    settings: Sampling,
    tokens: queue.SimpleQueue[int | None],
    unwanted: threading.Event,
) -> None:
    """Put every new token into the queue, until the text ends or nobody wants more."""
    import torch

    def nobody_waits(found: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((found.shape[0],), unwanted.is_set(), device=found.device)

    decode = _Decoding(trained, settings, rows=1)
    context = trained.info.context
    seen = _prompt_tokens(trained, prompt)
    left = settings.max_new_tokens
    while left and not unwanted.is_set():
        room = left
        if context is not None:
            if len(seen) > context:
                seen = seen[-max(1, context // 2) :]
            room = min(left, context - len(seen) + 1)  # the last token is not read
        new = decode([seen], room, streamer=_TokenQueue(tokens), stopping_criteria=[nobody_waits])[0]
        if decode.eos is not None and decode.eos in new:
            return
        seen = seen + new
        left -= len(new)


def _batched(trained: Trained, prompts: Sequence[list[int]], settings: Sampling) -> list[str]:
    if not prompts:
        return []
    more = {"stop_strings": list(settings.stop), "tokenizer": trained.tokenizer} if settings.stop else {}
    decode = _Decoding(trained, settings, rows=len(prompts))
    texts = []
    for new in decode(prompts, settings.max_new_tokens, **more):
        ended = new.index(decode.eos) if decode.eos in new else len(new)
        texts.append("".join(before_stop(decoded(trained.tokenizer, iter(new[:ended])), settings.stop)))
    return texts


def _prompt_tokens(trained: Trained, prompt: str) -> list[int]:
    tokens: list[int] = trained.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    # Documents follow each other with the end of text between them, so after it one begins.
    eos = trained.tokenizer.eos_token_id
    return tokens or [0 if eos is None else eos]


def _check_utf8(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the prompt is not UTF-8", hint="give it as UTF-8 text") from error
