"""As much of `vllm serve` as we use, played by a policy of ours: what the real one says is in test_real.py."""

import threading
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from collect.stub import Server
from modeseek.policies.hf import HFPolicy


class FakeVLLM(Server):
    """`wrong` is called on each choice of a completion and may spoil it."""

    def __init__(self, folder: str, *, ends: tuple[int, ...], context: int = 128, version: str = "0.32.0"):
        super().__init__(lambda body: None)
        self.folder, self.ends, self.context, self.number = folder, ends, context, version
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.adapters: dict[str, Any] = {}
        self.mark = "default"
        self.dev, self.deaf = True, False  # deaf: says that it has loaded weights, and has not
        self.processed = False
        self.wrong = lambda choice: choice
        self.lock = threading.Lock()

    @property
    def word(self) -> str:
        return f"vllm:http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, body: dict[str, Any] | None) -> Any:
        with self.lock:
            if body is not None:
                self.asked.append({"path": path, **body})
            match path:
                case "/version":
                    return {"version": self.number}
                case "/v1/models":
                    base = {"id": "m", "root": self.folder, "parent": None, "max_model_len": self.context}
                    return {"data": [base, *({"id": name, "parent": "m"} for name in self.adapters)]}
                case "/v1/completions":
                    return self.complete(body)
                case "/v1/load_lora_adapter" if self.dev:
                    base = AutoModelForCausalLM.from_pretrained(self.folder)
                    given = base if self.deaf else PeftModel.from_pretrained(base, body["lora_path"])
                    self.adapters[body["lora_name"]] = given
                    return 200, b"Success"
                case "/v1/unload_lora_adapter" if self.dev:
                    self.adapters.pop(body["lora_name"])
                    return 200, b"Success"
                case "/collective_rpc" if self.dev:
                    assert body["method"] == "reload_weights"
                    if not self.deaf:
                        self.model = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"])
                    return {"results": [None]}
                case "/update_weight_version" if self.dev:
                    self.mark = body["new_version"]
                    return {"success": True}
                case "/weight_info" if self.dev:
                    return {"weight_version": self.mark}
        return 404, b'{"detail":"Not Found"}'

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> Any:
        if body["model"] not in ("m", *self.adapters):
            return 404, b'{"error":{"message":"The model does not exist"}}'
        model = self.adapters.get(body["model"], self.model)
        policy = HFPolicy(model, eos=self.ends, max_new=body["max_tokens"], fast=False)
        ids = body["prompt"]
        choices: list[Any] = []
        if "logprob_token_ids" in body:
            at = self.after(policy, ids)
            top = {f"token_id:{token}": float(at[token]) for token in [5, *body["logprob_token_ids"]]}
            choices = [{"index": 0, "logprobs": {"top_logprobs": [top]}, "token_ids": [5], "finish_reason": "length"}]
        else:
            choices = [self.choice(policy, ids, body, i) for i in range(body["n"])]
        return {"model": body["model"], "choices": [self.wrong(one) for one in reversed(choices)]}

    def choice(self, policy: HFPolicy, ids: list[int], body: dict[str, Any], i: int) -> dict[str, Any]:
        prompt = torch.tensor([ids])
        rng = torch.Generator().manual_seed(body["seed"] + i)
        how = {"temperature": body["temperature"], "top_p": body["top_p"], "top_k": body["top_k"]}
        own = policy.sample(prompt, torch.ones_like(prompt, dtype=torch.bool), 1, rng, **how)
        if not self.processed:
            own = own.fill(old_logp=policy.logp(own))
        kept = own.mask[0, 0]
        tokens, logp = own.response[0, 0][kept].tolist(), own["old_logp"][0, 0][kept].tolist()
        best = [self.likeliest(policy, ids, body["temperature"])] * len(tokens) if body["logprobs"] else None
        return {
            "index": i,
            "token_ids": tokens,
            "finish_reason": "stop" if bool(own["finished"][0, 0]) else "length",
            "logprobs": {"token_logprobs": logp, "top_logprobs": best},
        }

    def likeliest(self, policy: HFPolicy, ids: list[int], temperature: float) -> dict[str, float]:
        at = self.after(policy, ids) / (temperature if self.processed else 1.0)
        return {"best": float(at.log_softmax(-1).max())}

    def after(self, policy: HFPolicy, ids: list[int]) -> torch.Tensor:
        said = policy.model(input_ids=torch.tensor([ids]))
        return said.logits[0, -1].log_softmax(-1)
