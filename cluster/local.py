#!/usr/bin/env python
"""A Ray cluster of several nodes on this machine, to see what losing one does.

python cluster/local.py up --nodes 2       start a head and two nodes; prints the address for cluster.address
python cluster/local.py add                one more node
python cluster/local.py kill node-2        SIGKILL a node and all that runs on it
python cluster/local.py drain node-1 --seconds 30
python cluster/local.py status
python cluster/local.py down               end what was started here, and nothing else

Each node has one CPU and one `seat`; with `--set 'workers.resources={seat: 1}'` each holds one worker.
"""

import argparse
import os
import sys
from pathlib import Path

from raylm.deploy.local import SEAT, LocalCluster, NodeShape
from raylm.errors import RaylmError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("TMPDIR", "/tmp")) / f"raylm-cluster-{os.getuid()}"
    parser.add_argument("--folder", type=Path, default=default, help="state, logs and sockets of this cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a head and nodes")
    up.add_argument("--nodes", type=int, default=2)
    add = commands.add_parser("add", help="start more nodes")
    add.add_argument("--count", type=int, default=1)
    for command in (up, add):
        command.add_argument("--cpus", type=int, default=1, help="CPUs that each node offers")
    kill = commands.add_parser("kill", help="SIGKILL a node")
    drain = commands.add_parser("drain", help="give notice that a node will be reclaimed")
    drain.add_argument("--seconds", type=float, default=30.0)
    for command in (kill, drain):
        command.add_argument("node")
    commands.add_parser("status", help="which nodes live")
    commands.add_parser("down", help="end every node started here")
    return parser


def main() -> int:
    arguments = parser().parse_args()
    try:
        act(LocalCluster(arguments.folder), arguments)
    except RaylmError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint:  {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def act(cluster: LocalCluster, arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "up":
            # The head holds no worker: it runs the driver and reads data.
            cluster.up(arguments.nodes, head=NodeShape(cpus=2, seats=0), each=NodeShape(cpus=arguments.cpus))
            print(f"address: {cluster.address}")
            settings = f"--set cluster.address={cluster.address} --set 'workers.resources={{{SEAT}: 1}}'"
            print(f"next: RAY_AUTH_MODE=token raylm train JOB {settings}")
        case "add":
            added = cluster.add(arguments.count, NodeShape(cpus=arguments.cpus))
            print(f"added: {', '.join(node.name for node in added)}")
        case "kill":
            cluster.kill(arguments.node)
            print(f"killed: {arguments.node}")
        case "drain":
            cluster.drain(arguments.node, arguments.seconds)
            print(f"draining: {arguments.node}, deadline in {arguments.seconds:g} s")
        case "status":
            living = cluster.alive()
            print(f"address: {cluster.address}")
            for node in cluster.nodes():
                print(f"{node.name:8} {'up  ' if node in living else 'gone'}  pid {node.pid}")
        case "down":
            cluster.down()
            print("down")


if __name__ == "__main__":
    sys.exit(main())
