"""From the target that a user writes to the address that gRPC takes. Opens nothing."""

from __future__ import annotations

from farsum_kernels.errors import ServerUnreachable


def address_of(target: str) -> str:
    """The gRPC address of a target.

    Raises ServerUnreachable for what is not a loopback address: there is no encryption yet.

    >>> address_of("grpc://localhost:50051"), address_of("unix:///run/farsum.sock")
    ('localhost:50051', 'unix:///run/farsum.sock')
    """
    if target.startswith("unix:"):
        return target
    scheme, separator, rest = target.partition("://")
    if not separator:
        scheme, rest = "grpc", target
    host, _, port = rest.rpartition(":")
    if scheme != "grpc" or not host or not port.isdigit():
        raise ServerUnreachable(
            f"{target!r} is no target; write grpc://localhost:50051 or unix:///path/of/socket"
        )
    if not _is_loopback(host.strip("[]")):
        raise ServerUnreachable(
            f"{target} is on another machine and farsum has no encryption yet; open a tunnel with "
            f"`ssh -N -L {port}:localhost:{port} {host}` and use grpc://localhost:{port}"
        )
    return rest


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
