"""Runs a function on several local processes that form a gloo group, within a time limit.

Processes live from call to call, because importing what a worker imports takes seconds; each call forms a fresh group
of the size it asks for and leaves it. A call that fails or hangs ends the processes; the next one gets new ones.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from raylm.runtime.ports import free_port

_generations = itertools.count(1)

# What a worker imports takes seconds of CPU. One server imports it, once for all tests, and forks the ranks.
_PRELOAD = ["raylm.train.engine", "raylm.model.build", "deepspeed", "transformers.models.llama.modeling_llama"]
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}


class RankFailed(AssertionError):
    """A rank raised, died or did not answer in time; the message holds its traceback."""


class Ranks:
    """Up to `most` processes. `run(function, size, *args)` gives every rank's `function(group, *args)`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._members: list[tuple[BaseProcess, Connection]] = []

    def run(self, function: Callable[..., Any], size: int, *args: Any, seconds: float = 300) -> list[Any]:
        """Every rank's result in rank order; functions and results travel pickled."""
        return self._call(_with_group, size, function, args, seconds)

    def run_bare(
        self,
        function: Callable[..., Any],
        size: int,
        *args: Any,
        seconds: float = 300,
        dying: Sequence[int] = (),
    ) -> list[Any]:
        """As run, but `function(rank, size, address, *args)` forms and leaves groups itself, and some ranks die of it.

        Those answer None.
        """
        return self._call(_without_group, size, function, args, seconds, dying)

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self._members:
            pipe.close()
            process.kill()
        for process, _ in self._members:
            process.join(10)
        self._members.clear()

    def _call(
        self,
        how: Callable[..., Any],
        size: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        seconds: float,
        dying: Sequence[int] = (),
    ) -> list[Any]:
        assert size <= self.most
        while len(self._members) < size:
            self._members.append(_start())
        address, generation = f"127.0.0.1:{free_port()}", next(_generations)
        members = self._members[:size]
        for rank, (_, pipe) in enumerate(members):
            pipe.send((how, (rank, size, address, generation, function, args)))
        answers: dict[int, Any] = {}
        until = time.monotonic() + seconds
        try:
            while len(answers) < size:
                for rank, (process, pipe) in enumerate(members):
                    if rank in dying and not process.is_alive():
                        answers[rank] = None
                    elif rank not in answers and rank not in dying and pipe.poll(0.005):
                        answers[rank] = _answer(rank, pipe)
                    elif rank not in answers and not process.is_alive() and not pipe.poll():
                        raise RankFailed(f"rank {rank} of {size} died with exit code {process.exitcode}")
                if time.monotonic() > until:
                    silent = sorted(set(range(size)) - set(answers))
                    raise RankFailed(f"ranks {silent} of {size} did not answer within {seconds:g} s")
        except RankFailed:
            self.close()
            raise
        self._members = [member for rank, member in enumerate(self._members) if rank >= size or rank not in dying]
        return [answers[rank] for rank in range(size)]


@contextmanager
def ranks(most: int) -> Iterator[Ranks]:
    """Ranks that are ended on the way out."""
    pool = Ranks(most)
    try:
        yield pool
    finally:
        pool.close()


def _answer(rank: int, pipe: Connection) -> Any:
    try:
        fine, value = pipe.recv()
    except EOFError:
        raise RankFailed(f"rank {rank} closed its pipe") from None
    if not fine:
        raise RankFailed(f"rank {rank} failed:\n{value}")
    return value


def _start() -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    before = dict(os.environ)
    os.environ.update(_ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _serve(pipe: Connection) -> None:
    os.environ.update(_ENVIRONMENT)
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # leaving a group collects garbage, which need not look at what was imported
    while True:
        try:
            how, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, how(*arguments)))
        except BaseException:  # whatever ends the function, an exit too, is the caller's answer
            pipe.send((False, traceback.format_exc()))


def _with_group(
    rank: int, size: int, address: str, generation: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    from raylm.train.group import Rendezvous, form_group, leave_group

    group = form_group(Rendezvous(address, rank, size, generation, timeout_seconds=60))
    try:
        return function(group, *args)
    finally:
        leave_group(group)


def _without_group(
    rank: int, size: int, address: str, generation: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    return function(rank, size, address, *args)
