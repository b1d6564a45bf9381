"""What training programs save, by program: small values in the layout of each."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from typing import Any

import torch

Value = dict[str, Any] | list[Any]


def weights(prefix: str = "", shift: float = 0.0) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        [
            (prefix + "a.weight", torch.ones(2, 2) + shift),
            (prefix + "b.bias", torch.zeros(2) + shift),
        ]
    )


ADAM = {
    "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2, 2)}},
    "param_groups": [{"lr": 1.0}],
}


def layouts() -> dict[str, Value]:
    """Those that need nothing but tensors and Python's own types."""
    w, ema = weights(), weights(shift=1)
    return {
        "timm ddp": {
            "state_dict": weights("module."),
            "state_dict_ema": weights("module.", 1),
        },
        "fairseq": {
            "args": None,
            "cfg": {"model": {"arch": "x"}},
            "model": w,
            "criterion": OrderedDict([("c.weight", torch.ones(1))]),
            "optimizer_history": [{"num_updates": 1}],
            "task_state": {},
            "extra_state": {"metrics": {"train": [(0, "loss", torch.ones(1))]}},
            "last_optimizer_state": ADAM,
        },
        "coqui": {
            "config": {"a": 1},
            "model": w,
            "optimizer": [ADAM, ADAM],
            "scaler": {},
            "step": 1,
            "epoch": 1,
            "model_loss": 0.1,
        },
        "gan": {"generator": w, "discriminator": weights(shift=2)},
        "hifigan": {"generator": w},
        "hifigan optimizers": {"mpd": w, "msd": ema, "optim_g": ADAM, "optim_d": ADAM, "steps": 1},
        "esrgan": {"params": w, "params_ema": ema},
        "esrgan ema": {"params_ema": ema},
        "dino": {
            "student": weights("module.backbone."),
            "teacher": weights("backbone.", 1),
            "optimizer": ADAM,
            "epoch": 1,
            "dino_loss": {"center": torch.zeros(1, 4)},
        },
        "moco": {
            "epoch": 1,
            "arch": "r50",
            "state_dict": weights("module.encoder_q."),
            "optimizer": ADAM,
        },
        "sam2": {"model": w},
        "whisper": {"dims": {"n_mels": 80}, "model_state_dict": w},
        "bark": {"model": weights("_orig_mod."), "model_args": {"n_layer": 1}},
        "rlkit": {"policy": w, "qf": ema},
        "mmdet": {"meta": {"epoch": 1}, "state_dict": w, "optimizer": ADAM, "ema_state_dict": ema},
        "accelerate fsdp": {"model": w, "optimizer": ADAM},
        "ema pytorch": {
            "step": 1,
            "model": w,
            "opt": ADAM,
            "ema": {
                "initted": torch.tensor(data=True),
                "step": torch.tensor(3),
                **{f"online_model.{key}": value for key, value in w.items()},
                **{f"ema_model.{key}": value for key, value in ema.items()},
            },
            "scaler": None,
        },
        "edm": {"ema": ema, "loss_fn": None, "augment_pipe": None},
        "adm": ema,
        "dit xl": {"ema": ema, "opt": ADAM},
        "nerf": {
            "network_fn_state_dict": w,
            "network_fine_state_dict": ema,
            "optimizer_state_dict": ADAM,
        },
        "stable baselines": {"policy": w, "policy.optimizer": ADAM},
        "weights": {"weights": w, "meta": {}},
        "model_weights": {"model_weights": w},
        "net": {"net": w, "acc": 1.0, "epoch": 1},
        "g": {"g": w},
        "state": {"state": w},
        "model_state": {"model_state": w, "optimizer_state": ADAM},
        "pipeline": {
            "pipeline": {"_model.a.weight": torch.ones(2)},
            "pipeline_ema": {"_model.a.weight": torch.zeros(2)},
        },
        "student": {"student": w},
        "encoder decoder": {"encoder": w, "decoder": ema},
        "gpt-neox": {"module": w, "args": {}, "dp_world_size": 1},
        "checkpoint": {"checkpoint": {"model": w, "optimizer": ADAM}},
        "nested": {"app": {"model": w, "optim": ADAM}},
        "a list": [w, ema],
        "hf flax": {"params": {"model": {"embed": {"kernel": torch.ones(2)}}}},
        "textual inversion": {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": {"*": torch.ones(2, 4)},
            "name": "x",
            "step": 1,
        },
        "lora pti": {"<s1>": torch.ones(4), "<s2>": torch.ones(4)},
        "cosyvoice": {"epoch": 1, "step": 3, **w},
        "with scalars": {**w, "num_updates": 3, "_extra": {"a": 1}},
        "tensors beside": {"model": w, "mean": torch.zeros(3), "std": torch.ones(3)},
    }


def with_arguments() -> dict[str, Value]:
    """Those that keep the command line's arguments, which are an object of argparse."""
    w, arguments = weights(), argparse.Namespace(lr=1)
    return {
        "timm": {
            "epoch": 3,
            "arch": "x",
            "state_dict": w,
            "optimizer": ADAM,
            "version": 2,
            "args": arguments,
            "state_dict_ema": weights(shift=1),
            "metric": 0.5,
        },
        "mae": {
            "model": w,
            "optimizer": ADAM,
            "epoch": 1,
            "scaler": {"scale": 1.0},
            "args": arguments,
        },
        "dit": {"model": w, "ema": weights(shift=1), "opt": ADAM, "args": arguments},
    }
