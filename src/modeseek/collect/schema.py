"""The preference store's tables: what was asked, what was answered and by whom, what was said of it, and when.

A response is named by `key`: its prompt, its text, its writer and its draw, so that the same draw is never stored
twice. A label is never overwritten: one that its author took back keeps its row with `undone` set.
"""

import sqlite3

VERSION = 1

TABLES = """
create table if not exists facts (name text primary key, value text not null) without rowid;

create table if not exists plans (
    hash text primary key,                   -- of the plan's content: sha256, 16 hex digits
    plan text not null                       -- JSON
) without rowid;

create table if not exists chunks (          -- a chunk is here exactly when all its rows are: one transaction
    plan text not null references plans,
    number integer not null,
    counts text not null,                    -- JSON: prompts, responses, pairs, and what was left out and why
    at real not null,
    primary key (plan, number)
) without rowid;

create table if not exists drafts (          -- chunks that are sampled and not yet labelled
    plan text not null references plans,
    number integer not null,
    groups text not null,                    -- JSON
    primary key (plan, number)
) without rowid;

create table if not exists paid (            -- requests to a judge, counted before each is sent
    account text primary key,                -- a plan's hash, or what all rounds of an `iterate` draw on
    requests integer not null
) without rowid;

create table if not exists prompts (
    id integer primary key,
    key text not null unique,                -- sha256 of the text
    prompt text not null,                    -- JSON: a text, or a list of {role, content}
    source text not null                     -- the file that it came from
);

create table if not exists responses (
    id integer primary key,
    key text not null unique,
    prompt integer not null references prompts,
    response text not null,                  -- JSON, as a prompt
    writer text not null,                    -- the policy's name: a folder, a hub name, a served model
    policy_hash text not null,               -- sha256 of its weights, 16 hex digits; '' where they cannot be read
    step integer,                            -- optimiser steps that the policy had taken, where its run says so
    temperature real,
    logp real,                               -- of the whole response under its writer, nats, at that temperature
    tokens integer,
    plan text not null,
    chunk integer not null,
    place integer not null,                  -- of its group in the chunk: one asking of the prompt
    finished integer not null,               -- 0: cut off at the length limit
    reward real,                             -- what the plan's labeller said of it, where it says a number
    rewarded_by text,
    at real                                  -- seconds since 1970
);
create index if not exists responses_of_plan on responses (plan, chunk, place);

create table if not exists pairs (
    id integer primary key,
    prompt integer not null references prompts,
    a integer not null references responses,
    b integer not null references responses,
    plan text,
    chunk integer,
    selected text not null,                  -- the strategy that chose the pair
    wanted integer not null,                 -- labels that people are asked for
    got integer not null default 0,          -- labels that people gave, without skips
    unique (a, b)
);
create index if not exists pairs_waiting on pairs (id) where got < wanted;
create index if not exists pairs_asked on pairs (wanted, got) where wanted > 0;

create table if not exists labels (
    id integer primary key,
    pair integer not null references pairs,
    annotator text not null,                 -- a person's name, or rule:..., model:..., judge:...
    kind text not null check (kind in ('rule', 'model', 'judge', 'person', 'data')),
    preferred text not null check (preferred in ('a', 'b', 'tie', 'skip')),
    confidence real,                         -- the labeller's probability of its answer, where it has one
    shown text not null check (shown in ('ab', 'ba', 'both', '')),  -- which stood first; both: asked twice
    seconds real,                            -- that a person looked at it
    note text not null default '',
    orders text not null default '',         -- a judge: its verdict with a first and with b first; a b tie unclear
    client text unique,                      -- the id that the page gave its click: the same click counts once
    at real not null,
    undone real                              -- when its author took it back
);
create unique index if not exists one_label_each on labels (pair, annotator) where undone is null;
create index if not exists labels_by on labels (annotator, kind, id, preferred) where undone is null;

create table if not exists annotators (
    name text primary key,
    done_before integer not null default 0,  -- no pair below this id waits for this person
    holds integer,                           -- the pair on their screen
    since real
) without rowid;
"""

# Counts that the label page shows with every pair, kept as rows change: reading 100,000 of them each time is too slow.
# A store that has none yet is counted once.
COUNTS = (
    """create table asked (                      -- pairs that people are asked for so often and have labelled so often
    wanted integer not null,
    got integer not null,
    n integer not null,
    primary key (wanted, got)
) without rowid""",
    """create table said (
    annotator text primary key,
    done integer not null,
    skipped integer not null
) without rowid""",
    "insert into asked select wanted, got, count(*) from pairs where wanted > 0 group by wanted, got",
    """insert into said select annotator, sum(preferred != 'skip'), sum(preferred = 'skip') from labels
    where kind = 'person' and undone is null group by annotator""",
    """create trigger pair_is_asked after insert on pairs when new.wanted > 0 begin
    insert into asked values (new.wanted, new.got, 1) on conflict (wanted, got) do update set n = n + 1;
end""",
    """create trigger pair_is_asked_otherwise after update of wanted, got on pairs begin
    update asked set n = n - 1 where wanted = old.wanted and got = old.got;
    insert into asked select new.wanted, new.got, 1 where new.wanted > 0
        on conflict (wanted, got) do update set n = n + 1;
end""",
    """create trigger person_says after insert on labels when new.kind = 'person' and new.undone is null begin
    insert into said values (new.annotator, new.preferred != 'skip', new.preferred = 'skip')
        on conflict (annotator) do update set done = done + excluded.done, skipped = skipped + excluded.skipped;
end""",
    """create trigger person_takes_back after update of undone on labels
    when new.kind = 'person' and old.undone is null and new.undone is not null begin
    update said set done = done - (new.preferred != 'skip'), skipped = skipped - (new.preferred = 'skip')
        where annotator = new.annotator;
end""",
)


def bring_up(db: sqlite3.Connection) -> None:
    """Give a store what it lacks: a new one everything, one of an earlier program what has been added since."""
    for statement in filter(str.strip, _statements(TABLES)):
        db.execute(statement)
    named = {name for (name,) in db.execute("select name from sqlite_master")}
    if "asked" not in named:
        for statement in COUNTS:
            db.execute(statement)
    if "spent" in named:
        db.execute("insert or ignore into paid select plan, requests from spent")
        db.execute("drop table spent")
    if "orders" not in {column for _, column, *_ in db.execute("pragma table_info(labels)")}:
        db.execute("alter table labels add column orders text not null default ''")
    db.execute("insert or ignore into facts values ('version', ?)", (str(VERSION),))


def _statements(script: str) -> list[str]:
    """`executescript` would commit before it begins, and two processes may make the same file."""
    lines = [line.partition("--")[0] for line in script.splitlines()]
    return "\n".join(lines).split(";")
