"""From measurements of small models to a hardware profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from autocompress import api
from autocompress.cli import main
from autocompress.devices import DEVICES, Device, open_device
from autocompress.devices.agent.messages import Limits
from autocompress.devices.fake import FakeDevice
from autocompress.errors import InvalidInput, MeasurementError
from autocompress.formats.onnx_runtime import predictor
from autocompress.graph.view import Layer, LayerView
from autocompress.methods.quantization import Quantization
from autocompress.profile import HardwareProfile, Protocol, load_profile
from autocompress.profiling.benchmark import run_benchmark
from autocompress.profiling.findings import EVIDENCE, Finding, Findings, Saturation, Unmeasured
from autocompress.profiling.forms import FORMS, FormName, forms_of, rewritten
from autocompress.profiling.models import LAYERS, LayerName, specimen, staircase_specimen
from autocompress.profiling.saturation import find_saturation, largest_sums
from autocompress.profiling.staircase import COUNTS, Staircase
from autocompress.profiling.writing import profile_of, profile_yaml
from autocompress.serialization import from_json, to_json
from autocompress.space import Choice, Knob, MethodSpace
from tests.agents import running_agent

PAIRS = [(layer, form) for layer in LAYERS for form in forms_of(layer)]
QUICK = Protocol(warmup_runs=1, block_ms=1.0, min_cpu_s=0.01, max_cpu_s=0.02, interval=0.5)
BASE = HardwareProfile(
    name="base", channel_multiple=7, reduce_range=True, cpu='A "Processor": #1', memory_bytes=1 << 30
)


def stairs(step: int, *, power: float, seed: int = 0, noise: float = 0.03) -> Staircase:
    """A staircase of a machine that computes whole steps alone, with noise, and with what an inference takes anyway."""
    rng = np.random.default_rng(seed)
    work = {channels: (-(-channels // step) * step) ** power for channels in COUNTS}
    return Staircase(
        {channels: float((0.2 * 8**power + cost) * rng.normal(1, noise)) for channels, cost in work.items()}
    )


def findings(
    ratios: Mapping[tuple[LayerName, FormName], tuple[float, float]],
    *,
    step: int = 16,
    saturation: Saturation = Saturation(0.0),  # noqa: B008  frozen
    unmeasured: tuple[Unmeasured, ...] = (),
    size: float = 0.25,
) -> Findings:
    """Findings with these intervals, and of 0.9 to 1.1 for all other forms."""
    intervals = {pair: ratios.get(pair, (0.9, 1.1)) for pair in PAIRS}
    return Findings(
        machine="A Processor, a runtime 1.0",
        date="2026-11-27",
        seconds=60.0,
        fp32_ms=dict.fromkeys(LAYERS, 0.5),
        ratios=tuple(
            Finding(layer, form, (low + high) / 2, (low, high), size)
            for (layer, form), (low, high) in intervals.items()
        ),
        unmeasured=unmeasured,
        staircase=stairs(step, power=2.0, noise=0.0),
        saturation=saturation,
    )


# -- the staircase ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.5, 2.0])
@pytest.mark.parametrize("step", [1, 2, 4, 8, 16, 32])
def test_the_steps_of_a_noisy_staircase_are_found(step: int, power: float) -> None:
    for seed in range(20):
        assert stairs(step, power=power, seed=seed).multiple == step


def test_counts_that_cost_more_than_the_next_multiple_speak_for_it() -> None:
    slow = {channels: 1.0 if channels % 4 == 0 else 1.7 for channels in COUNTS}
    steps = stairs(16, power=2.0).latency_ms
    assert Staircase({channels: steps[channels] * slow[channels] for channels in COUNTS}).multiple == 16


def test_a_latency_that_channels_do_not_change_has_no_multiple() -> None:
    rng = np.random.default_rng(0)
    assert Staircase({channels: float(rng.normal(1, 0.03)) for channels in COUNTS}).multiple is None


def test_the_multiple_does_not_depend_on_the_speed_of_the_machine() -> None:
    staircase = stairs(8, power=2.0)
    slower = Staircase({channels: 1000 * latency for channels, latency in staircase.latency_ms.items()})
    assert slower.multiple == staircase.multiple == 8


# -- what is faster --------------------------------------------------------------------------------------------------


def test_a_precision_is_listed_only_if_its_whole_interval_is_below_one() -> None:
    found = findings({("conv", "int8"): (0.4, 0.6), ("attention", "int8"): (0.4, 1.01)})
    assert found.kernels["conv"] == ("int8",)
    assert found.kernels["attention"] == ()


def test_linear_layers_take_what_is_faster_with_one_row_or_with_many_but_blocks_for_one_row_alone() -> None:
    found = findings({("linear_rows", "int8"): (0.4, 0.6), ("linear_rows", "nbits_8"): (0.4, 0.6)})
    assert found.kernels["linear"] == ("int8",)
    found = findings({("linear", "dynamic_int8"): (0.4, 0.6), ("linear", "nbits_4"): (0.4, 0.6)})
    assert found.kernels["linear"] == ("dynamic_int8", "nbits")


def test_depthwise_convolutions_are_quantized_only_where_that_beats_leaving_them_float_among_others() -> None:
    for alone, listed in (((0.7, 0.8), ("int8",)), ((0.4, 0.5), ()), ((0.55, 0.65), ())):
        assert (
            findings({("depthwise", "int8"): (0.5, 0.6), ("depthwise", "int8_dense"): alone}).kernels["depthwise"]
            == listed
        )


def test_what_is_not_faster_counts_for_its_size_or_is_dropped() -> None:
    found = findings({("conv", "int8"): (1.1, 1.3)})
    assert found.kernels["conv"] == ()
    assert {one.verdict for one in found.ratios} == {"smaller"}
    assert {one.verdict for one in findings({}, size=1.0).ratios} == {"neither"}
    assert "1.20 (1.10-1.30), size 0.25; size alone" in profile_yaml(profile_of(BASE, found, "my"), found)
    assert "size 1.00; dropped" in profile_yaml(BASE, findings({}, size=1.0))


def test_signed_activations_are_slower_only_where_the_intervals_are_apart() -> None:
    u8 = {("conv", "int8"): (0.4, 0.5), ("linear", "int8"): (0.4, 0.5)}
    found = findings({**u8, ("conv", "int8_s8"): (0.6, 0.7), ("linear", "int8_s8"): (0.45, 0.7)})
    assert "conv" in found.slower_when_signed
    assert "linear" not in found.slower_when_signed


def test_all_that_can_be_listed_is_offered_by_quantization() -> None:
    layers = {
        "conv": Layer("conv", "conv", 1, 64, (8, 8, 3, 3)),
        "depthwise": Layer("depthwise", "conv", 1, 64, (8, 1, 3, 3), groups=8),
        "linear": Layer("linear", "linear", 1, 64 * 64, (64, 64)),
        "attention": Layer("attention", "attention", 1, 64),
    }
    profile = HardwareProfile("all", kernels={kind: tuple(known) for kind, known in EVIDENCE.items()})
    precisions = ("int8", "dynamic_int8", "nbits")
    asked: dict[str, Knob] = {}
    Quantization().propose(
        LayerView("original", tuple(layers.values()), ()),
        lambda name, knob: asked.setdefault(name, knob) and "fp32",
        MethodSpace({"precision": ("fp32", *precisions)}),
        profile,
    )
    for kind, known in EVIDENCE.items():
        assert asked[f"quantization/{kind}/precision"] == Choice(("fp32", *known))


# -- the profile -----------------------------------------------------------------------------------------------------


def test_a_profile_is_read_back_as_it_was_found(tmp_path: Path) -> None:
    failed = Unmeasured("conv", "fp16", "can't be loaded: no kernel for Conv(11): # not here")
    found = findings({("conv", "int8"): (0.4, 0.6)}, unmeasured=(failed,))
    profile = profile_of(BASE, found, "my")
    path = tmp_path / "my.yaml"
    path.write_text(profile_yaml(profile, found), encoding="utf-8")
    assert load_profile(str(path)) == profile
    assert (profile.channel_multiple, profile.reduce_range) == (16, False)
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120


def test_a_profile_of_boards_says_where_they_are(tmp_path: Path) -> None:
    addresses = ("https://board:8765", "https://[::1]:8765")
    base = dataclasses.replace(BASE, device="remote", addresses=addresses, certificate="/ca.pem", wait_s=60.0)
    profile, path = profile_of(base, findings({}), "my"), tmp_path / "my.yaml"
    path.write_text(profile_yaml(profile, findings({})), encoding="utf-8")
    assert load_profile(str(path)) == profile


def test_the_file_tells_every_ratio_with_its_interval_and_what_failed() -> None:
    failed = Unmeasured("conv", "fp16", "no kernel for Conv")
    found = findings({("linear", "int8"): (0.4, 0.6)}, unmeasured=(failed,))
    text = " ".join(profile_yaml(profile_of(BASE, found, "my"), found).replace("#", " ").split())
    for one in found.ratios:
        assert f"{FORMS[one.form]}: {one.latency_ratio:.2f} ({one.interval[0]:.2f}-{one.interval[1]:.2f})" in text
    assert f"{FORMS['fp16']}: can't be run here: no kernel for Conv" in text


def test_what_could_not_be_found_out_stays_as_it_was() -> None:
    flat = Staircase(dict.fromkeys(COUNTS, 1.0))
    found = dataclasses.replace(findings({}, saturation=Saturation(None, "no results")), staircase=flat)
    profile = profile_of(BASE, found, "my")
    assert (profile.channel_multiple, profile.reduce_range) == (BASE.channel_multiple, BASE.reduce_range)
    text = profile_yaml(profile, found)
    assert "Not found" in text
    assert "no results" in text


def test_missing_sums_ask_for_weights_of_seven_bits() -> None:
    found = findings({}, saturation=Saturation(0.45))
    assert profile_of(HardwareProfile("base"), found, "my").reduce_range
    assert "45 % are missing" in profile_yaml(BASE, found)


def test_findings_survive_json() -> None:
    found = findings({})
    assert from_json(Findings, to_json(found)) == found


# -- the models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "form"), PAIRS)
def test_every_form_computes_about_what_float_does(layer: LayerName, form: FormName) -> None:
    one = specimen(layer)
    model = rewritten(one, form)
    onnx.checker.check_model(model)
    inputs = (one.example.astype(np.float16 if form == "fp16" else np.float32),)
    exact, found = predictor(one.model)((one.example,)), predictor(model)(inputs)
    assert np.abs(found - exact).max() < (0.2 if form == "nbits_4" else 0.06) * np.abs(exact).max()


def test_specimens_are_the_same_every_time_and_rewriting_leaves_them() -> None:
    for layer in LAYERS:
        one = specimen(layer)
        before = one.model.SerializeToString()
        rewritten(one, "int8")
        assert one.model.SerializeToString() == before == specimen(layer).model.SerializeToString()
    assert len(staircase_specimen(9).model.graph.initializer) == 8


def test_the_largest_sums_are_those_of_the_largest_integers() -> None:
    model = rewritten(largest_sums(specimen("linear")), "int8")
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    weights = [array for array in arrays if array.dtype == np.int8 and array.ndim == 2]
    assert len(weights) == 2
    assert {int(array.max()) for array in weights} == {127}
    assert min(int(array.min()) for array in weights) == 126


@pytest.mark.parametrize("name", ["local", "fake"])
def test_half_of_the_largest_sums_is_missing_at_most(name: str, tmp_path: Path) -> None:
    found = find_saturation(open_device(HardwareProfile(name, device=name)), tmp_path).found
    assert found is not None
    assert found < 0.6  # half is missing where every pair saturates


def test_sums_are_compared_on_a_machine_elsewhere(tmp_path: Path) -> None:
    with running_agent(tmp_path / "agent", limits=Limits()) as agent:
        there = open_device(HardwareProfile("there", device="remote", addresses=(agent.address,)))
        found = find_saturation(there, tmp_path)
        assert agent.said.count(" run ") == 6, "three kinds of layers, in float and in integers"
    here = find_saturation(open_device(HardwareProfile("here")), tmp_path)
    assert found.found == pytest.approx(here.found, abs=1e-6)


def test_sums_that_lose_half_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = FakeDevice.run

    def halving(self: Device, artifact, inputs, **options):  # type: ignore[no-untyped-def]
        (outputs,) = run(self, artifact, inputs, **options)
        return (outputs / 2 if "int8" in artifact.path else outputs,)

    monkeypatch.setattr(FakeDevice, "run", halving)
    found = find_saturation(open_device(HardwareProfile("fake", device="fake")), tmp_path)
    assert found.found == pytest.approx(0.5, abs=0.05)
    assert found.needs_reduced_range


def test_a_runtime_that_can_not_tell_of_saturation_does_not_end_the_benchmark(tmp_path: Path) -> None:
    odd = HardwareProfile("odd", provider="NoSuchExecutionProvider")
    found = find_saturation(open_device(odd), tmp_path)
    assert found.needs_reduced_range is None
    assert "NoSuchExecutionProvider" in found.reason


# -- the benchmark ---------------------------------------------------------------------------------------------------


def test_a_form_that_a_machine_can_not_run_is_named_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure = DEVICES["fake"].measure

    def picky(self: Device, artifacts, reference, **options):  # type: ignore[no-untyped-def]
        for one in artifacts:
            if "conv-dynamic" in one.path:
                raise MeasurementError(f"{one.path}: can't be loaded: no kernel for ConvInteger")
        return measure(self, artifacts, reference, **options)

    monkeypatch.setattr(DEVICES["fake"], "measure", picky)
    found = run_benchmark(HardwareProfile("fake", device="fake"), observe=lambda line: None)
    assert found.unmeasured == (
        Unmeasured("conv", "dynamic_int8", "dynamic int8: can't be loaded: no kernel for ConvInteger"),
    )
    assert {(one.layer, one.form) for one in found.ratios} == set(PAIRS) - {("conv", "dynamic_int8")}


def test_the_fake_machine_is_profiled_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "my.yaml"
    command = ["device", "profile", "--hardware", "fake", "--threads", "2", "--output", str(output)]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("[1/7] ")
    assert f"autocompress search task.py --hardware {output}" in captured.out
    profile = load_profile(str(output))
    assert (profile.name, profile.device, profile.threads, profile.channel_multiple) == ("my", "fake", 2, 1)
    assert profile.fast("conv") == ("int8",)
    assert profile.fast("linear") == ("int8", "dynamic_int8", "nbits")
    written = output.read_bytes()
    assert main(command) == 2
    assert "exists already; give another file" in capsys.readouterr().err
    assert output.read_bytes() == written
    assert main([*command, "--force"]) == 0


@pytest.mark.parametrize(
    ("output", "message"), [("my.json", r"ends in \.yaml"), ("nowhere/my.yaml", "folder .*nowhere does not exist")]
)
def test_a_file_that_can_not_be_used_is_refused_before_anything_is_measured(
    tmp_path: Path, output: str, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        api.profile_device("fake", output=tmp_path / output, observe=pytest.fail)


def test_threads_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for threads in (0, 100_000):
        with pytest.raises(InvalidInput, match=f"threads {threads}"):
            api.profile_device("local", output=tmp_path / "my.yaml", threads=threads)
