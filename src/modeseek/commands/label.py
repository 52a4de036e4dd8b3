"""People label: `modeseek label STORE`."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Label:
    """A local page on which people compare a store's pairs, blind and by keyboard; or the report of what they said."""

    store: Annotated[str, tyro.conf.Positional]  # file that collect wrote
    guidelines: str = ""  # Markdown file that the page shows beside the pairs
    port: int = 8765  # on 127.0.0.1; 0: any. The same again, and an open page goes on after a restart
    overlap: float | None = None  # share of pairs that several people label; unset: 0.1 where nobody has been asked yet
    times: int | None = None  # how many people label those; unset: 2
    unlabelled_only: bool = False  # ask only about pairs that nothing and nobody has labelled
    report: str = ""  # write a page on agreement, bias and haste there, and do not serve


def main(words: list[str]) -> int:
    """People label."""
    asked = tyro.cli(Label, args=words, prog="modeseek label")
    from modeseek.collect.store import Store

    guidelines = _read(asked.guidelines)
    with Store(asked.store, must_exist=True) as store:
        if asked.report:
            return _report(store, asked)
        try:
            from modeseek.label.serve import serve
        except ModuleNotFoundError as error:
            name = error.name or ""
            if name.split(".")[0] not in ("starlette", "uvicorn", "nh3", "markdown_it"):
                raise
            raise ValueError(f"label: {name} is not installed; write pip install 'modeseek[server]'") from None
        if asked.overlap is not None or asked.times is not None or store.progress().pairs == 0:
            overlap = 0.1 if asked.overlap is None else asked.overlap
            store.ask(overlap=overlap, times=asked.times or 2, unlabelled_only=asked.unlabelled_only)
        elif asked.unlabelled_only:
            raise ValueError("unlabelled_only: pairs are waiting already; write overlap too, to ask anew")
        found = store.progress()
        if found.pairs == 0:
            raise ValueError(f"store: {asked.store} holds no pairs to label; `modeseek collect` makes some")
        print(f"{found.got} of {found.wanted} labels on {found.pairs} pairs; stop with Ctrl-C, nothing is lost")
        serve(
            store,
            port=asked.port,
            guidelines=guidelines,
            token=_token(store),
            announce=lambda link: print(link, flush=True),
        )
    return 0


def _report(store: Any, asked: Label) -> int:
    from modeseek.label.summary import QUERY, given, summarise
    from modeseek.report.labels import write

    labels = given(store.rows(QUERY))
    if not labels:
        raise ValueError(f"report: nobody has labelled in {asked.store} yet")
    print(write(summarise(labels), Path(asked.report), Path(asked.store).name))
    return 0


def _token(store: Any) -> str:
    """The store's own, made once: whoever can read it can read the store."""
    with store.writing() as db:
        db.execute("insert or ignore into facts values ('label_token', ?)", (secrets.token_urlsafe(24),))
    return store.rows("select value from facts where name = 'label_token'")[0][0]


def _read(path: str) -> str:
    if not path:
        return DEFAULT
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"guidelines: {path} cannot be read: {error}") from None


DEFAULT = """Choose the response that serves the person who wrote the prompt better: correct, to the point, safe.

- Length is no merit by itself, and neither is style. Which stands first is chance.
- Take **tie** where you would not mind which one you got, **skip** where you cannot judge.
- Write a note where a reader of your label should know why.
"""
