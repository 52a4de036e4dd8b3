"""Who has stopped answering: a thread of every process tells the others, through torchrun's store, how far it is.

Two things are told apart. A process that was killed or frozen no longer tells anything. One that hangs still tells, but
stays behind while the others, further on, wait for it. Either is named, with its step and what it was doing, and
every process ends at once, so that no machine is paid for waiting; checkpoints are renamed only when they are whole.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

SURELY_DEAD = 3.0  # seconds of silence of one whose death is already suspected
LAST_CHANCE = 8.0  # seconds in which to find out who it was
GRACE = 25.0  # seconds for a soft stop after SIGTERM; torchrun kills after 30
START = [0, 0]
_Store: Any = vars(dist)["TCPStore"]  # public, but not in the type checker's eyes


@dataclass
class Heard:
    """What is known of a rank, and for how long, by our own clock, it has been so."""

    told: dict[str, Any] = field(default_factory=dict)
    ticked: float = field(default_factory=time.monotonic)  # when it last told anything
    moved: float = field(default_factory=time.monotonic)  # when it last went on

    def hear(self, told: dict[str, Any], now: float) -> None:
        if told.get("tick") != self.told.get("tick"):
            self.ticked = now
        if told.get("beat") != self.told.get("beat") or told.get("busy"):
            self.moved = now
        self.told = told


def accused(heard: dict[int, Heard], now: float, silence: float, patience: float) -> dict[int, str]:
    """The ranks that keep the others waiting, and how: silent for `silence` seconds, or behind for `patience`.

    Ranks that all stand at the same point may be at work: nobody is accused then.
    """
    silent = {r: f"silent for {now - h.ticked:.0f} s" for r, h in heard.items() if now - h.ticked > silence}
    if silent:
        return silent
    at = {r: h.told.get("beat", START) for r, h in heard.items()}
    furthest = max(at.values())
    if any(now - h.moved <= patience for r, h in heard.items() if at[r] == furthest):
        return {}
    behind = [r for r, h in heard.items() if at[r] < furthest and now - h.moved > patience]
    return {r: f"the others have waited {patience:.0f} s for it" for r in behind}


class Pulse:
    """One process's pulse, and its ear for the others'. `patience` is in seconds."""

    def __init__(self, rank: int, size: int, patience: float):
        self.rank, self.size, self.patience, self.busy = rank, size, patience, False
        self.period = max(min(1.0, patience / 10), size / 64)  # seconds; every rank reads every other's
        self.last_words: Callable[[str], str] = lambda message: ""
        self._beat, self._step, self._what, self._within = START, 0, "starting", ""
        self._ended, self._suspected = threading.Event(), 0.0
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)

    def beat(self, what: str, step: int | None = None) -> None:
        """The main thread is at the next point that all ranks come by, so that the counts can be compared."""
        self._beat, self._what, self._within = [self._beat[0] + 1, 0], what, ""
        self._step = self._step if step is None else step

    def breathe(self, within: str = "") -> None:
        """It goes on, at its own pace, between two such points; `within` a collective that is none of ours."""
        self._beat = [self._beat[0], self._beat[1] + 1]
        self._within = f", {within}" if within else self._within

    def say(self, what: str, *, busy: bool) -> None:
        """It does something that the others do not; while `busy`, they wait for as long as it takes."""
        self._what, self.busy = what, busy

    def start(self) -> None:
        """Begin to tell and to listen. The first SIGTERM (torchrun's, after a death) leaves time to name the dead."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=max(5.0, self.patience / 3))
        self._store = _Store(address, port, is_master=False, timeout=limit)
        self._tell(0)
        dist.barrier()  # from here on every rank has told something
        if threading.current_thread() is threading.main_thread():
            # A handler alone would wait for the main thread, which may be deep in a collective; the socket does not.
            signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
            signal.signal(signal.SIGTERM, lambda *_: None)
        self._thread.start()

    def stop(self) -> None:
        """The end of the run: silence is no death."""
        self._ended.set()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._thread.join(self.period * 2)

    def suspect(self) -> None:
        """A peer has gone: wait until it is known which, and end with its name; return where none is found."""
        self._suspected = time.monotonic()
        self._ended.wait(LAST_CHANCE)

    def _watch(self) -> None:
        heard, tick, terminated = {r: Heard() for r in range(self.size)}, 0, False
        while not self._ended.is_set():
            if select.select([self._wake], [], [], self.period)[0]:
                terminated = terminated or signal.SIGTERM in self._wake.recv(64)
                self._suspected = self._suspected or (time.monotonic() if terminated else 0.0)
            tick, now = tick + 1, time.monotonic()
            try:
                self._tell(tick)
                for r, told in enumerate(self._store.multi_get([f"pulse/{r}" for r in range(self.size)])):
                    heard[r].hear(json.loads(told), now)
            except RuntimeError:  # the store's process is gone or frozen: without torchrun's that is rank 0
                for r, h in heard.items():
                    h.ticked = h.ticked if r == 0 else now
            if self._ended.is_set():
                return
            silence = SURELY_DEAD if self._suspected else self.patience
            found = accused(heard, time.monotonic(), silence, self.patience)
            if found:
                self._end(found, heard)
            if terminated and now - self._suspected > GRACE:
                os._exit(128 + signal.SIGTERM)

    def _tell(self, tick: int) -> None:
        told = {
            "tick": tick,
            "beat": self._beat,
            "step": self._step,
            "what": self._what + self._within,
            "busy": self.busy,
        }
        self._store.set(f"pulse/{self.rank}", json.dumps(told))

    def _end(self, found: dict[int, str], heard: dict[int, Heard]) -> None:
        """One of those that answer speaks; all end."""
        speaker = min(set(range(self.size)) - found.keys(), default=self.rank)
        if self.rank == speaker:
            said = [
                f"rank {r} stopped answering at step {heard[r].told.get('step', 0)}, last seen at: "
                f"{heard[r].told.get('what', 'starting')} ({why})"
                for r, why in sorted(found.items())
            ]
            message = "; ".join(said)
            with contextlib.suppress(Exception):
                message = f"{message}. {self.last_words(message)}".strip()
            print(f"modeseek train: {message}", file=sys.stderr, flush=True)
        else:
            time.sleep(0.5)  # torchrun ends all at the first exit: let the speaker speak
        os._exit(1)
