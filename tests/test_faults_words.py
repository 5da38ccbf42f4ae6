"""What people are told: the word and the choices, the file that was meant, the command that goes on."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from base64 import b64encode
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from test_faults_early import said, tokenizer_of

import raylm
from raylm.cli.common import reached
from raylm.cli.jobs import jobs_folder
from raylm.cli.main import tell
from raylm.config.job import Job
from raylm.config.keys import settings_in
from raylm.config.load import load_job, parse_job
from raylm.config.prepare.tokenizer import TokenizerSettings
from raylm.config.reference import job_schema
from raylm.deploy.local import LocalCluster, NodeShape
from raylm.errors import ClusterError, ConfigError, Interrupted
from raylm.prep.tokenizer import import_tokenizer, load
from raylm.run.events import Evaluated
from raylm.run.lines import line_file, read_lines
from raylm.run.metrics import StepMetrics
from raylm.runtime.connect import LocalRay, connected
from raylm.runtime.ports import free_port
from raylm.runtime.ray_internals import wants_token
from raylm.storage import Connection, StoragePath
from raylm.testing.datasets import make_data

ROOT = Path(__file__).parents[1]


def refusal(text: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        parse_job(text, origin="job.yaml", overrides=overrides)
    return refused.value


# -- settings ----------------------------------------------------------------------------------------------------------


def test_an_unknown_step_is_named_with_the_one_that_was_meant() -> None:
    assert refusal("prepare: {steps: [normalise, dedup]}").message.splitlines() == [
        "2 problems in job.yaml",
        "       job.yaml:1: unknown key 'prepare.steps.0.normalise' (did you mean 'prepare.steps.0.normalize'?)",
        "       job.yaml:1: unknown key 'prepare.steps.1.dedup' (did you mean 'prepare.steps.1.near_duplicates'?)",
    ]
    unknown = refusal("prepare: {steps: [normalize, nosuch]}")
    assert unknown.message == "job.yaml:1: unknown key 'prepare.steps.1.nosuch'"
    assert "known: blocklist, classifier, " in str(unknown.hint)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("train.epochs=3", "train.steps"),
        ("epochs=3", "train.steps"),
        ("num_train_epochs=3", "train.steps"),
        ("steps=3", "train.steps"),
        ("steps=[normalize]", "prepare.steps"),
        ("lr=1e-4", "optim.lr"),
        ("column=body", "prepare.sources.0.column"),
        ("vocab_size=300", "prepare.tokenizer.vocab_size"),
    ],
)
def test_a_key_in_the_wrong_place_is_one_that_takes_the_value(flag: str, meant: str) -> None:
    assert refusal("", flag).hint == f"did you mean '{meant}'?"


def test_a_program_hears_of_its_settings_what_a_file_would() -> None:
    with pytest.raises(raylm.RaylmError, match=r"the job: unknown key 'optim\.learning_rate'") as refused:
        raylm.job_from({"optim": {"learning_rate": 1e-4}})
    assert refused.value.hint == "did you mean 'optim.lr'?"
    made = raylm.job_from({"model": {"preset": "tiny"}, "data": {"path": "data"}}, {"train.steps": 7})
    assert (made.train.steps, made.data.path) == (7, str(Path("data").absolute()))


# -- files and folders -------------------------------------------------------------------------------------------------


def test_a_missing_job_file_is_not_taken_for_any_other(tmp_path: Path) -> None:
    def hint(name: str) -> str:
        with pytest.raises(ConfigError, match="no job file") as refused:
            load_job(tmp_path / name)
        return str(refused.value.hint)

    assert hint("mine.yaml") == "None"
    for name in ("train.yaml", "jobs/quickstart.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("name: a\n")
    assert hint("mine.yaml") == f"job files here: {tmp_path}/jobs/quickstart.yaml, {tmp_path}/train.yaml"
    assert hint("trian.yaml") == f"did you mean {tmp_path}/train.yaml?"
    assert hint("train") == f"did you mean {tmp_path}/train.yaml?"
    assert hint("quickstart.yaml") == f"did you mean {tmp_path}/jobs/quickstart.yaml?"


@pytest.mark.parametrize("command", ["evaluate", "generate", "report", "export"])
def test_a_job_file_in_place_of_its_run_is_told(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: mine\n")
    more = [str(tmp_path / "export")] if command == "export" else []
    code, out, err = said(capsys, command, str(file), *more)
    assert (code, out) == (2, "")
    assert err == f"error: {file} is a job file, not the run folder\nhint:  did you mean {tmp_path}/runs/mine?\n"
    file.write_text("nosuch: 1\n")
    assert "name the run folder that the job makes" in said(capsys, command, str(file), *more)[2]


def test_inspect_finds_the_data_of_a_run_or_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "runs" / "mine"
    make_data(elsewhere, rows=8, held_out=2)
    make_data(run / "data", rows=8, held_out=2)
    assert f"did you mean {run}/data?" in said(capsys, "inspect", str(run))[2]
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / "run.yaml").write_text(f"data: {{path: {elsewhere}}}\n")
    assert f"did you mean {elsewhere}?" in said(capsys, "inspect", str(other))[2]
    (tmp_path / "job.yaml").write_text("name: mine\n")
    code, _, err = said(capsys, "inspect", str(tmp_path / "job.yaml"))
    assert (code, f"did you mean {run}/data?" in err) == (2, True)
    assert "raylm prepare" in said(capsys, "inspect", str(tmp_path / "nothing"))[2]


def test_a_compressed_tokenizer_is_unpacked(tmp_path: Path) -> None:
    ranks = "".join(f"{b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)) + "YWI= 256\n"
    (tmp_path / "small.tiktoken.gz").write_bytes(gzip.compress(ranks.encode()))
    settings = TokenizerSettings(path=str(tmp_path / "small.tiktoken.gz"), pattern="gpt2", eos="<|end|>")
    import_tokenizer(StoragePath(str(settings.path)), StoragePath(str(tmp_path / "made")), settings)
    tokenizer, _ = load(StoragePath(str(tmp_path / "made")))
    assert tokenizer.encode("ab").ids == [256]


# -- clusters ----------------------------------------------------------------------------------------------------------


def test_a_cluster_that_wants_a_token_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp") as folder:
        cluster = LocalCluster(Path(folder))
        cluster.up(0, head=NodeShape(), each=NodeShape())
        try:
            address = cluster.address
            assert wants_token(address, patience_seconds=5)
            monkeypatch.setenv("HOME", str(tmp_path))
            capfd.readouterr()
            began = time.monotonic()
            with (
                pytest.raises(ClusterError, match="asks for a token, and none is sent") as told,
                connected(address, LocalRay(1)),
            ):
                pass
            assert time.monotonic() - began < 5
            assert capfd.readouterr() == ("", "")
            assert "~/.ray/auth_token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" in str(told.value.hint)
        finally:
            cluster.down()
    assert not wants_token(f"127.0.0.1:{free_port()}", patience_seconds=1)


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_each_place_of_a_token_that_the_hint_names_is_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "secret")
    monkeypatch.setattr("raylm.runtime.connect.read_environment_again", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ.get("RAY_AUTH_MODE")))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        connected(f"127.0.0.1:{server.getsockname()[1]}", LocalRay(1)),
    ):
        pass
    assert seen == ["token"]


# -- what comes along --------------------------------------------------------------------------------------------------


def test_python_m_raylm_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "raylm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"raylm {raylm.__version__}\n"
    wrong = subprocess.run([sys.executable, "-m", "raylm", "plan", "nosuch"], capture_output=True, text=True)
    assert (wrong.returncode, "error: no job file nosuch" in wrong.stderr) == (2, True)


def test_the_job_files_are_listed_with_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "jobs")
    assert code == 0
    for file in (ROOT / "jobs").glob("*.yaml"):
        [line] = [line for line in out.splitlines() if file.name in line and not line.startswith("next:")]
        assert len(line.split("  ", 1)[1].strip()) > 20
    copied = next(line for line in out.splitlines() if line.startswith("next: cp "))
    assert Path(shlex.split(copied)[2]).is_file()


@pytest.mark.long
def test_a_wheel_has_the_job_files_and_the_local_cluster(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("raylm", "jobs", "docs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(source)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    data = f"{wheel.name.removesuffix('-py3-none-any.whl')}.data/data/share/raylm"
    wanted = [f"{data}/jobs/{file.name}" for file in (ROOT / "jobs").glob("*.yaml")]
    for name in [*wanted, f"{data}/docs/job.schema.json", "raylm/deploy/local.py", "raylm/__main__.py"]:
        assert name in names


def test_the_job_files_of_a_wheel_are_where_its_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylm.cli.jobs.__file__", str(tmp_path / "site-packages" / "raylm" / "cli" / "jobs.py"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: {"data": str(tmp_path)}[name])
    assert jobs_folder() == tmp_path / "share" / "raylm" / "jobs"


def test_the_json_schema_takes_every_job_of_the_pages() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    found = [block for page in pages for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.M | re.S)]
    jobs = [yaml.safe_load(block) for block in found]
    whole = [job for job in jobs if isinstance(job, dict) and job.keys() <= Job.model_fields.keys()]
    assert any("workers" in job for job in whole)
    for job in whole:
        if not job.get("plugins"):
            jsonschema.validate(job, job_schema())


def test_every_setting_says_what_it_does() -> None:
    assert [setting.key for setting in settings_in() if not setting.meaning] == []


def test_a_name_of_the_hub_is_told_how_to_fetch_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("model: {path: some-org/some-model}\n")
    for words in (["plan", str(file)], ["train", str(file), "--dry-run"]):
        code, _, err = said(capsys, *words)
        assert (code, "`hf download some-org/some-model --local-dir FOLDER`" in err) == (2, True)
    file.write_text("model: {preset: tiny}\nprepare: {tokenizer: {path: gpt2}, sources: [{glob: job.yaml}]}\n")
    assert "`hf download`" in said(capsys, "prepare", str(file), "--dry-run")[2]


# -- next lines, stops and scores --------------------------------------------------------------------------------------


def trained_run(folder: Path, *, name: str = "tiny run", broken: bool = False) -> Path:
    """An exported model with a tokenizer; a broken one's weights are no numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from raylm.model.build import quietly

    tokenizer = tokenizer_of(folder / f"{name} tokenizer", 60)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=60, **small))
    if broken:
        with torch.no_grad():
            model.get_output_embeddings().weight.fill_(float("nan"))
    made = folder / name
    with quietly():
        model.save_pretrained(made)
    for file in tokenizer.iterdir():
        shutil.copy(file, made)
    return made


def test_next_lines_are_what_a_shell_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trained_run(tmp_path)
    code, out, _ = said(capsys, "export", str(made), str(tmp_path / "new export"))
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("next: ")]
    assert shlex.split(line)[1:] == ["raylm", "generate", str(tmp_path / "new export"), "--prompt", "The "]
    (tmp_path / "my job.yaml").write_text("name: a\nprepare: {sources: [{glob: my job.yaml}]}\n")
    out = said(capsys, "prepare", str(tmp_path / "my job.yaml"), "--dry-run")[1]
    assert shlex.split(out.splitlines()[-1])[1:] == ["raylm", "prepare", str(tmp_path / "my job.yaml")]


def test_next_lines_keep_how_a_store_is_reached() -> None:
    connection = Connection(endpoint="http://127.0.0.1:9000", region="eu", anonymous=True)
    flags = ["--endpoint", "http://127.0.0.1:9000", "--region", "eu", "--anonymous"]
    assert reached("s3://bucket/run", connection) == flags
    assert reached("s3://bucket/run", Connection()) == []
    assert reached("/runs/run", connection) == []


@pytest.mark.parametrize("flags", [[], ["--temperature", "0"], ["--top-k", "5"], ["--top-p", "1"]])
def test_scores_that_are_no_numbers_are_told_and_nothing_else_is_printed(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = trained_run(tmp_path, broken=True)
    code, out, err = said(capsys, "generate", str(made), "--prompt", "w5", *flags)
    assert (code, out) == (5, "")
    assert err.startswith("error: the model gives scores that are no numbers")
    assert "hint:" in err


def test_a_prompt_is_printed_with_what_follows_it_and_not_before_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = trained_run(tmp_path)
    code, out, _ = said(capsys, "generate", str(made), "--prompt", "w5 ", "--max-tokens", "3")
    assert (code, out.startswith("w5 ")) == (0, True)
    code, out, err = said(capsys, "generate", str(tmp_path / "none"), "--prompt", "w5 ")
    assert (code, out) == (5, "")
    assert err.startswith("error: ")


def test_a_stop_that_was_asked_for_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(Interrupted("stopped at step 5, saved", hint="the same command resumes")) == 130
    assert capsys.readouterr().err == "stopped at step 5, saved\nhint:  the same command resumes\n"
    assert tell(ConfigError("wrong")) == 2
    assert capsys.readouterr().err == "error: wrong\n"


def test_lines_of_a_log_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    """Text stands where JSON has no number; what reads a log sees numbers again, bare ones of older logs too."""
    path = StoragePath(str(tmp_path / "metrics.jsonl"))
    lines = line_file(path)
    given = {"step": 1, "loss": math.nan, "more": [math.inf, -math.inf, 0.5], "inner": {"grad_norm": math.nan}}
    lines.append(given)
    lines.append(StepMetrics(step=2, loss=math.inf, tokens=3).to_line())
    lines.flush()
    text = path.read_text()
    parsed = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert parsed[0]["loss"] == "NaN"
    path.write_text(text + '{"step": 3, "loss": NaN}\n')
    first, second, third = read_lines(path)
    assert repr(first) == repr(given)
    assert StepMetrics.parse(second).loss == math.inf
    assert math.isnan(StepMetrics.parse(third).loss)


def test_a_held_out_loss_that_is_no_number_is_read_back_as_one(tmp_path: Path) -> None:
    path = StoragePath(str(tmp_path / "events.jsonl"))
    line_file(path).append(Evaluated(step=4, held_out_loss=math.nan).to_line())
    [line] = read_lines(path)
    assert math.isnan(Evaluated.parse(line).held_out_loss)
