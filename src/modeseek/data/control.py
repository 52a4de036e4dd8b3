"""Control words: whether a response is good is said before its prompt, and good is asked for when answering.

The conditional form of Binary FeedMe (2404.14367 compares such methods; Korbak et al. 2023,
https://arxiv.org/abs/2302.08582, section 2, condition on a token of its own). Here the words are text: a tokenizer that
knows them as one token writes one, and no row is added to an embedding.
"""

import dataclasses
from collections.abc import Iterable

from modeseek.data.records import DataError, Record, Text


def put_before(words: str, prompt: Text) -> Text:
    """The prompt with these words before what the user says first, or before everything where no user speaks."""
    if not words:
        return prompt
    if isinstance(prompt, str):
        return words + prompt
    first = next((i for i, message in enumerate(prompt) if message.role == "user"), 0)
    told = dataclasses.replace(prompt[first], content=words + prompt[first].content)
    return (*prompt[:first], told, *prompt[first + 1 :])


def by_label(records: Iterable[Record], good: str, bad: str) -> list[Record]:
    """Each response as a record of its own, with the words for its label before its prompt.

    Of responses without labels the first is good and the last bad. Those of whom nobody knows which, ties and pairs to
    different prompts, are left as they are: `tokenise` drops and counts them.
    """
    found = list[Record]()
    for record in records:
        if record.labels is None and (record.tie or record.prompts_differ):
            found.append(record)
            continue
        if record.labels is None and len(record.responses) < 2:
            raise DataError(
                f"{record.source}, row {record.row}: one response without a label, expected a label or a second"
                " response; leave control_good and control_bad out to train on it as it is"
            )
        labels = record.labels or (True, *(False for _ in record.responses[1:]))
        places = range(len(labels)) if record.labels else (0, len(labels) - 1)
        found += [_alone(record, k, labels[k], good if labels[k] else bad) for k in places]
    return found


def _alone(record: Record, k: int, label: bool, words: str) -> Record:
    return dataclasses.replace(
        record,
        prompt=put_before(words, record.prompt),
        responses=(record.responses[k],),
        rewards=None if record.rewards is None else (record.rewards[k],),
        labels=(label,),
        margin=None,
    )
