"""Job files: what loads, what is refused, and what the refusal says."""

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raylm.config.job import Job
from raylm.config.keys import schema_keys, settings_in
from raylm.config.load import load_job, parse_job, resolved_yaml, with_overrides
from raylm.config.other_names import OTHER_NAMES
from raylm.config.problems import PATTERNS
from raylm.errors import ConfigError


def refusal(text: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_job(text, origin="job.yaml", overrides=overrides)
    return caught.value


def test_an_empty_file_is_the_defaults() -> None:
    assert parse_job("", origin="job.yaml") == Job()


def test_a_job_file_loads_from_disk(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: a\noptim: {lr: 1e-4}\n")
    job = load_job(file, ["train.steps=7", "model.preset=tiny"])
    assert (job.name, job.optim.lr, job.train.steps, job.model.preset) == ("a", 1e-4, 7, "tiny")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("name: a\noptm: {}\n", "job.yaml:2: unknown key 'optm'", "did you mean 'optim'?"),
        ("optim:\n  lrr: 1\n", "job.yaml:2: unknown key 'optim.lrr'", "did you mean 'optim.lr'?"),
        ("lr: 1\n", "job.yaml:1: unknown key 'lr'", "did you mean 'optim.lr'?"),
        ("cluster:\n  zzz: 1\n", "job.yaml:2: unknown key 'cluster.zzz'", "keys here: address"),
        (
            "data:\n  mixture:\n  - path: a\n  - path: b\n    weigth: 2\n",
            "job.yaml:5: unknown key 'data.mixture.1.weigth'",
            "did you mean 'data.mixture.1.weight'?",
        ),
        ("train:\n  steps: many\n", "job.yaml:2: train.steps: expected an integer, got 'many'", None),
        ("train:\n  steps: true\n", "job.yaml:2: train.steps: expected a number, got true", None),
        ("train:\n  steps: 1.5\n", "job.yaml:2: train.steps: expected an integer, got 1.5", None),
        ("train:\n  steps: '3 0'\n", "job.yaml:2: train.steps: expected an integer, got '3 0'", None),
        ("train:\n  steps: 0\n", "job.yaml:2: train.steps: must be greater than or equal to 1, got 0", None),
        ("train:\n", "job.yaml:1: train: expected a section, got nothing", None),
        ("name: 12\n", "job.yaml:1: name: expected text, got 12", 'put it in quotes: "12"'),
        (
            "optim: {schedule: cosin}",
            "job.yaml:1: optim.schedule: expected 'cosine', 'linear', 'constant' or 'wsd', got 'cosin'",
            "did you mean 'cosine'?",
        ),
        ("data:\n  mixture:\n  - weight: 2\n", "job.yaml:3: 'data.mixture.0.path' is missing", None),
        ("a: 1\nname: x\na: 2\n", "job.yaml:3: duplicate key 'a', first given at job.yaml:1", "keep one of the two"),
        (
            "optim:\n  lr: 1\n  eps: 1\n  lr: 2\n",
            "job.yaml:4: duplicate key 'optim.lr', first given at job.yaml:2",
            "keep one of the two",
        ),
        (
            "batch: {sequences: 32, micro_batch: 5}",
            "job.yaml:1: batch: micro_batch=5 does not divide sequences=32",
            None,
        ),
        ("workers:\n  min: 3\n  max: 2\n", "job.yaml:1: workers: min=3 is more than max=2", None),
        (
            "batch: {sequences: 8, micro_batch: 4}\nworkers:\n  max: 3\n",
            "job.yaml:3: workers.max=3 exceeds the 2 lanes of a global batch (batch.sequences=8 / batch.micro_batch=4)",
            "raise batch.sequences, lower batch.micro_batch, or set workers.max to 2 or less",
        ),
        (
            "prepare:\n  steps: [normalise]\n",
            "job.yaml:2: unknown key 'prepare.steps.0.normalise'",
            "did you mean 'prepare.steps.0.normalize'?",
        ),
        (
            "prepare:\n  steps:\n  - normalise: {}\n",
            "job.yaml:3: unknown key 'prepare.steps.0.normalise'",
            "did you mean 'prepare.steps.0.normalize'?",
        ),
        ("objective: casual\n", "job.yaml:1: unknown key 'objective.casual'", "did you mean 'objective.causal'?"),
        (
            "objective: z_loss\n",
            "job.yaml:1: unknown key 'objective.z_loss'",
            "known: causal; what your own code registers has to be listed under plugins",
        ),
        ("objective: {causal: {x: 1}}\n", "job.yaml:1: unknown key 'objective.causal.x'", "causal takes no keys"),
        (
            "prepare:\n  sources:\n  - kind: mine\n",
            "job.yaml:3: prepare.sources.0.kind: expected 'arrow', 'book', ",
            "what your own code registers has to be listed under plugins",
        ),
        ("prepare:\n  sources:\n  - kind: josnl\n", "job.yaml:3: prepare.sources.0.kind: ", "did you mean 'jsonl'?"),
        ("where: {address: auto}\n", "job.yaml:1: unknown key 'where'", "did you mean 'cluster.address'?"),
        ("where: {}\n", "job.yaml:1: unknown key 'where'", "did you mean 'cluster'?"),
        ("optm: {lr: 1}\n", "job.yaml:1: unknown key 'optm'", "did you mean 'optim'?"),
        (
            "prepare:\n  require:\n    language: {en: 0.5}\n",
            "job.yaml:3: prepare.require.language.en: expected a section, got 0.5",
            "for at least that much write {min: 0.5}",
        ),
        (
            "init_from: runs/mine\n",
            "job.yaml:1: init_from: expected a section, got 'runs/mine'",
            "did you mean 'init_from.path'?",
        ),
        ("model: tiny\n", "job.yaml:1: model: expected a section, got 'tiny'", "did you mean 'model.preset'?"),
        ("workers: 3\n", "job.yaml:1: workers: expected a section, got 3", None),
        (
            "workers: {seat: 1}\n",
            "job.yaml:1: unknown key 'workers.seat'",
            "keys here: collective_timeout_seconds, copy_every_steps, cpus, gpu, join_interval_seconds, max, "
            "max_failures, min, replace_stragglers, resources, silence_seconds, stall_seconds, straggler_ratio, "
            "straggler_seconds, threads; names of your own go under "
            "'workers.resources'",
        ),
        (
            "name: a b\n",
            "job.yaml:1: name: expected ASCII letters, digits, '.', '_' and '-', the first a letter or a digit, "
            "got 'a b'",
            None,
        ),
        ("name: [1\n", "job.yaml:2: not valid YAML", "check indentation, quotes and colons"),
        ("a: b: c\n", "job.yaml:1: not valid YAML", "check indentation, quotes and colons"),
        ("- a\n", "job.yaml: a job file is a mapping of sections, got ['a']", "start from one that `raylm jobs` lists"),
        ("train: &t {steps: 1}\noptim: *t\n", "job.yaml:2: alias *t is not supported", "write the value out"),
        ("? [a]\n: 1\n", "job.yaml:1: a key must be a word, got seq", None),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, message: str, hint: str | None) -> None:
    error = refusal(text)
    assert error.message.startswith(message)
    assert error.hint == hint


def test_several_mistakes_are_told_at_once_with_their_hints() -> None:
    message = refusal("optm: 1\ntrain:\n  steps: x\n").message
    assert message.splitlines() == [
        "2 problems in job.yaml",
        "       job.yaml:1: unknown key 'optm' (did you mean 'optim'?)",
        "       job.yaml:3: train.steps: expected an integer, got 'x'",
    ]


@pytest.mark.parametrize(
    ("flag", "message", "hint"),
    [
        ("optim.lr", "--set optim.lr: not of the form key=value", "for example --set optim.lr=1e-4"),
        ("=3", "--set =3: not of the form key=value", "for example --set optim.lr=1e-4"),
        ("optm.lr=1", "--set optm.lr=1: unknown key 'optm'", "did you mean 'optim'?"),
        ("optim.lr=fast", "--set optim.lr=fast: optim.lr: expected a number, got 'fast'", None),
        ("name.x=1", "--set name.x=1: name is 'a', not a section", None),
        ("train.steps=[1", "--set train.steps=[1:1: not valid YAML", "check indentation, quotes and colons"),
        (
            "prepare.steps=[normalise]",
            "--set prepare.steps=[normalise]: unknown key 'prepare.steps.0.normalise'",
            "did you mean 'prepare.steps.0.normalize'?",
        ),
        (
            "prepare.sources[0].kind=x",
            "--set prepare.sources[0].kind=x: an entry of a list is named without brackets",
            "did you mean 'prepare.sources.0.kind'?",
        ),
        (
            "prepare.sources.0.glob=x",
            "--set prepare.sources.0.glob=x: the job file has no list prepare.sources to take entry 0 of",
            "give the whole list: --set 'prepare.sources=[...]'",
        ),
        (
            "data.mixture.4.path=x",
            "--set data.mixture.4.path=x: data.mixture is a list of 1, it has no entry '4'",
            "entries are data.mixture.0 to data.mixture.0",
        ),
    ],
)
def test_a_mistaken_flag_is_named(flag: str, message: str, hint: str | None) -> None:
    error = refusal("name: a\ndata: {mixture: [{path: s}]}\n", flag)
    assert error.message.startswith(message)
    assert error.hint == hint


def test_flags_carry_yaml_types_and_reach_into_lists() -> None:
    job = parse_job(
        "data: {mixture: [{path: a}, {path: b}]}",
        origin="job.yaml",
        overrides=[
            "data.mixture.1.weight=2",
            "train.audit=true",
            "model.config={hidden_size: 8}",
            "data.mixture.0.path=c",
        ],
    )
    assert [entry.path for entry in job.data.mixture] == [str(Path("c").absolute()), str(Path("b").absolute())]
    assert job.data.mixture[1].weight == 2.0
    assert job.train.audit is True
    assert job.model.config == {"hidden_size": 8}


def test_the_last_flag_wins_and_null_restores_the_default_of_optional_settings() -> None:
    job = parse_job(
        "checkpoint: {every_steps: 5}",
        origin="job.yaml",
        overrides=["optim.lr=1", "optim.lr=2", "checkpoint.every_steps=null"],
    )
    assert job.optim.lr == 2.0
    assert job.checkpoint.every_steps is None


def test_scalars_follow_yaml_1_2() -> None:
    job = parse_job("model: {config: {a: 1e-4, b: no, c: 1:30, d: 2024-01-01, e: 1_000}}", origin="job.yaml")
    assert job.model.config == {"a": 1e-4, "b": "no", "c": "1:30", "d": "2024-01-01", "e": 1000}


def test_no_environment_variable_changes_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in schema_keys():
        for name in (key, key.replace(".", "_"), key.replace(".", "__"), f"raylm_{key}".replace(".", "_")):
            monkeypatch.setenv(name.upper(), "7")
    assert parse_job("", origin="job.yaml") == Job()


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").touch()
    with pytest.raises(ConfigError, match="no job file") as caught:
        load_job(tmp_path / "pretrian.yaml")
    assert caught.value.hint == f"did you mean {tmp_path / 'pretrain.yaml'}?"


def test_a_folder_and_a_binary_file_are_not_job_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, not a job file"):
        load_job(tmp_path)
    (tmp_path / "job.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 6\)"):
        load_job(tmp_path / "job.yaml")


def test_every_setting_has_a_place_in_the_resolved_job() -> None:
    resolved = yaml.safe_load(resolved_yaml(Job()))
    for key in schema_keys():
        if ".0." in key:
            continue
        section = resolved
        *above, name = key.split(".")
        for part in above:
            section = section[part] if section else section  # a section that is not given has no settings
        assert not section or name in section, key
    assert resolved["prepare"]["require"]["tokens"] is None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(["1e-4", "no", "0o7", "null", "1_0", "=", "<<", "2024-01-01", "1:30", ".inf", "- a", "#"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@example({"0": float("inf")})
@given(st.dictionaries(st.text(min_size=1, max_size=6), values, max_size=4))
def test_the_resolved_job_loads_to_the_same_job(config: dict[str, object]) -> None:
    job = Job.model_validate({"model": {"config": config}, "optim": {"lr": 1e-8}})
    assert parse_job(resolved_yaml(job), origin="run.yaml") == job


PATHS = """storage: ../runs
data: {mixture: [{path: shards/a}, {path: s3://bucket/b}, {path: /srv/c}, {path: ~/d}]}
model: {path: model}
prepare:
  output: out
  tokenizer: {path: ./tokenizer}
  sources:
  - {name: a, glob: "raw/**/*.txt"}
  - {name: b, paths: files.txt, prefix: raw/}
  steps:
  - toxicity: {words: words.txt, model: judge}
  - blocklist: {domain_files: [domains.txt], url_word_files: [url.txt], word_files: [words.txt]}
  - fairness: {groups: groups.txt, occupations: jobs.txt}
  - counterfactual: {pairs: pairs.txt, names: names.txt}
  - classifier: {model: quality.safetensors}
  - classifier: {good: "good/*.txt", bad: [bad.txt]}
  - decontaminate: {sets: [{name: s, glob: "sets/*.jsonl"}]}
  - personal_data: {model: ./ner}
  - personal_data: {model: en_core_web_sm}
"""


def test_relative_paths_start_from_the_job_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "job.yaml").write_text(PATHS)
    monkeypatch.chdir("/")
    job = load_job(folder / "job.yaml")
    assert job.storage == str(tmp_path / "runs")
    assert job.run_url == str(tmp_path / "runs" / "run")
    local, *others = (entry.path for entry in job.mixture)
    assert local == str(folder / "shards" / "a")
    assert others == ["s3://bucket/b", "/srv/c", str(Path.home() / "d")]
    assert job.model.path == str(folder / "model")
    named = {
        *(job.prepare.output, job.prepare.tokenizer.path, job.prepare.sources[0].glob, job.prepare.sources[1].paths),
        *(text for step in job.prepare.steps for text in texts_of(step.settings.model_dump(mode="json"))),
    }
    expected = "out tokenizer raw/**/*.txt files.txt words.txt judge domains.txt url.txt groups.txt jobs.txt pairs.txt "
    expected += "names.txt quality.safetensors good/*.txt bad.txt sets/*.jsonl ner"
    assert {str(folder / name) for name in expected.split()} <= named
    assert job.prepare.sources[1].prefix == f"{folder}/raw/"
    assert job.prepare.steps[-1].settings.model_dump()["model"] == "en_core_web_sm"
    monkeypatch.chdir(tmp_path)
    assert load_job("jobs/job.yaml") == job
    assert parse_job(resolved_yaml(job), origin="run.yaml", folder=tmp_path / "elsewhere") == job


def texts_of(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for entry in entries for text in texts_of(entry)]


def test_relative_paths_on_the_command_line_and_in_programs_start_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "job.yaml").write_text("storage: runs\ndata: {path: a}\nprepare: {sources: [{glob: x}]}\n")
    monkeypatch.chdir(tmp_path)
    flags = ["storage=mine", "data.mixture=[{path: a}, {path: s3://x/b}]", "data.path=null", "prepare.sources.0.glob=y"]
    job = load_job("jobs/job.yaml", flags)
    assert job.storage == str(tmp_path / "mine")
    assert [entry.path for entry in job.mixture] == [str(tmp_path / "a"), "s3://x/b"]
    assert job.prepare.sources[0].glob == str(tmp_path / "y")
    assert Job.model_validate({"storage": "mine"}).storage == job.storage
    assert Job().storage == str(tmp_path / "runs")


def test_programs_change_a_job_by_dotted_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.yaml").write_text("storage: runs\ndata: {mixture: [{path: a}, {path: b}]}\n")
    job = load_job(tmp_path / "job.yaml")
    monkeypatch.chdir("/")
    changed = with_overrides(
        job,
        {"optim.lr": 1e-4, "data.mixture.1.path": Path("c"), "model.config": {"hidden_size": 8}, "train.audit": True},
    )
    assert (changed.optim.lr, changed.mixture[1].path, changed.model.config) == (1e-4, "/c", {"hidden_size": 8})
    assert changed.mixture[0] == job.mixture[0]
    assert changed.storage == job.storage
    assert with_overrides(job, {}) == job
    assert with_overrides(changed, {"optim": {}, "model.config": None}).optim == job.optim
    assert load_job(tmp_path / "job.yaml", {"optim.lr": 1e-4, "storage": "here"}).optim == changed.optim
    assert load_job(tmp_path / "job.yaml", {"storage": Path("here")}).storage == "/here"
    assert job == load_job(tmp_path / "job.yaml")  # not changed itself


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"optim.lr": -1}, "override optim.lr=-1: optim.lr: must be greater than 0, got -1", None),
        ({"optim.lrr": 1}, "override optim.lrr=1: unknown key 'optim.lrr'", "did you mean 'optim.lr'?"),
        ({"name.x": 1}, "override name.x=1: name is 'run', not a section", None),
        ({"": 1}, "override '' is not a dotted key", 'for example {"optim.lr": 1e-4}'),
        (
            {"data.mixture.0.path": "x"},
            "override data.mixture.0.path='x': data.mixture is a list of 0, it has no entry '0'",
            "set data.mixture as a whole",
        ),
        (
            {"workers.max": 64},
            "override workers.max=64: workers.max=64 exceeds the 8 lanes of a global batch "
            "(batch.sequences=32 / batch.micro_batch=4)",
            "raise batch.sequences, lower batch.micro_batch, or set workers.max to 8 or less",
        ),
    ],
)
def test_a_mistaken_change_by_a_program_is_named(changes: dict[str, object], message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        with_overrides(Job(), changes)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        # What the keys were once called.
        ("optim.clip", "optim.max_grad_norm"),
        ("optim.final_ratio", "optim.min_lr_ratio"),
        ("batch.micro", "batch.micro_batch"),
        ("where", "cluster"),
        ("data.deliver", "data.reader"),
        ("data.sources", "data.mixture"),
        ("data.accept_changed", "data.allow_changed"),
        ("data.mixture.0.stages", "data.mixture.0.weight_schedule"),
        ("prepare.quarantine", "prepare.max_broken_share"),
        ("prepare.tokenizer.least_count", "prepare.tokenizer.min_frequency"),
        ("prepare.tokenizer.longest_token", "prepare.tokenizer.max_token_length"),
        ("prepare.tokenizer.bytes", "prepare.tokenizer.alphabet"),
        ("prepare.tokenizer.digits", "prepare.tokenizer.split_digits"),
        ("prepare.tokenizer.normalise", "prepare.tokenizer.normalization"),
        ("prepare.sources.0.licence", "prepare.sources.0.license"),
        ("prepare.sources.0.most_bytes", "prepare.sources.0.max_bytes"),
        ("prepare.sources.0.most_ratio", "prepare.sources.0.max_compression_ratio"),
        ("prepare.require.tokens.at_least", "prepare.require.tokens.min"),
        ("prepare.require.language.en.at_most", "prepare.require.language.en.max"),
        ("prepare.steps.0.normalise", "prepare.steps.0.normalize"),
        ("prepare.steps.1.exact_duplicates.shortest", "prepare.steps.1.exact_duplicates.min_chars"),
        ("prepare.steps.1.language.letters", "prepare.steps.1.language.max_chars"),
        ("prepare.steps.1.sample.most_copies", "prepare.steps.1.sample.max_copies"),
        ("prepare.steps.1.classifier.most_examples", "prepare.steps.1.classifier.max_examples"),
        ("prepare.steps.1.toxicity.most", "prepare.steps.1.toxicity.max_share"),
        ("prepare.steps.1.toxicity.most_model", "prepare.steps.1.toxicity.max_probability"),
        ("prepare.steps.1.blocklist.at_least", "prepare.steps.1.blocklist.min_matches"),
        ("prepare.steps.1.blocklist.at_least_share", "prepare.steps.1.blocklist.min_share"),
        ("prepare.steps.1.decontaminate.words", "prepare.steps.1.decontaminate.ngram"),
        ("prepare.steps.1.decontaminate.shortest", "prepare.steps.1.decontaminate.min_words"),
        ("prepare.steps.1.decontaminate.at_least", "prepare.steps.1.decontaminate.min_matches"),
        ("prepare.steps.1.decontaminate.shortest_left", "prepare.steps.1.decontaminate.min_chars_left"),
        # What other libraries call them.
        ("learning_rate", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("train.gradient_accumulation_steps", "batch.micro_batch"),
        ("per_device_train_batch_size", "batch.micro_batch"),
        ("max_steps", "train.steps"),
        ("optimizer", "optim"),
        ("training", "train"),
        ("output_dir", "storage"),
        ("model.gradient_checkpointing", "model.activation_checkpointing"),
        ("checkpoint.save_total_limit", "checkpoint.keep"),
        ("prepare.sequence_len", "prepare.sequence_length"),
    ],
)
def test_a_key_by_another_name_is_unknown_and_its_hint_names_ours(key: str, meant: str) -> None:
    text, value = "", "1"
    for part in reversed(key.split(".")):
        value = f"[{value}]" if part == "0" else f"[normalize, {value}]" if part == "1" else f"{{{part}: {value}}}"
    text = value[1:-1]
    error = refusal(text)
    assert f"job.yaml:1: unknown key '{key}'" in error.message
    assert f"did you mean '{meant}'?" in f"{error.message} {error.hint}"


def test_other_names_stand_for_keys_that_are_there_and_hide_none() -> None:
    keys = set(schema_keys())
    assert set(OTHER_NAMES) - keys == set()
    for key, names in OTHER_NAMES.items():
        section = key.rpartition(".")[0]
        assert {f"{section}.{name}".lstrip(".") for name in names.split()} & keys == set()


def test_what_a_name_may_hold_is_said_in_words_for_every_pattern() -> None:
    named = [one for one in settings_in() if one.field and any(hasattr(mark, "pattern") for mark in one.field.metadata)]
    assert {"name", "prepare.sources.0.name"} <= {one.key for one in named}
    for one in named:
        patterns = [mark.pattern for mark in one.field.metadata if getattr(mark, "pattern", None)] if one.field else []
        assert set(patterns) <= set(PATTERNS), one.key


def test_every_setting_says_what_it_means() -> None:
    assert [setting.key for setting in settings_in() if not setting.meaning] == []
