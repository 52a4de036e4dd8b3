"""The reward model: a transformer's body with one linear output, read at the last token of a response; or, as a critic,
before each of its tokens.

On disk it is a transformers sequence-classification directory, which says the same numbers there. The padded path
only: each response is a row with its prompt in front.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from modeseek.batch import PK, PKT, Batch

Precision = Literal["auto", "float32", "bfloat16"]  # auto: as it is stored


class RewardModel(nn.Module):
    """What `BradleyTerry` trains: `score` has a gradient. Of an empty response it reads the prompt's last token.

    A language model gets a head of zeros, so that every pair starts at a loss of ln 2 and nothing is drawn.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if not has_head(model) or model.get_submodule("score").out_features != 1:
            raise ValueError(
                f"reward model: found a {type(model).__name__}, expected a decoder of transformers for sequence"
                " classification with one output; use RewardModel.load on a language model"
            )
        self.model = model

    @staticmethod
    def load(
        path: str, *, precision: Precision = "float32", trust_remote_code: bool = False, device: str = "cpu"
    ) -> RewardModel:
        """From a causal language model, or from a reward model with one output: a directory or hub name.

        On the device `meta` it has all but its weights, which are not read.
        """
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "device": device}
        model, new = classifier(path, labels=1, precision=precision, **options)
        made = RewardModel(model)
        if new:
            nn.init.zeros_(model.get_submodule("score").weight)
        return made.to(device)

    def score(self, batch: Batch) -> PK:
        """What each response is worth; NaN where a group has none."""
        tokens, mask = rows(batch)
        said = at_last(self.model, tokens, mask, mask.sum(1) - 1)[:, 0]
        scores = said.new_full(batch.present.shape, float("nan"))
        scores[batch.present] = said
        return scores

    def value(self, batch: Batch) -> PKT:
        """What a critic expects before each response token, from the token before it; zero where masked."""
        tokens, mask = rows(batch)
        body: Any = self.model.base_model
        hidden = body(input_ids=tokens, attention_mask=mask.long(), use_cache=False).last_hidden_state
        head: Any = self.model.get_submodule("score")
        said = head(hidden)[..., 0]  # [N, L]
        said = said if said.dtype == torch.float64 else said.float()
        where = batch.mask & batch.present[..., None]
        before = batch.prompt_mask.sum(1)[:, None, None] + where.cumsum(-1) - 2  # [P, K, T]: the token before
        assert (batch.prompt_mask.any(1)).all(), "a prompt has at least its first token"
        found = said.new_zeros(batch.mask.shape)
        values = said.gather(1, before[batch.present].clamp(min=0))
        return found.masked_scatter(batch.present[..., None].expand_as(where), values).masked_fill(~where, 0.0)

    def save(self, path: str | Path, tokenizer: Any = None) -> None:
        """A directory that transformers loads, the tokenizer beside it.

        transformers reads the last token that is not `pad_token_id`, so the end token must not be the padding: the
        tokenizer's padding, beginning or unknown token stands in, the first that differs. Where none does (or no
        tokenizer is given) the padding is left unset, and transformers takes one row at a time.
        """
        model: Any = self.model
        model.config.get_text_config().pad_token_id = _pad_beside_end(tokenizer)
        model.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)


def has_head(model: nn.Module) -> bool:
    """Whether it is one of transformers' own decoders with a linear `score`, whose outputs we may read at any token."""
    return type(model).__module__.startswith("transformers.") and isinstance(getattr(model, "score", None), nn.Linear)


def at_last(
    model: Any, tokens: Int[Tensor, "N L"], mask: Bool[Tensor, "N L"], last: Int[Tensor, " N"]
) -> Float[Tensor, "N labels"]:
    """The outputs of a decoder's head at one token of each row. Rows are padded on the right."""
    hidden = model.base_model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).last_hidden_state
    said = model.score(hidden[torch.arange(len(tokens), device=tokens.device), last])
    return said if said.dtype == torch.float64 else said.float()


def rows(batch: Batch) -> tuple[Int[Tensor, "N L"], Bool[Tensor, "N L"]]:
    """Each present response with its prompt in front as a row, padding moved to the right."""
    K = batch.response.shape[1]
    prompt, before = (x.repeat_interleave(K, 0) for x in (batch.prompt, batch.prompt_mask))
    tokens = torch.cat([prompt, batch.response.flatten(0, 1)], 1)[batch.present.flatten()]
    mask = torch.cat([before, batch.mask.flatten(0, 1)], 1)[batch.present.flatten()]
    order = (~mask).int().sort(dim=1, stable=True).indices  # the tokens first, each kind in its order
    width = int(mask.sum(1).max()) if len(mask) else 0
    return tokens.gather(1, order)[:, :width], mask.gather(1, order)[:, :width]


def classifier(
    path: str, *, labels: int | None, precision: Precision, trust_remote_code: bool, device: str = "cpu"
) -> tuple[Any, bool]:
    """A sequence-classification model, and whether its head is new.

    With `labels` set the body of a language model is taken as well, and gets a new head of that many outputs.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except OSError as error:
        said = " ".join(str(error).split())[:160]
        raise ValueError(
            f"reward model: {path} is no folder with a model, and as a name of the hub it cannot be read ({said}); "
            "mend the path or the name"
        ) from error
    headed = any("SequenceClassification" in name for name in config.architectures or [])
    if headed and labels is not None and config.num_labels != labels:
        raise ValueError(f"reward model: {path} has {config.num_labels} outputs, expected {labels}")
    if not headed and labels is None and not trust_remote_code:
        raise ValueError(
            f"reward.path: {path} is a {', '.join(config.architectures or ['model'])}, expected a sequence-"
            "classification model; train one first (modeseek train reward_model)"
        )
    wanted = {} if labels is None else {"num_labels": labels}
    model, info = AutoModelForSequenceClassification.from_pretrained(
        path,
        dtype="auto" if precision == "auto" else getattr(torch, precision),
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **({"device_map": device} if device == "meta" else {}),
        **wanted,
    )
    missing = set(info["missing_keys"])
    if missing - (set() if headed else {"score.weight"}):
        raise ValueError(f"reward model: {path} lacks weights of the model that it names: {sorted(missing)[:3]}")
    return model.eval(), bool(missing)


def tokenizer(path: str, *, trust_remote_code: bool) -> Any:
    """The tokenizer of a model. It cuts texts on the left: the response is on the right."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, truncation_side="left")


def _pad_beside_end(tokenizer: Any) -> int | None:
    if tokenizer is None:
        return None
    names = ("pad_token_id", "bos_token_id", "unk_token_id")
    return next((i for i in (getattr(tokenizer, n) for n in names) if i not in (None, tokenizer.eos_token_id)), None)
