"""AdamW with `step` in the parameter group, as Apex's and Transformer Engine's FusedAdam keep it.

torch's AdamW keeps a step tensor per parameter; Megatron's distributed optimizer shares one of them among all
parameters when it loads, so a resumed run would diverge.
"""

import torch


class FusedAdam(torch.optim.Optimizer):
    """Decoupled weight decay (Loshchilov & Hutter 2019). State is made at the first step, as FusedAdam does."""

    def __init__(self, params, lr, betas, eps, weight_decay):
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params, [p.grad for p in params])

    def _update(self, group, params, grads):
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        first = [self.state[p]["exp_avg"] for p in params]
        second = [self.state[p]["exp_avg_sq"] for p in params]
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            params,
            grads,
            first,
            second,
            [],
            [torch.tensor(float(group["step"]))] * len(params),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
