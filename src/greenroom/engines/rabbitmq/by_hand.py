"""Connections for programs that speak to RabbitMQ themselves (``broker.connection``, ``broker.channel``). The library
uses none of them."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pika
from pika.exceptions import AMQPError

from ...forksafe import PerProcess
from .connection import Targets
from .errors import translate


class _State(threading.local):
    """What one thread has."""

    connection: Any = None
    channel: Any = None


class _Opened:
    """What a process has opened: the connections of all its threads."""

    def __init__(self) -> None:
        self.state = _State()
        self.connections: set[Any] = set()
        self.channels: set[Any] = set()


class ByHand:
    """A ``BlockingConnection`` and a channel for each thread that asks. Any thread.

    Parameters:
      targets: Where to.
      confirm: Whether its channels wait for confirms.
    """

    def __init__(self, targets: Targets, *, confirm: bool) -> None:
        self._targets = targets
        self._confirm = confirm
        self._process: PerProcess[_Opened] = PerProcess(_Opened)

    @property
    def connections(self) -> set[Any]:
        """What is open in this process."""
        return self._process.get().connections

    @property
    def channels(self) -> set[Any]:
        """The channels that are open in this process."""
        return self._process.get().channels

    @property
    def state(self) -> Any:
        """What this thread has."""
        return self._process.get().state

    def connection(self) -> Any:
        """This thread's connection; opened now if there is none.

        Raises:
          ConnectionFailed: If no server could be reached.
        """
        opened = self._process.get()
        if opened.state.connection is None or not opened.state.connection.is_open:
            self.close_connection()
            try:
                opened.state.connection = pika.BlockingConnection(self._targets.named("by hand"))
            except AMQPError as e:
                raise translate(e, self._targets.shown) from e
            opened.connections.add(opened.state.connection)
        return opened.state.connection

    def channel(self) -> Any:
        """This thread's channel; opened now if there is none. Raises as ``connection``."""
        state = self._process.get().state
        if state.channel is None or not state.channel.is_open:
            self.close_channel()
            state.channel = self.connection().channel()
            if self._confirm:
                state.channel.confirm_delivery()
            self.channels.add(state.channel)
        return state.channel

    def close_channel(self) -> None:
        """Closes this thread's channel, if it has one."""
        state = self._process.get().state
        channel, state.channel = state.channel, None
        if channel is not None:
            self.channels.discard(channel)
            _close(channel)

    def close_connection(self) -> None:
        """Closes this thread's connection, if it has one."""
        self.close_channel()
        state = self._process.get().state
        connection, state.connection = state.connection, None
        if connection is not None:
            self.connections.discard(connection)
            _close(connection)

    def close(self) -> None:
        """Closes those of all threads of this process."""
        self._process.close(_close_all)


def _close_all(opened: _Opened) -> None:
    for each in [*opened.channels, *opened.connections]:
        _close(each)


def _close(closable: Any) -> None:
    with suppress(AMQPError, OSError):  # it is closed already, or broken
        closable.close()
