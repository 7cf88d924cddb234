"""A Ray cluster of two nodes on loopback, in a process of its own; ends when its input ends.

    python ray_cluster.py DASHBOARD_PORT CPUS_OF_A_NODE

Prints ``up`` when both nodes are there. `Cluster` is its other side.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from servers import ROOT, free_port

from deploy.serving.ray_config import ENVIRONMENT

LOOPBACK = "127.0.0.1"
TOKEN = "0" * 64
WAIT_S = 90.0


def main() -> None:
    from ray.cluster_utils import Cluster as RayCluster

    port, cpus = int(sys.argv[1]), int(sys.argv[2])
    node: dict[str, Any] = {"num_cpus": cpus, "node_ip_address": LOOPBACK}
    head = {"include_dashboard": True, "dashboard_host": LOOPBACK, "dashboard_port": port}
    cluster = RayCluster(initialize_head=True, head_node_args={**node, **head})
    cluster.add_node(**node)
    print("up", flush=True)
    sys.stdin.read()
    cluster.shutdown()


class Cluster:
    """A cluster, and Ray Serve on it by way of its config file and its REST API.

    HAProxy, whose statistics listen on every address, is left out unless the environment says so.
    """

    def __init__(self, cpus: int = 1) -> None:
        self.dashboard, self.port = free_port(), free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="ray")  # short: sockets lie in it
        self.environment = {
            **os.environ,
            **ENVIRONMENT,
            "RAY_SERVE_ENABLE_HA_PROXY": os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as on those, all of it on loopback
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_TMPDIR": self._folder.name,
            "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.dashboard), str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()) != "up\n":
            assert line, "the cluster did not start"
        self._parts = psutil.Process(self.process.pid).children(recursive=True)

    def deploy(self, config: Path) -> None:
        """``serve deploy``, as people run it."""
        address = f"http://{LOOPBACK}:{self.dashboard}"
        command = [str(Path(sys.executable).parent / "serve"), "deploy", "-a", address, str(config)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=WAIT_S
        )
        assert done.returncode == 0, done.stderr

    def application(self, token: str = TOKEN) -> dict[str, Any]:
        """What Ray Serve says of the application; empty: nothing, or it does not know the token."""
        connection = http.client.HTTPConnection(LOOPBACK, self.dashboard, timeout=20)
        try:
            headers = {"Authorization": f"Bearer {token}"}
            connection.request("GET", "/api/serve/applications/", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status in (401, 403):
                return {}
            found: dict[str, Any] = json.loads(body)["applications"]
            return found.get("deploy", {})
        finally:
            connection.close()

    def replicas(self) -> dict[int, str]:
        """Process and node of each replica that takes requests."""
        deployments = self.application().get("deployments", {}).values()
        return {
            replica["pid"]: replica["node_id"]
            for deployment in deployments
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }

    def wait_for(self, holds: Callable[[], bool]) -> float:
        """Seconds until it holds."""
        started = time.monotonic()
        while not holds():
            assert time.monotonic() - started < WAIT_S, self.application()
            time.sleep(0.1)
        return time.monotonic() - started

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """One request to the proxy: status and body."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=20)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def stop(self) -> list[psutil.Process]:
        """End it; the processes that are left, which there should be none of."""
        self._parts += psutil.Process(self.process.pid).children(recursive=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(WAIT_S)
        self.process.stdout.close()
        left: list[psutil.Process] = psutil.wait_procs(self._parts, timeout=20)[1]
        for process in left:
            process.kill()
        self._folder.cleanup()
        return left


if __name__ == "__main__":
    main()
