"""From a plan to a record: what a search shares, how models are made, recovered and measured, and trials of it all."""

from autocompress.pipeline.measuring import remeasure, score_test
from autocompress.pipeline.models import build, build_architecture, finish, lower, settle, survey_architectures
from autocompress.pipeline.on_device import score_on_device
from autocompress.pipeline.probing import run_probe
from autocompress.pipeline.trials import apply_plan, is_screened, run_baseline, run_trial, train
from autocompress.pipeline.workbench import Trained, Workbench

__all__ = [
    "Trained",
    "Workbench",
    "apply_plan",
    "build",
    "build_architecture",
    "finish",
    "is_screened",
    "lower",
    "remeasure",
    "run_baseline",
    "run_probe",
    "run_trial",
    "score_on_device",
    "score_test",
    "settle",
    "survey_architectures",
    "train",
]
