"""nginx with the configuration that deploy/ ships, in front of services on this machine."""

from __future__ import annotations

import getpass
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["free_port", "proxied"]

SHIPPED = Path(__file__).parent.parent.parent / "deploy" / "nginx.conf"
MAIN = """\
daemon off;
user {user};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 2;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    {paths}
    include {folder}/site.conf;
}}
"""
KEPT = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")  # that nginx keeps files of


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def proxied(folder: Path, ports: Sequence[int], name: str = "localhost 127.0.0.1") -> Iterator[tuple[int, list[int]]]:
    """Run the proxy as long as the block.

    Args:
        folder: for its files.
        ports: of the services.
        name: of the server, for the placeholder of the shipped configuration.

    Yields:
        Its port, and its processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    site = SHIPPED.read_text(encoding="utf-8").replace("listen 80", f"listen 127.0.0.1:{port}")
    site = site.replace("recommend.example", name)
    first, last = site.index("    server 127.0.0.1:8001"), site.index("    keepalive 64;")
    servers = "".join(f"    server 127.0.0.1:{one} max_fails=0;\n" for one in ports)
    (folder / "site.conf").write_text(site[:first] + servers + site[last:], encoding="utf-8")
    paths = "\n    ".join(f"{kind}_temp_path {folder}/{kind};" for kind in KEPT)
    main = folder / "nginx.conf"
    main.write_text(MAIN.format(folder=folder, paths=paths, user=getpass.getuser()), encoding="utf-8")
    command = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(main)]
    subprocess.run([*command, "-t", "-q"], check=True)
    with subprocess.Popen(command) as process:
        try:
            yield port, _wait(process.pid, port)
        finally:
            process.terminate()


def _wait(parent: int, port: int) -> list[int]:
    """The processes, once the port is answered at."""
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
    return [parent, *map(int, children.split())]
