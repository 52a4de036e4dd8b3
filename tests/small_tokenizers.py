"""Tokenizers made on the spot, each with a habit that has broken someone's training."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the sky is blue. the sky is green.\n\nfoobar foo bar foobar, 'tis (so) 12:30!",
    "Human: what is it?\n\nAssistant: it is the sky, foobar.",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING = CHATML.replace("m.content", "m.content | trim")
WITH_BOS = "{{ bos_token }}" + CHATML.replace("<|im_end|>\n", "<|im_end|>")
PLAIN_END = (  # the template never writes the end token
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
THINKING = (  # past answers lose their thinking, and the generation prompt opens a block that the whole does not have
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}{% endfor %}" + CHATML
)


def byte_level(
    *, bos: str | None = None, pad: str | None = None, template: str | None = None, prefix_space: bool = False
) -> PreTrainedTokenizerFast:
    """As GPT-2 or Qwen. With a BOS it is put before every text, as Llama 3 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", *([bos] if bos else []), *([pad] if pad else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return _wrap(tokenizer, eos="<|im_end|>", bos=bos, pad=pad, template=template)


def space_before() -> PreTrainedTokenizerFast:
    """As Llama 2: every text gets a space before it. BOS is EOS, there is no pad token, bytes stand in for the rest."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    special = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))]
    trained.train_from_iterator(
        [text.replace(" ", "▁").replace("\n", "") for text in CORPUS],
        trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False),
    )
    learnt = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(learnt["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return _wrap(tokenizer, eos="<s>", bos="<s>")


def words(*, context: int | None = None, eos: str | None = "<eos>") -> PreTrainedTokenizerFast:
    """One token a word (w0, w1, ...): lengths can be counted by hand."""
    vocabulary = {"<unk>": 0, "<eos>": 1, "<bos>": 2} | {f"w{i}": 3 + i for i in range(100)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = _wrap(tokenizer, eos=eos)
    if context is not None:
        wrapped.model_max_length = context
    return wrapped


def _wrap(
    tokenizer: Tokenizer,
    *,
    eos: str | None,
    bos: str | None = None,
    pad: str | None = None,
    template: str | None = None,
) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, pad_token=pad)
    wrapped.chat_template = template
    return wrapped
