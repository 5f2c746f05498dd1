"""workflow: the first case that holds decides; a refusal is a rule above the route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gateshift.translate.conditions import Condition, Inexpressible, from_vars
from gateshift.translate.model import Fidelity
from gateshift.translate.plugins.limits import limit_count
from gateshift.translate.plugins.registry import Use, handles, hold_unless_exact

_EXACT = (Fidelity.EXACT, "VirtualService http[].directResponse above the route")
_NEVER = (Fidelity.IGNORED_DEFAULT, "", "a rule above it takes every request")


@handles("workflow")
def workflow(use: Use) -> None:
    """Refuse or limit by cases; a limit can only stand last and without a case."""
    rules = list(use.config.get("rules") or ())
    if not rules:
        raise Inexpressible("no rules are given")
    for number, rule in enumerate(rules):
        conditions: list[Condition] = from_vars(rule["case"], use.ports()) if rule.get("case") else [{}]
        actions = list(rule.get("actions") or ())
        if len(actions) != 1:
            raise Inexpressible("a rule with several actions")
        name, options = str(actions[0][0]), actions[0][1] if len(actions[0]) > 1 else {}
        if name == "return":
            answer = {
                "directResponse": {
                    "status": int(options["code"]),
                    "body": {"string": '{"error_msg":"rejected by workflow"}\n'},
                }
            }
            use.guard(f"workflow-{number + 1}", conditions, answer)
        elif name == "limit-count" and conditions == [{}] and isinstance(options, Mapping):
            limit_count(replace(use, config=options, under=("rules", number, "actions", 0, 1)))
        else:
            raise Inexpressible(f"the action {name} under a condition would have to switch an Envoy filter")
        place = (*use.path, "rules", number)
        use.job.mark(use.owner, place, *_EXACT)
        if conditions == [{}]:
            break
    for later in range(number + 1, len(rules)):
        use.job.mark(use.owner, (*use.path, "rules", later), *_NEVER)
    hold_unless_exact(use)  # its actions refuse and limit, as security plugins do
