"""ONNX Runtime with CUDA graphs: one for each set of shapes, captured and replayed by one thread.

A graph is launched at once where the host else launches every kernel, so that small batches take
about half the time. What that asks for, and how it is met:

- A graph belongs to the thread that captured it. The engine has a thread of its own that opens
  sessions, runs them and lets them go; calls from any thread are handed over and waited for.
- A replay looks at nothing but memory: arrays are copied into inputs that stay where they are on
  the GPU, and answers out of such outputs.
- What a graph reads must stay. Between runs of different shapes kernels may free what they had (a
  row of ones for the biases of a batch, zeros in place of a bias), and ONNX Runtime does not know
  that a graph reads it still. So each set of shapes has a session of its own, which runs nothing
  else from its capture on. Each has its copy of the weights, so their number is bounded; shapes
  that come later run plainly, in a session without graphs.
- Nothing may be allocated during a capture: plain runs come first, since only the second one of a
  shape allocates as all later ones do. No other thread may allocate then: `capture_gate.py`.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from deploy.engines.base import Array, EngineSpec, Feeds, check_feeds
from deploy.engines.capture_gate import GATE
from deploy.engines.device import CUDA_NHWC
from deploy.engines.graph_plans import (
    UNCAPTURED,
    GraphPlan,
    bind_plainly,
    explain_no_graphs,
    explain_uncapturable,
    make_plan,
)
from deploy.engines.onnxruntime import (
    OnnxRuntimeEngine,
    make_options,
    map_ort_errors,
    open_session,
)
from deploy.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from deploy.engines.shape_sessions import Shapes, count_room
from export.errors import EngineError
from export.onnx.files import read_model

_PLAIN_RUNS = 2
_CAPTURE_RUNS = 3
"""The first captures, having run plainly itself; more of them cost no more than replays."""
_CLOSED = "The engine is closed; call it inside its with block."
_WITHOUT = "Open it without CUDA graphs, as cuda-nhwc."

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


class OnnxRuntimeGraphsEngine(OnnxRuntimeCudaEngine):
    """An InferenceSession whose runs are CUDA graphs; all of its layers are on the GPU.

    Calls may come from several threads; they run one after the other. The first call of a set of
    shapes captures, which takes several runs.

    Raises:
        EngineError: a layer is left to the CPU, the model has control flow, or outputs whose size
            depends on data; or ONNX Runtime is too old for that.
    """

    def __init__(self, spec: EngineSpec) -> None:
        obstacle = explain_no_graphs()
        if obstacle is not None:
            raise EngineError(f"{obstacle}.")
        self._spec = spec
        self._plans: dict[Shapes, GraphPlan] = {}
        self._plain: Any = None
        self._refusal: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deploy-cuda-graphs")
        with contextlib.ExitStack() as stack:
            stack.callback(self._thread.shutdown)
            self._hand_over(self._open, spec)
            stack.pop_all()

    def time_device(self, feeds: Feeds, calls: int) -> list[float]:
        """Seconds of each of `calls` replays on inputs and outputs that lie on the GPU.

        By the host's clock, as that of the engine without graphs.

        Raises:
            EngineError: the inputs do not fit, the backend fails, or the engine was closed.
        """
        if self._closed:
            raise EngineError("The engine is closed; use it inside its with block.")
        check_feeds(self.inputs, feeds)
        return self._hand_over(self._time_here, feeds, calls)

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        return self._hand_over(self._run_here, feeds)

    def _release(self) -> None:
        try:
            self._hand_over(self._let_go, _CLOSED)
        finally:
            self._thread.shutdown()

    def _hand_over(
        self, work: Callable[_P, _Result], *args: _P.args, **kwargs: _P.kwargs
    ) -> _Result:
        """Have the engine's thread do `work`; what that raises is raised here."""
        try:
            future = self._thread.submit(work, *args, **kwargs)
        except RuntimeError as error:  # the thread has ended between the caller's look and now
            raise EngineError(_CLOSED) from error
        return future.result()

    # What follows is done by the engine's thread alone.

    def _open(self, spec: EngineSpec) -> None:
        with GATE.together():
            OnnxRuntimeEngine.__init__(self, spec)
        graph = read_model(Path(spec.path), weights=False).graph
        self._room = count_room(graph)
        obstacle = explain_uncapturable(self._session, graph)
        if obstacle is not None:
            self._let_go(_CLOSED)
            raise EngineError(f"{spec.path}: {obstacle}. {_WITHOUT}")

    def _let_go(self, refusal: str) -> None:
        """Give back all that is on the GPU; later calls are answered with `refusal`."""
        self._refusal = self._refusal or refusal
        with GATE.together():
            self._plans.clear()
            self._session = self._plain = None

    def _run_here(self, feeds: Feeds) -> dict[str, Array]:
        plan = self._find_plan(feeds)
        with GATE.together(), map_ort_errors("failed on this input"):
            if plan is None:
                return self._run_plainly(self._open_plain(), feeds)
            plan.fill(feeds)
            plan.run()
            return plan.read()

    def _time_here(self, feeds: Feeds, calls: int) -> list[float]:
        plan = self._find_plan(feeds)
        with GATE.together(), map_ort_errors("failed on this input"):
            if plan is not None:
                plan.fill(feeds)
                return [self._time(plan.session, plan.binding, plan.options) for _ in range(calls)]
            session = self._open_plain()
            binding = bind_plainly(session, feeds, self._names, self._device)
            self._time(session, binding)  # memory is taken by it
            return [self._time(session, binding) for _ in range(calls)]

    def _find_plan(self, feeds: Feeds) -> GraphPlan | None:
        """That of these shapes; None where there are as many as there may be, or memory ends."""
        if self._refusal is not None:
            raise EngineError(self._refusal)
        shapes = tuple(feeds[spec.name].shape for spec in self.inputs)
        plan = self._plans.get(shapes)
        if plan is None and len(self._plans) < self._room:
            return self._capture(shapes, feeds)
        return plan

    def _capture(self, shapes: Shapes, feeds: Feeds) -> GraphPlan | None:
        """One graph more; others are kept out for the capture itself alone.

        To open a session takes as long as it took at first, and its plain runs choose algorithms.
        """
        with GATE.together():
            plan = self._prepare(feeds)
        if plan is None:
            return None
        with GATE.alone():
            failure = self._try_capture(plan)
            if failure is None:
                self._plans[shapes] = plan
                return plan
            # The stream of the session stays in its capture, and every allocation of the process
            # fails until it is gone. So nothing may hold it, not even the error that said so.
            del plan
            self._plans.clear()
            self._session = self._plain = None
        self._refusal = f"{failure}. The engine is of no more use. {_WITHOUT}"
        raise EngineError(self._refusal)

    def _prepare(self, feeds: Feeds) -> GraphPlan | None:
        """A session that has run these shapes plainly, with memory for a graph.

        None where the GPU has no room for one more; then there will be no more of them.
        """
        if self._session is not None:
            plan = self._fill(self._session, feeds)
            self._session = None  # it is that graph's from now on
            return plan
        if self._plain is not None:  # what the model refuses is not to open a session each time
            with map_ort_errors("failed on this input"):
                self._run_plainly(self._plain, feeds)
        with contextlib.suppress(EngineError):  # want of memory, as a rule: the first was opened
            return self._fill(open_session(self._spec, make_options(self._spec)), feeds)
        with map_ort_errors("failed on this input"):
            self._run_plainly(self._open_plain(), feeds)  # fails where the input is to blame
        self._room = len(self._plans)
        return None

    def _fill(self, session: Any, feeds: Feeds) -> GraphPlan:
        with map_ort_errors("failed on this input"):
            for _ in range(_PLAIN_RUNS):
                answers = self._run_plainly(session, feeds)
            return make_plan(session, feeds, answers, 1 + len(self._plans), self._device)

    def _try_capture(self, plan: GraphPlan) -> str | None:
        try:
            with map_ort_errors("cannot capture this model in a CUDA graph"):
                for _ in range(_CAPTURE_RUNS):
                    plan.run()
        except EngineError as error:
            return str(error).rstrip(". \n")
        return None

    def _open_plain(self) -> Any:
        """The session of shapes that have no graph; the first of them opens it.

        Where the GPU has no room for it, graphs are given up, the latest first: whatever shape
        comes is to be answered.
        """
        spec = replace(self._spec, variant=CUDA_NHWC)
        while self._plain is None:
            try:
                self._plain = open_session(spec, make_options(spec))
            except EngineError:
                if not self._plans:
                    raise
                self._plans.popitem()
                self._room = len(self._plans)
        return self._plain

    def _run_plainly(self, session: Any, feeds: Feeds) -> dict[str, Array]:
        binding = bind_plainly(session, feeds, self._names, self._device)
        session.run_with_iobinding(binding, UNCAPTURED)
        return dict(zip(self._names, binding.copy_outputs_to_cpu(), strict=True))
