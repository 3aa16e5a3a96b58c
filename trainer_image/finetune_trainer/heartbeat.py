"""The nodes' launchers tell the first one that they are there.

A node that loses its power, or its network, leaves its connections open: gloo and NCCL wait 10 to 30 minutes for it then. And a pod
that is made anew must not meet ranks that still wait for the one before.
"""

import itertools
import socket
import threading
import time
import uuid
from contextlib import suppress

import psutil  # type: ignore[import-untyped]
from torch.distributed import DistError, PrefixStore, Store, TCPStore

from finetune_trainer.errors import PeerLostError, PreemptedError

INTERVAL = 3.0
"""Seconds between two beats."""
LOST_AFTER = 30.0
"""Seconds of silence after which a node counts as lost."""
PATIENCE = 600
"""Seconds that a node waits for the first one at its start: that one's image may still be on its way."""
_LEFT = "left"


class Peers:
    """What has been heard of the nodes since the round began."""

    def __init__(self) -> None:
        self._heard: dict[int, tuple[str, str, float | None]] = {}
        """node -> (its life, its newest beat, when that came; None until a second beat shows that it lives)"""

    def hear(self, node: int, beat: str, now: float) -> bool:
        """Whether this tells that the node is lost: silent for LOST_AFTER, or there anew without having left.

        :param beat: ``LIFE COUNT``, or ``left``; LIFE is that of a launcher.
        :param now: seconds.
        """
        life, _, _ = beat.partition(" ")
        known, newest, since = self._heard.get(node, ("", "", None))
        if since is not None and life not in (known, _LEFT):
            return True
        if beat == newest:
            return since is not None and now - since > LOST_AFTER
        self._heard[node] = life, beat, now if life == known else None
        return False


class Heartbeat:
    """Beats in a thread from its making until ``leave``. Once a node is lost, the ranks of this one are killed: they wait for
    it in a collective that nothing else ends.

    All beat in the store of node 0's launcher, which hears them; the others only see whether it answers.
    """

    def __init__(self, host: str, port: int, node: int, nodes: int) -> None:
        self.lost = threading.Event()
        self.host, self.port, self.node = host, port, node
        self._listened_to = range(1, nodes) if node == 0 else (node,)
        self._met = threading.Event()
        self._leaving = threading.Event()
        self._peers = Peers()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def meet(self, stopping: threading.Event) -> None:
        """Wait for the first node to be there. Torch's own wait for it lets no signal through, and complains aloud.

        Raises: PreemptedError once told to stop; PeerLostError after PATIENCE, to give the GPUs back.
        """
        until = time.monotonic() + PATIENCE
        while self.node and not self._met.wait(1):
            if stopping.is_set():
                raise PreemptedError("told to stop while the first node was away; nothing is lost")
            if time.monotonic() > until:
                raise PeerLostError(f"the first node is not there after {PATIENCE} seconds; this one comes back later")

    def begin_round(self) -> None:
        """What became of the nodes in the last round says nothing of this one."""
        self._peers = Peers()
        self.lost.clear()

    def leave(self) -> None:
        """From now on nobody misses this node."""
        self._leaving.set()
        self._thread.join(INTERVAL)

    def _run(self) -> None:
        life = uuid.uuid4().hex
        try:
            store = self._connect()
            for count in itertools.count():
                self._beat(store, f"{life} {count}")
                if self._leaving.wait(INTERVAL):
                    break
            store.set(str(self.node), _LEFT)
        except DistError:
            # The first node's launcher is gone, and its ranks with it: those here see that, unless its machine is gone too.
            if not self._leaving.wait(LOST_AFTER):
                self._lose()

    def _connect(self) -> Store:
        """Raises: DistError, once this node leaves without having met the first one."""
        while True:
            try:
                socket.create_connection((self.host, self.port), LOST_AFTER).close()
                break
            except OSError as error:
                if self._leaving.wait(1):
                    raise DistError("the first node was never there") from error
        self._met.set()
        store = TCPStore(self.host, self.port, is_master=False, wait_for_workers=False)
        return PrefixStore("heartbeat", store)

    def _beat(self, store: Store, beat: str) -> None:
        # A request to a machine that is gone is never answered.
        watchdog = threading.Timer(LOST_AFTER, self._lose)
        watchdog.daemon = True
        watchdog.start()
        try:
            store.set(str(self.node), beat)
            heard = {node: store.get(str(node)).decode() for node in self._listened_to if store.check([str(node)])}
        finally:
            watchdog.cancel()
        peers, now = self._peers, time.monotonic()
        if any(peers.hear(node, beat, now) for node, beat in heard.items()):
            self._lose()

    def _lose(self) -> None:
        self.lost.set()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
