"""Encryption of ZeroMQ sockets that leave the machine: CURVE, with one key pair a job.

The server's public key is never sent in clear: a client proves with its first message that it knows it (CurveZMQ's HELLO
is a box to that key), and all that follows is encrypted. So the pair lies in RUN/endpoints.json, mode 0600, and whoever
can read that file is let in, nobody else. Clients make a key pair of their own each time they connect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zmq


@dataclass(frozen=True)
class CurveKeys:
    """The server pair of a job, as ZeroMQ's Z85 text of 40 characters each."""

    public: str
    secret: str

    @classmethod
    def make(cls) -> CurveKeys:
        """A new pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


def secure_server(socket: zmq.Socket[Any], keys: CurveKeys | None) -> None:
    """Before `bind`: let only clients in that know the public key. Without keys the socket stays as it is."""
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)


def secure_client(socket: zmq.Socket[Any], keys: CurveKeys | None) -> None:
    """Before `connect`: encrypt, and talk to nobody but the holder of the secret key."""
    if keys is not None:
        public, secret = zmq.curve_keypair()
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, keys.public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
