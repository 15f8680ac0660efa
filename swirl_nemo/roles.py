"""The two roles of SWIRL: what each completes, and what its counterpart then scores.

Phase I trains the forward world model (FWM) P(y|x,z) with the frozen inverse dynamics model (IDM) Q(z|x,y) as reward;
Phase II swaps them. Both are one procedure: a role has a prompt, it completes one field of the transition, and its
completion becomes the context in which the counterpart scores a fixed target.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .data.transition import Transition

Name = Literal["fwm", "idm"]


@dataclass(frozen=True)
class Role:
    """`completes` names the field of the transition that this role emits."""

    name: Name
    completes: Literal["y", "z"]

    @property
    def counterpart(self) -> "Role":
        return IDM if self.name == "fwm" else FWM

    def target(self, transition: Transition) -> str:
        """The completion that the transition itself gives, for supervision and for held-out metrics.

        Raises ValueError for an IDM target of a transition without an action.
        """
        text = getattr(transition, self.completes)
        if text is None:
            raise ValueError(f"transition {transition.id} has no action: annotate it, or give labelled rows")
        return text

    def complete(self, transition: Transition, completion: str) -> Transition:
        """The transition with this role's completion put in: what the counterpart reads."""
        return replace(transition, **{self.completes: completion})


FWM = Role("fwm", completes="y")
IDM = Role("idm", completes="z")
ROLES: dict[str, Role] = {role.name: role for role in (FWM, IDM)}


def taught_by_annotations(role: Role, played: Sequence[Role]) -> Sequence[Role]:
    """The roles that the M-step of `role`'s phase teaches, of those that its weights play.

    Phase II's, that of shared weights, teaches the FWM, too, which they forget otherwise (docs/tried.md): an annotated
    row's next state is true. Its action is the IDM's own guess, so Phase I's does not teach the IDM.
    """
    return played if role is IDM else [role]
