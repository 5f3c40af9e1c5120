"""The state machines of the suite, run with more steps and examples than `make test` gives them."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.edge.core.test_model import EdgeModel
from tests.edge.core.test_rollup_model import RollupModel
from tests.router.core.agents.test_agent_queue_machine import DeliveriesMachine
from tests.router.core.replies.test_replies_machine import RepliesMachine
from tests.router.core.test_machine import CoreMachine
from tests.router.log.engines import ENGINES
from tests.router.log.test_model import BOUNDS, LogMachine
from tests.wired_cores import test_machine as wired_cores

#: Steps of an example; `make test` gives 25 to 60.
MIN_STEPS, MAX_STEPS = 40, 120
#: Examples of one seed: few, so that progress is reported often and a failure is found again soon.
EXAMPLES = 20


def run_machine(machine: type[RuleBasedStateMachine], number: int) -> None:
    """Run the examples of one seed. Raises what a failed example raises, with its steps as notes."""
    seeded = seed(number)(type(machine.__name__, (machine,), {}))
    run_state_machine_as_test(seeded, settings=_settings(number))


def run_log(number: int) -> None:
    """Run a log: the seed chooses the engine, and how much work it does at once."""
    chosen = random.Random(number)
    engine, bound = chosen.choice(list(ENGINES)), chosen.choice([None, 2, 3])
    with ExitStack() as stack:
        for module, name in BOUNDS if bound else ():
            stack.enter_context(patch.object(module, name, bound))
        run_machine(type("LogMachine", (LogMachine,), {"engine": engine}), number)


def run_wired_cores(number: int) -> None:
    """Run edges' cores wired to a router's."""
    steps = _settings(number).stateful_step_count
    performed = st.lists(wired_cores.operations, min_size=steps, max_size=4 * steps)

    @seed(number)
    @_settings(number)
    @given(knows_heads=st.booleans(), performed=performed)
    def run(knows_heads: bool, performed: list[tuple[str, int, str]]) -> None:
        wired_cores.run(knows_heads, performed)

    run()


#: Each runs the examples of one seed.
MACHINES: dict[str, Callable[[int], None]] = {
    "edge": partial(run_machine, EdgeModel),
    "rollup": partial(run_machine, RollupModel),
    "router": partial(run_machine, CoreMachine),
    "replies": partial(run_machine, RepliesMachine),
    "deliveries": partial(run_machine, DeliveriesMachine),
    "log": run_log,
    "wired": run_wired_cores,
}


def _settings(number: int) -> settings:
    return settings(
        max_examples=EXAMPLES,
        stateful_step_count=random.Random(number).randint(MIN_STEPS, MAX_STEPS),
        phases=(Phase.generate, Phase.shrink),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
