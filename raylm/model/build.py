"""The network itself: a transformers module on the CPU in fp32, from the `model` section of a job.

The same seed gives the same weights on every machine and at any number of workers. Nothing is ever fetched from a hub.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from raylm.config.model import ModelSettings
from raylm.errors import ConfigError
from raylm.model.config_keys import CONFIG_ERRORS, check_keys
from raylm.model.first_weights import Drawn, FirstWeights, Nothing, place, without_memory
from raylm.model.fitness import check_config
from raylm.model.presets import preset_config
from raylm.model.stored_weights import FOLDER_HINT, own_head, stored_weights
from raylm.model.token_ids import token_ids
from raylm.storage import StoragePath

CAUSAL = "AutoModelForCausalLM"
_DROPOUTS = ("dropout", "_pdrop", "_drop", "dropout_prob", "dropout_rate", "layerdrop")  # as families end their names


def build_model(
    settings: ModelSettings,
    *,
    vocab_size: int,
    sequence_length: int,
    seed: int | None,
    eos_id: int | None = None,
    dtype: torch.dtype = torch.float32,
    auto_class: str = CAUSAL,
) -> torch.nn.Module:
    """The module to train, in training mode, with the switches of `settings` set, made by a class of transformers.

    seed: of its first weights; with None they are whatever was in memory, for whoever fills them.
    """
    model = unfilled_model(
        settings, vocab_size=vocab_size, sequence_length=sequence_length, eos_id=eos_id, auto_class=auto_class
    )
    place(model, Nothing() if seed is None else first_weights(settings, model, seed), dtype=dtype)
    return model


def unfilled_model(
    settings: ModelSettings,
    *,
    vocab_size: int,
    sequence_length: int,
    eos_id: int | None = None,
    auto_class: str = CAUSAL,
) -> torch.nn.Module:
    """The module to train, as build_model makes it, whose parameters have no memory yet: `place` gives them some."""
    return unfilled_from(settings, model_config(settings, vocab_size, sequence_length, eos_id=eos_id), auto_class)


def unfilled_from(settings: ModelSettings, config: Any, auto_class: str = CAUSAL) -> torch.nn.Module:
    """The module that a config describes, with the switches of `settings` set, whose parameters have no memory yet."""
    model = _without_memory(config, settings.attention, auto_class)
    if settings.path is not None and own_head(StoragePath(settings.path), model, key="model.path"):
        config.tie_word_embeddings = False  # as transformers: what the files hold counts
        model = _without_memory(config, settings.attention, auto_class)
    if settings.document_attention and not _takes_positions(model):
        raise ConfigError(
            f"model type {config.model_type!r} takes no position ids, so model.document_attention cannot work",
            hint="set model.document_attention to false, or use another model type",
        )
    if settings.activation_checkpointing:
        _checkpoint_activations(model)
    if settings.compile:
        model.compile()  # in place: parameter names stay as they are
    model.train()
    return model


def first_weights(settings: ModelSettings, model: torch.nn.Module, seed: int) -> FirstWeights:
    """Where a new run's weights come from: the folder that `model.path` names, or random numbers."""
    if settings.path is None:
        return Drawn(seed)
    return stored_weights(StoragePath(settings.path), model, key="model.path")


def model_config(settings: ModelSettings, vocab_size: int, sequence_length: int, *, eos_id: int | None = None) -> Any:
    """The transformers config that a job's model resolves to, checked against the tokenizer and the rows."""
    if settings.path is not None:
        given = _read_config(Path(settings.path), "model.path")
    elif isinstance(settings.config, str):
        given = _read_config(Path(settings.config), "model.config")
    elif settings.config is not None:
        given = dict(settings.config)
    elif settings.preset is not None:
        given = preset_config(settings.preset)
    else:
        raise ConfigError(
            "the job says no model: model.preset, model.config and model.path are not set",
            hint="set model.preset (e.g. llama-125m), model.config or model.path",
            key="model.preset",
        )
    config = config_from({"vocab_size": vocab_size} | token_ids(given.get("model_type"), vocab_size, eos_id) | given)
    check_config(config, given)
    if isinstance(settings.config, Mapping):
        check_keys(given, config)
    _fit_vocabulary(config, vocab_size)
    _fit_length(config, given, sequence_length, changeable=settings.path is None)
    if settings.dropout is not None:
        _set_dropout(config, settings.dropout)
    return config


def standing_settings(settings: ModelSettings, saved: Mapping[str, Any] | None) -> ModelSettings:
    """The settings with a run's own config, as its checkpoint holds it, for a folder or file that is not there now.

    saved: that config; without one the settings stay as they are.
    """
    named = settings.path or (settings.config if isinstance(settings.config, str) else None)
    if not saved or named is None or Path(named).exists():
        return settings
    return settings.model_copy(update={"path": None, "config": dict(saved)})


def config_from(mapping: Mapping[str, Any]) -> Any:
    """A transformers config from a plain mapping, as an inline config or a checkpoint holds it."""
    fields = {key: value for key, value in mapping.items() if key != "model_type"}
    model_type = mapping.get("model_type")
    if model_type is None:
        raise ConfigError("the model's config has no model_type", hint="add one, e.g. model_type: llama")
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(
            f"unknown model_type {model_type!r}", hint="name a type that the installed transformers knows, e.g. llama"
        )
    try:
        return AutoConfig.for_model(model_type, **fields)
    except CONFIG_ERRORS as error:
        raise ConfigError(
            f"the model's config cannot work: {error.__cause__ or error}", hint="correct the values of model.config"
        ) from error


def config_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON values; `config_from` gives it back."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return values


def empty_model(config: Any, attention: str = "sdpa", auto_class: str = CAUSAL) -> torch.nn.Module:
    """The module on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return _from_config(config, attention, auto_class)


def auto_class_of(config: Any) -> str:
    """The class of transformers, an Auto class or the family's own, that a saved model's config asks for."""
    named = [name for name in config.architectures or [] if hasattr(transformers, name)]
    return named[0] if named else CAUSAL


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars inside the block: only the command line prints."""
    showed = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if showed:
            transformers_logging.enable_progress_bar()


def _without_memory(config: Any, attention: str, auto_class: str) -> torch.nn.Module:
    with no_init_weights(), without_memory():
        model = _from_config(config, attention, auto_class)
    cast(Any, model).tie_weights()
    embedding = cast(Any, model).get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        # Rows are packed, so that nothing is padded; a token that also ends a text would never be trained.
        embedding.padding_idx = None
    return model


def _class(name: str) -> Any:
    found = getattr(transformers, name, None)
    if found is None:
        raise ConfigError(
            f"the installed transformers has no class {name!r}", hint="correct the auto_class of the objective"
        )
    return found


def _from_config(config: Any, attention: str, name: str) -> torch.nn.Module:
    made = _class(name)
    # The Auto classes call this of the family's own class, which has nothing public that takes the attention too.
    build = made.from_config if name.startswith("Auto") else made._from_config
    try:
        model: torch.nn.Module = build(config, attn_implementation=attention, dtype=torch.float32)
    except (*CONFIG_ERRORS, AssertionError, ImportError) as error:
        if "Unrecognized configuration class" in str(error):
            raise ConfigError(
                f"model type {config.model_type!r} is not a causal language model"
                if name == CAUSAL
                else f"model type {config.model_type!r} has no {name}",
                hint="use a decoder such as llama, mistral, qwen2 or gpt2"
                if name == CAUSAL
                else "use a model type that has, or another objective",
            ) from error
        if "does not support an attention implementation" in str(error):
            raise ConfigError(
                f"model type {config.model_type!r} has no {attention} attention", hint="set model.attention to eager"
            ) from error
        what = f"unknown value {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"a {config.model_type!r} model cannot be built: {what}", hint="correct the values of the model's config"
        ) from error
    cast(Any, model).config.architectures = [type(model).__name__]  # as in a saved model: who opens it knows the class
    return model


def _read_config(path: Path, key: str) -> dict[str, Any]:
    """The JSON of a config file, or of the config.json in a folder."""
    file = path / "config.json" if path.is_dir() else path
    if key == "model.path" and not path.parent.exists():  # a hub's name is taken for a path, of which nothing is there
        raise ConfigError(
            f"model.path names the folder {path}, which is not there",
            hint="a model of the Hugging Face hub has to be fetched first: "
            f"`hf download {_hub_name(path)} --local-dir FOLDER`, and model.path names that folder on a disk that "
            "every worker sees",
            key="model.path",
        )
    if not file.is_file():
        raise ConfigError(f"{key}={str(path)!r}: there is no {file}", hint=FOLDER_HINT)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{key}={str(path)!r}: {file} is not JSON: {error}", hint=FOLDER_HINT) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{key}={str(path)!r}: {file} holds no mapping", hint=FOLDER_HINT)
    return values


def _hub_name(path: Path) -> str:
    """A model's name on the hub, of a path or URL that seems to mean one."""
    parts = path.parts
    for host in ("hf:", "hf.co", "huggingface.co"):
        if host in parts:
            return "/".join([part for part in parts[parts.index(host) + 1 :] if part != "models"][:2])
    return "/".join(parts[-2:])


def _fit_vocabulary(config: Any, vocab_size: int) -> None:
    if config.vocab_size < vocab_size:
        raise ConfigError(
            f"the model's vocabulary of {config.vocab_size} is smaller than the tokenizer's {vocab_size}",
            hint="prepare the data with the model's own tokenizer (prepare.tokenizer.path), or raise vocab_size",
        )


def _fit_length(config: Any, given: Mapping[str, Any], sequence_length: int, *, changeable: bool) -> None:
    """A config that says no length gets the rows'; one that says a shorter one cannot be trained on them."""
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    try:
        if not hasattr(config, name):
            return
        if name not in given and "max_position_embeddings" not in given:
            config.max_position_embeddings = sequence_length
            return
    except NotImplementedError:  # XLNet's way to say that it has no limit
        return
    if (positions := config.max_position_embeddings) < sequence_length:
        raise ConfigError(
            f"rows of {sequence_length} tokens exceed the model's {name}={positions}",
            hint=f"{f'raise {name}, or ' if changeable else ''}set prepare.sequence_length to {positions} or less and "
            "prepare again",
        )


def _set_dropout(config: Any, share: float) -> None:
    if not share:
        for name, value in vars(config).items():
            if isinstance(value, float) and name.endswith(_DROPOUTS):
                setattr(config, name, 0.0)
        return
    fields = [name for name in ("attention_dropout", "attn_pdrop") if hasattr(config, name)]
    if not fields:
        raise ConfigError(
            f"model type {config.model_type!r} has no attention dropout, but model.dropout={share}",
            hint="leave model.dropout out",
        )
    for name in fields:
        setattr(config, name, share)


def _takes_positions(model: torch.nn.Module) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _checkpoint_activations(model: Any) -> None:
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"model type {model.config.model_type!r} cannot recompute activations",
            hint="set model.activation_checkpointing to false",
        ) from error
