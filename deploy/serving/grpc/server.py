"""The server of gRPC: what it is told, where it listens."""

from typing import Any

import grpc

from deploy.serving.certificates import Certificate
from deploy.serving.grpc.service import GrpcService
from deploy.serving.options import ServeOptions
from export.errors import EngineError

_WINDOW = 64 * 2**10
_LARGEST = 2**31 - 1
"""What gRPC counts to; limits beyond are taken for this one."""

_AGE = 20
"""Times the receive timeout after which a connection is ended, between two calls if it can be."""


async def start_grpc(
    service: GrpcService, options: ServeOptions, certificate: Certificate | None = None
) -> tuple[Any, int]:
    """A grpc.aio server that listens, and its port.

    Args:
        service: what it offers.
        options: of the server.
        certificate: for TLS; None: there is none.

    Raises:
        EngineError: the port is taken.
    """
    server = grpc.aio.server(
        options=server_options(options),
        maximum_concurrent_rpcs=min(options.max_connections, _LARGEST),
    )
    server.add_generic_rpc_handlers(service.handlers())
    host = f"[{options.host}]" if ":" in options.host else options.host  # an address of IPv6
    address = f"{host}:{options.grpc_port}"
    try:
        if certificate is not None:
            port = server.add_secure_port(address, certificate.credentials())
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise EngineError(
            f"gRPC cannot listen on {address}: {error}. Choose another --grpc-port."
        ) from error
    await server.start()
    return server, port


def server_options(options: ServeOptions) -> list[tuple[str, int]]:
    """What gRPC itself is told.

    A client that takes no more bytes off its socket does not answer pings, and its connection ends.
    One that answers them and opens no window for its answer is ended by age alone: a call cannot be
    cut off from here once its answer was handed over.
    """
    receive_ms = _count_ms(options.receive_timeout)
    return [
        ("grpc.max_receive_message_length", min(options.max_body_mb * 2**20, _LARGEST)),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", int(options.workers > 1)),
        ("grpc.http2.bdp_probe", 0),  # it lets windows grow to MiB a call
        ("grpc.http2.lookahead_bytes", _WINDOW),
        ("grpc.server_handshake_timeout_ms", receive_ms),  # until its client's settings have come
        ("grpc.keepalive_time_ms", receive_ms),
        ("grpc.keepalive_timeout_ms", receive_ms),
        ("grpc.max_connection_age_ms", min(_AGE * receive_ms, _LARGEST)),
        ("grpc.max_connection_age_grace_ms", _count_ms(options.timeout + options.receive_timeout)),
    ]


def _count_ms(seconds: float) -> int:
    return round(min(seconds * 1e3, _LARGEST))
