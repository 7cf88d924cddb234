"""`deploy ctl`: what runs is looked at and changed over a socket of this machine alone.

A Unix socket that only its owner can open; one JSON object a line each way. A new version is loaded
beside what serves, proves itself as at the start, and takes over between two requests; what it
replaces answers what it has taken, and goes.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.bundle.folder import read_bundle
from deploy.serving.http.pages import describe_status
from deploy.serving.metrics import ServerStatistics, render_metrics
from deploy.serving.models.finding import check_name, name_bundle
from deploy.serving.models.model import ServedModel
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions
from deploy.serving.pauses import settle
from export.errors import BundleError, ConfigError, DeployError, EngineError

_LOG = logging.getLogger("deploy.serving")
_WAIT_S = 300.0
"""Seconds that the client gives the server to load a bundle."""

_LINE = 64 * 2**10
"""Bytes of a command, at most."""


class Controller:
    """Answers commands.

    Args:
        repository: the models that are served.
        options: with which new ones are opened.
        statistics: of the server.
    """

    def __init__(
        self, repository: ModelRepository, options: ServeOptions, statistics: ServerStatistics
    ) -> None:
        self._repository = repository
        self._options = options
        self._statistics = statistics
        self._changing = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Whether a bundle is being loaded or unloaded."""
        return self._changing.locked()

    async def start(self, path: Path) -> asyncio.AbstractServer:
        """Listen at `path`.

        Raises:
            ConfigError: something else is there, another server maybe, or it cannot be made.
        """
        try:
            if path.is_socket():
                if _has_server(path):
                    raise ConfigError(
                        f"--control {path}: another server has it. Stop that one, or name another."
                    )
                path.unlink()  # left behind by a server that was killed
            before = os.umask(0o177)
            try:
                return await asyncio.start_unix_server(self._serve, path, limit=_LINE)
            finally:
                os.umask(before)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--control {path}: no socket can be made there: {error}.") from error

    async def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Do what `command` says.

        Raises:
            DeployError: it is none, or could not be done; what served before still serves.
        """
        what = command.get("command")
        if what == "status":
            return describe_status(self._repository, self._statistics)
        if what == "metrics":
            return {"text": render_metrics(self._repository, self._statistics).decode()}
        if what not in ("load", "unload"):
            raise ConfigError(
                f"There is no command {what!r}; there are load, metrics, status, unload."
            )
        async with self._changing:
            done = await (self._load(command) if what == "load" else self._unload(command))
            settle()
            return done

    async def _load(self, command: Mapping[str, Any]) -> dict[str, Any]:
        path = Path(str(command.get("path")))
        called, numbered = name_bundle(path)
        name = str(command.get("name") or called)
        check_name(name, path)
        old, highest = self._repository.find(name), self._repository.highest(name)
        version = str(numbered if (numbered or 0) > highest else highest + 1)
        bundle = await asyncio.to_thread(lambda: read_bundle(path.resolve()))
        model = ServedModel(name, version, bundle, self._options)
        if not await model.load():
            raise model.failure or EngineError(f"{path} is not ready.")
        self._repository.add(model)  # from here on requests go to it
        kept = command.get("keep") is True
        for replaced in () if kept else old:
            await self._remove(replaced)
        _LOG.info("%s version %s serves", name, version)
        return {"name": name, "version": version, "replaced": 0 if kept else len(old)}

    async def _unload(self, command: Mapping[str, Any]) -> dict[str, Any]:
        name, version = str(command.get("name")), command.get("version")
        found = [m for m in self._repository.find(name) if version in (None, m.version)]
        if not found:
            raise BundleError(f"No model {name!r} of that version is served.")
        for model in found:
            await self._remove(model)
        return {"name": name, "unloaded": [model.version for model in found]}

    async def _remove(self, model: ServedModel) -> None:
        self._repository.remove(model)
        if not await model.unload():  # it is slow or hangs, and this process lives on
            task = asyncio.ensure_future(model.let_go())
            self._repository.leaving.add(task)
            task.add_done_callback(self._repository.leaving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer_line(reader, writer)
        except (ConnectionError, asyncio.CancelledError):  # who asked has gone, or the server ends
            pass
        finally:
            writer.close()

    async def _answer_line(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            command = json.loads(await reader.readline())
        except (ValueError, RecursionError) as error:
            reply: dict[str, Any] = {"error": f"no command: {error}", "exit_code": 2}
        else:
            reply = await self._reply(command)
        writer.write(json.dumps(reply).encode() + b"\n")
        await writer.drain()

    async def _reply(self, command: Any) -> dict[str, Any]:
        """What came of `command`; whoever sent it waits for that in any case."""
        try:
            if not isinstance(command, dict):
                raise ConfigError("A command is a JSON object.")
            return {"ok": await self.answer(command)}
        except DeployError as error:
            return {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:  # noqa: BLE001  of no memory, say
            _LOG.exception("%s failed", command.get("command"))
            return {"error": f"{type(error).__name__}: {error}", "exit_code": 1}


def send_command(path: Path, command: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the server that listens at `path`, and wait for its answer.

    Raises:
        ConfigError: none listens there.
        EngineError: it takes longer than it is waited for.
        DeployError: what the server said against it.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_WAIT_S)
            connection.connect(str(path))
            connection.sendall(json.dumps(dict(command)).encode() + b"\n")
            with connection.makefile("rb") as answer:
                reply = json.loads(answer.readline())
    except TimeoutError as error:
        raise EngineError(
            f"The server at {path} has not answered for {_WAIT_S:.0f} s and may still do what it "
            "was told: see its log, and deploy ctl status."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"No server answers at {path}: {error}. Start it with deploy serve --control {path}."
        ) from error
    if not isinstance(reply, dict) or not isinstance(reply.get("ok", {}), dict):
        raise ConfigError(f"What answers at {path} is no server of this project. Name its socket.")
    if "error" in reply:
        kind = ConfigError if reply.get("exit_code") == 2 else EngineError
        raise kind(reply["error"])
    done: dict[str, Any] = reply.get("ok", {})
    return done


def _has_server(path: Path) -> bool:
    """Whether a server listens at a socket, and is not a leftover."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # so many wait to be heard that one more may not
            return True
        return True
