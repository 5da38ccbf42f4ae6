"""`raylm cluster`: a Ray cluster of several nodes on this machine, to see what losing one does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raylm.cli.common import print_next

if TYPE_CHECKING:
    from raylm.deploy.local import LocalCluster, NodeShape

cpus = click.option("--cpus", type=click.IntRange(min=1), default=1, show_default=True, help="CPUs of each node.")


def default_folder() -> Path:
    """Where a user's cluster keeps its state."""
    from raylm.runtime.sockets import temporary_folder

    name = f"raylm-cluster-{os.getuid()}"
    return Path(temporary_folder(name)) / name


@click.group()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_folder,
    show_default="raylm-cluster-UID in the temporary folder",
    help="State, logs and sockets of the cluster.",
)
@click.pass_context
def cluster(context: click.Context, folder: Path) -> None:
    """Start Ray nodes on this machine, and kill or drain them.

    Each node has one worker slot: with --set 'workers.resources={worker_slot: 1}' each holds one worker.
    """
    context.obj = folder


@cluster.command()
@click.option("--nodes", type=click.IntRange(min=0), default=2, show_default=True, help="Nodes beside the head.")
@cpus
@click.pass_obj
def up(folder: Path, nodes: int, cpus: int) -> None:
    """Start a head, which holds no worker, and further nodes."""
    from raylm.deploy.local import SLOT, NodeShape

    made = _open(folder)
    # The head runs the driver and reads data.
    made.up(nodes, head=NodeShape(cpus=2, slots=0), each=_shape(cpus))
    click.echo(f"address: {made.address}")
    print_next(f"raylm train JOB --set cluster.address={made.address} --set 'workers.resources={{{SLOT}: 1}}'")


@cluster.command()
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many.")
@cpus
@click.pass_obj
def add(folder: Path, count: int, cpus: int) -> None:
    """Start more nodes."""
    added = _open(folder).add(count, _shape(cpus))
    click.echo(f"added: {', '.join(node.name for node in added)}")


@cluster.command()
@click.argument("node")
@click.pass_obj
def kill(folder: Path, node: str) -> None:
    """End NODE at once, with SIGKILL, and all that runs on it."""
    _open(folder).kill(node)
    click.echo(f"killed: {node}")


@cluster.command()
@click.argument("node")
@click.option("--seconds", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Time until then.")
@click.pass_obj
def drain(folder: Path, node: str, seconds: float) -> None:
    """Give notice that NODE will be reclaimed; it lives until it is killed."""
    _open(folder).drain(node, seconds)
    click.echo(f"draining: {node}, deadline in {seconds:g} s")


@cluster.command()
@click.pass_obj
def status(folder: Path) -> None:
    """Say which nodes live."""
    made = _open(folder)
    living = made.alive()
    click.echo(f"address: {made.address}")
    for node in made.nodes():
        click.echo(f"{node.name:8} {'up  ' if node in living else 'gone'}  pid {node.pid}")


@cluster.command()
@click.pass_obj
def down(folder: Path) -> None:
    """End every node that was started here, and nothing else."""
    _open(folder).down()
    click.echo("down")


def _open(folder: Path) -> LocalCluster:
    from raylm.deploy.local import LocalCluster

    return LocalCluster(folder)


def _shape(cpus: int) -> NodeShape:
    from raylm.deploy.local import NodeShape

    return NodeShape(cpus=cpus, slots=1)
