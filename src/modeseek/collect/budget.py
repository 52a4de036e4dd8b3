"""A judge's budget over processes and restarts: its requests are counted in the store before they are sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from modeseek.collect.store import Store
from modeseek.rewards import Comparison, EnsembleReward, JudgeReward, Reward


class Ledger(Counter[str]):
    """A judge's counts, of which `asked` is the store's: what was sent by every process that drew on the account."""

    def __init__(self, store: Store, account: str):
        super().__init__()
        self.store, self.account = store, account
        super().__setitem__("asked", store.spent(account))

    def __getitem__(self, key: str) -> int:
        return self.store.spent(self.account) if key == "asked" else super().__getitem__(key)

    def __setitem__(self, key: str, value: int) -> None:
        if key == "asked":
            self.store.spend(self.account, value - self[key])
        super().__setitem__(key, value)


def bind(asked: Iterable[Comparison], store: Store, account: str) -> None:
    """Let judges draw on the account, each further one of an ensemble on one of its own."""
    for i, comparison in enumerate(asked):
        comparison.counts = Ledger(store, f"{account} {i}" if i else account)


def comparisons(reward: Reward) -> Iterator[Comparison]:
    """The judges that a reward asks, in order."""
    if isinstance(reward, JudgeReward):
        yield reward.comparison
    elif isinstance(reward, EnsembleReward):
        for member in reward.members:
            yield from comparisons(member)
