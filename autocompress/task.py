"""A task: a trained model, its data and the one metric that torch and ONNX models are scored with."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from autocompress.data import Array, Split, as_array, as_split, batch_size_of, head, spread
from autocompress.errors import AutocompressError, InvalidInput, TaskFailed, UnknownName, did_you_mean
from autocompress.objective import MEASURED, Direction
from autocompress.plan import Scalar
from autocompress.serialization import dumps
from autocompress.student import Student
from autocompress.user_code import failed, user_code

if TYPE_CHECKING:
    from torch import Tensor, nn

Predict = Callable[[tuple[Array, ...]], Array]
"""A model as scored: a tuple of input arrays (samples, …) to one output array (samples, …)."""

FOLDS, LEAST_IN_FOLD = 16, 8
"""Parts of validation data that are scored by themselves, and the samples that each has to have."""

SplitName = Literal["train", "calibration", "validation", "test"]
T = TypeVar("T")


@dataclass(frozen=True)
class Metric:
    """One number that says how good a model is.

    Args:
        name: For tables and files.
        function: (outputs, targets), both arrays over all samples of the split, to a number.
        direction: Whether more or less is better.
        is_percentage: True if the number is a share in [0, 1], shown as a percentage.
    """

    name: str
    function: Callable[[Array, Array], float]
    direction: Direction = "maximize"
    is_percentage: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in _MEASURED:
            raise InvalidInput(
                f"metric {self.name!r}: expected a name of letters, digits and _ that is not measured "
                f"({', '.join(_MEASURED)}), such as top1_accuracy"
            )
        if self.direction not in get_args(Direction):
            raise InvalidInput(f"metric {self.name!r}: direction {self.direction!r}; expected maximize or minimize")
        if not callable(self.function):
            raise InvalidInput(
                f"metric {self.name!r}: its function is {type(self.function).__name__}; expected a function of "
                "outputs and targets"
            )


def accuracy(outputs: Array, targets: Array) -> float:
    """Share of targets that are the class with the largest output, in [0, 1].

    Args:
        outputs: (samples, classes, …).
        targets: Whole numbers (samples, …); an axis of length 1 more does not matter.
    """
    classes = outputs.argmax(axis=1)
    if classes.size != targets.size:
        raise InvalidInput(
            f"accuracy: outputs {outputs.shape} and targets {targets.shape}: expected outputs (samples, classes, …) "
            "and one whole number for each target; give a Metric of your own for other shapes"
        )
    return float((classes == targets.reshape(classes.shape)).mean())


def mean_squared_error(outputs: Array, targets: Array) -> float:
    """Mean squared difference of outputs and targets."""
    return float(np.square(outputs.reshape(targets.shape) - targets).mean())


_MEASURED = (*(objective.name for objective in MEASURED), "latency_ratio", "size_ratio")

METRICS = {
    "accuracy": Metric("accuracy", accuracy, "maximize", is_percentage=True),
    "mse": Metric("mse", mean_squared_error, "minimize"),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be compressed.

    Args:
        name: For files and tables.
        model: A trained `nn.Module`, or a function without arguments that returns one; it is called once in each
            process, and has to give the same weights every time. Its `forward` takes the inputs in order and returns
            one tensor (samples, …).
        train: Data for recovery; see `autocompress.data.as_split` for what may be given.
        validation: Data that the search scores on; never trained on.
        test: Data that only the finished front is scored on; without it the front has no test scores.
        calibration: Inputs for the ranges of activations; by default 256 samples of `train`.
        metric: "accuracy", "mse" or a `Metric`.
        loss: (outputs, targets) of tensors to a scalar tensor; by default cross-entropy for whole-number targets and
            mean squared error for others.
        students: Name to a function that returns an untrained smaller model with the same inputs and outputs, or to a
            `Student`, whose function takes what may vary as keyword arguments.
        features: Layers whose outputs are matched where the recovery asks for it: names that model and students share,
            or name in the student to name in the model. By default, and for architectures with none of these layers,
            the parts that both have directly below the whole, such as the stages of a residual network.
        example_inputs: One input of the deployed model, arrays (1, …); by default the first validation sample.
        batch_size: Samples in a training step, for data given as arrays.

    Raises:
        InvalidInput: If a split is empty or malformed, or the metric is none of the known.
    """

    name: str
    model: nn.Module | Callable[[], nn.Module]
    train: Any
    validation: Any
    test: Any = None
    calibration: Any = None
    metric: str | Metric = "accuracy"
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    students: Mapping[str, Student | Callable[[], nn.Module]] = field(default_factory=dict)
    features: Mapping[str, str] | tuple[str, ...] = ()
    example_inputs: tuple[Array, ...] = ()
    batch_size: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise UnknownName("metric", self.metric, METRICS)
        if not isinstance(self.metric, str | Metric):
            raise InvalidInput(
                f"task {self.name!r}: metric is {type(self.metric).__name__}; expected one of {', '.join(METRICS)}, or "
                'Metric("name", function)'
            )
        if not hasattr(self.model, "state_dict") and not callable(self.model):
            raise InvalidInput(
                f"task {self.name!r}: model is {type(self.model).__name__}; expected an nn.Module or a function that "
                "returns one"
            )
        if self.batch_size < 1:
            raise InvalidInput(f"task {self.name!r}: batch_size {self.batch_size}; expected at least 1")
        for name in self.students:
            taken = name in ("original", "architecture") or name.startswith(("width_", "depth_"))
            if taken or not name.isidentifier():
                raise InvalidInput(
                    f"task {self.name!r}: a student can't be called {name!r}; choose another name of letters, digits "
                    "and _"
                )

    def split(self, name: SplitName) -> Split:
        """One of the splits.

        Raises:
            InvalidInput: If it is malformed, empty or not given.
        """
        return self._splits[name]() if name in self._splits else self._missing(name)

    @cached_property
    def _splits(self) -> dict[str, Callable[[], Split]]:
        made: dict[str, Split] = {}

        def lazily(name: str, source: Any) -> Callable[[], Split]:
            def get() -> Split:
                if name not in made:
                    made[name] = as_split(source, name)
                return made[name]

            return get

        given = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
            "calibration": self.calibration,
        }
        splits = {name: lazily(name, source) for name, source in given.items() if source is not None}
        if "calibration" not in splits:
            splits["calibration"] = lambda: (
                made.get("calibration") or made.setdefault("calibration", spread(splits["train"](), 256))
            )
        return splits

    def _missing(self, name: str) -> Split:
        raise InvalidInput(f"task {self.name!r} has no {name} data; give Task(..., {name}=...)")

    @property
    def has_test(self) -> bool:
        """True if a test split was given."""
        return self.test is not None

    @property
    def the_metric(self) -> Metric:
        """The metric, looked up by name where a name was given."""
        return METRICS[self.metric] if isinstance(self.metric, str) else self.metric

    @cached_property
    def examples(self) -> tuple[Array, ...]:
        """Inputs of one inference as deployed, arrays (batch, …)."""
        given: Any = self.example_inputs
        if isinstance(given, tuple | list) and not given:
            return head(self.split("validation"), 1).samples.inputs
        return tuple(as_array(part) for part in (given if isinstance(given, tuple | list) else (given,)))

    def build_model(self) -> nn.Module:
        """A fresh copy of the trained model, in evaluation mode.

        Raises:
            TaskFailed: If the user's function raises.
            InvalidInput: If it returns something else than a module.
        """
        return copy.deepcopy(self._built)

    @cached_property
    def _built(self) -> nn.Module:
        """The trained model, which nobody may change."""
        source: Any = self.model
        is_module = hasattr(source, "state_dict") and not isinstance(source, type)
        module = source if is_module else user_code(source, f"building the model of task {self.name!r}")
        return self._module(copy.deepcopy(module) if is_module else module, "model")

    @cached_property
    def weights_digest(self) -> str:
        """Digest of the trained model's weights."""
        weights = hashlib.sha256()
        for name, tensor in self._built.state_dict().items():
            array = tensor.detach().cpu().numpy()
            weights.update(f"{name}{array.shape}".encode())
            weights.update(np.ascontiguousarray(array).tobytes())
        return weights.hexdigest()[:16]

    def require_weights(self, digest: str) -> None:
        """Refuse a model with other weights than another process has.

        Raises:
            InvalidInput: If the user's function gave others.
        """
        if self.weights_digest != digest:
            raise InvalidInput(
                f"the model of task {self.name!r} has other weights each time that its function is called; load them "
                "from a file, or train with a fixed seed"
            )

    @cached_property
    def _students(self) -> dict[str, dict[str, tuple[Student, dict[str, Scalar]]]]:
        """Name of a student to its architectures, each with the function and what to give it."""
        given = {name: one if isinstance(one, Student) else Student(one) for name, one in self.students.items()}
        return {
            name: {variant: (student, answers) for variant, answers in student.variants(name).items()}
            for name, student in given.items()
        }

    @property
    def student_variants(self) -> dict[str, tuple[str, ...]]:
        """Name of each student to its architectures, the first few of which are spread evenly over its ranges."""
        return {name: tuple(variants) for name, variants in self._students.items()}

    def build_student(self, name: str) -> nn.Module:
        """A fresh, untrained student by the name of its architecture.

        Raises:
            UnknownName: If the task's students give no such architecture.
        """
        known = {variant: made for variants in self._students.values() for variant, made in variants.items()}
        if name not in known:
            raise UnknownName("architecture", name, ["original", *known])
        student, answers = known[name]
        return self._module(
            user_code(lambda: student.build(**answers), f"building the student {name!r}"), f"student {name!r}"
        )

    @cached_property
    def feature_pairs(self) -> dict[str, str]:
        """Layer of the student to the layer of the model whose output it is to match."""
        return dict(self.features) if isinstance(self.features, Mapping) else {name: name for name in self.features}

    def _module(self, module: Any, what: str) -> nn.Module:
        if not hasattr(module, "state_dict"):
            raise InvalidInput(
                f"task {self.name!r}: the function for the {what} returned {type(module).__name__}; expected an "
                "nn.Module"
            )
        result: nn.Module = module.cpu().eval()
        return result

    def score(self, predict: Predict, split: SplitName = "validation", *, batch_size: int | None = None) -> float:
        """The metric of a model on a split; the same function for torch and ONNX models.

        Args:
            predict: The model.
            split: Which data.
            batch_size: Samples a call; by default those of one deployed inference.

        Raises:
            InvalidInput: If the metric is not a finite number.
            TaskFailed: If the user's own metric raises.
        """
        return self.evaluate(*self.outputs(predict, split, batch_size=batch_size), split)

    def outputs(
        self, predict: Predict, split: SplitName = "validation", *, batch_size: int | None = None
    ) -> tuple[Array, Array]:
        """What a model says to a split (samples, …), and the targets.

        Args:
            predict, split, batch_size: As in `score`.
        """
        outputs, targets = [], []
        for batch in self.split(split).batches(batch_size or batch_size_of(self.examples)):
            outputs.append(predict(batch.inputs))
            targets.append(batch.targets)
        return np.concatenate(outputs), np.concatenate(targets)

    def fold_scores(self, outputs: Array, targets: Array) -> tuple[float, ...]:
        """The metric on parts of a split, each every sixteenth sample; they say how far the whole is exact.

        Args:
            outputs, targets: Of the whole (samples, …).

        Returns:
            Nothing where the metric can't be taken of a part, as of one with a class alone.
        """
        if len(outputs) < FOLDS * LEAST_IN_FOLD or len(outputs) != len(targets):
            return ()
        try:
            return tuple(self.evaluate(outputs[k::FOLDS], targets[k::FOLDS], "a part of the") for k in range(FOLDS))
        except (InvalidInput, TaskFailed):
            return ()

    def evaluate(self, outputs: Array, targets: Array, split: str) -> float:
        """The metric of outputs (samples, …) against targets.

        Raises:
            InvalidInput: If it is not a finite number.
        """
        metric = self.the_metric
        value = user_code(lambda: float(metric.function(outputs, targets)), f"computing the metric {metric.name!r}")
        if not math.isfinite(value):
            raise InvalidInput(
                f"the metric {metric.name!r} on {split} data is {value}; expected a finite number. Look for NaN in the "
                "data, the model's outputs or the metric itself"
            )
        return value

    def fingerprint(self) -> dict[str, str]:
        """Digests of model, data, students and metric; a run directory of another task is recognized by them.

        Of functions (loss, metric, the students' builders) only names and ranges are seen, not what they do.
        """
        names: tuple[SplitName, ...] = ("train", "validation", "test") if self.has_test else ("train", "validation")
        prints = {f"{name} data": self.split(name).fingerprint() for name in names}
        return {
            "model": self.weights_digest,
            **prints,
            "metric": self.the_metric.name,
            "loss": getattr(self.loss, "__qualname__", type(self.loss).__name__),
            "students": _short_digest(dumps([sorted(variants) for _, variants in sorted(self._students.items())])),
            "features": _short_digest(dumps(sorted(self.feature_pairs.items()))),
            "example inputs": ", ".join(f"{array.dtype} {array.shape}" for array in self.examples),
        }


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_task(reference: str) -> Task:
    """The task behind `file.py`, `file.py:name`, `package.module` or `package.module:name`.

    The name may be a `Task` or a function without arguments that returns one. Without a name it is `task`, or the
    only `Task` of the module.

    Raises:
        InvalidInput: If there is no such file, module or name, or it is no task.
        TaskFailed: If the user's code raises; holds their traceback.
    """
    place, _, name = reference.partition(":") if not _is_drive(reference) else (reference, "", "")
    module = _import(place, reference)
    found = _find(module, name, reference)
    task = user_code(found, f"calling {name or 'task'}() of {place}") if not isinstance(found, Task) else found
    if not isinstance(task, Task):
        raise InvalidInput(f"{reference}: {name or 'task'}() returned {type(task).__name__}; expected a Task")
    return task


def _import(place: str, reference: str) -> Any:
    if place.endswith(".py"):
        return _import_file(_file(place, reference))
    is_folder = Path(place).is_dir() and not (Path(place) / "__init__.py").is_file()
    if place.endswith((".onnx", ".pt", ".pth", ".keras", ".h5")) or "/" in place or is_folder:
        raise InvalidInput(
            f"task {reference!r}: expected a Python file (task.py or task.py:name) that defines an autocompress.Task "
            "with the model, its data and metric"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        missing = importlib.util.find_spec(place) is None
    except (ModuleNotFoundError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and not place.startswith(str(error.name)):
            raise failed(f"importing {place}", error) from error  # a package above it exists and misses another one
        missing = True
    except (Exception, SystemExit) as error:
        raise failed(f"importing {place}", error) from error
    if missing:
        raise InvalidInput(
            f"task {reference!r}: no module {place!r} can be imported and it is no .py file; give file.py, "
            "file.py:name or package.module:name"
        )
    return user_code(lambda: importlib.import_module(place), f"importing {place}")


def _file(place: str, reference: str) -> Path:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InvalidInput(f"task {reference!r}: {what}: {path}; give a Python file that defines an autocompress.Task")
    return path


def _import_file(path: Path) -> Any:
    """Import a file under a name of its own, with its folder on the path, as `python file.py` has it."""
    name = f"autocompress_task_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"no loader for {path}"
    assert spec.loader is not None, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    loader = spec.loader
    try:
        user_code(lambda: loader.exec_module(module), f"importing {path}")
    except AutocompressError:
        del sys.modules[name]
        raise
    return module


def _find(module: Any, name: str, reference: str) -> Any:
    if name:
        if not hasattr(module, name):
            public = [key for key in vars(module) if not key.startswith("_")]
            raise InvalidInput(f"task {reference!r}: no name {name!r} in it; {did_you_mean(name, public)}")
        found = getattr(module, name)
    elif hasattr(module, "task"):
        found = module.task
    else:
        tasks = [value for value in vars(module).values() if isinstance(value, Task)]
        if len(tasks) != 1:
            raise InvalidInput(
                f"task {reference!r}: expected a name `task` or exactly one Task in it, found {len(tasks)}; define "
                "`task = autocompress.Task(...)` or say which: file.py:name"
            )
        found = tasks[0]
    if not isinstance(found, Task) and not callable(found):
        raise InvalidInput(
            f"task {reference!r}: {name or 'task'} is {type(found).__name__}; expected a Task or a function that "
            "returns one"
        )
    return found


def _is_drive(reference: str) -> bool:
    """True for `C:\\task.py`, whose colon belongs to the path."""
    return len(reference) > 1 and reference[1] == ":" and reference[0].isalpha() and reference.count(":") == 1
