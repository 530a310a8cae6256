from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from flawmap.detectors.trained import training
from flawmap.detectors.trained.training import Schedule, Shuffle, TrainingRecord, train
from flawmap.errors import ParameterError, TrainingError
from flawmap.progress import report_progress

CPU = torch.device("cpu")


class Line:
    """Learns y = 2 x + 1 with a batch-normalised network, slowly if asked to."""

    def __init__(self, *, width: int = 8, bad_step: int | None = None, pause: float = 0.0) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1))
        self.optimizers = (torch.optim.Adam(self.network.parameters(), lr=0.01),)
        self.bad_step, self.pause, self.steps = bad_step, pause, []

    def step(self, number, mixed):
        self.steps.append(number)
        time.sleep(self.pause)
        x = torch.from_numpy(training.random_numbers(0, number).normal(size=(16, 1)).astype(np.float32))
        x += 0.1 * torch.randn(x.shape, generator=training.torch_numbers(0, number))
        with mixed():
            loss = (self.network(x) - 2 * x - 1).square().mean()
        if number == self.bad_step:
            loss = loss * math.nan
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()
        return loss.detach()


def run(line, epochs=4, **options):
    schedule = {name: options.pop(name) for name in ("minutes", "steps", "patience") if name in options}
    return train(line, Schedule(epochs, 10, **schedule), device=CPU, **options)


def weights(line):
    return {name: value.clone() for name, value in line.network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_training_learns_and_says_what_it_did():
    line = Line()
    record = run(line, 30)
    assert record.losses[-1] < 0.2 * record.losses[0]
    assert (record.steps, len(record.losses), record.pending, record.stopped) == (300, 30, [], "schedule")
    assert record.final_loss == record.losses[-1]
    assert not line.network.training


@pytest.mark.parametrize("stop", [3, 10, 25])
def test_a_training_goes_on_from_its_checkpoint_as_if_nothing_had_happened(tmp_path, stop):
    whole = Line()
    losses = run(whole, 4).losses
    run(Line(), 4, steps=stop, checkpoint=tmp_path / "c")
    again = Line(width=8)
    nn.init.zeros_(again.network[0].weight)
    record = run(again, 4, checkpoint=tmp_path / "c")
    assert again.steps[0] == stop
    assert record.losses == losses
    assert same(weights(again), weights(whole))
    assert run(Line(), 4, checkpoint=tmp_path / "c").steps == 40  # nothing is left to be done


SLOW = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from test_training import Line, run
line = Line(pause=0.01)
print("ready", flush=True)
run(line, 8, checkpoint=Path({path!r}))
"""


def test_a_killed_training_gives_the_same_weights_as_one_that_was_not(tmp_path):
    path = tmp_path / "c"
    script = SLOW.format(tests=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    whole, again = Line(), Line()
    expected = run(whole, 8)
    record = run(again, 8, checkpoint=path)
    assert 0 < again.steps[0] < 80
    assert record.losses == expected.losses
    assert same(weights(again), weights(whole))


def test_a_loss_that_is_no_number_stops_and_the_last_good_checkpoint_stays(tmp_path):
    good = Line()
    run(good, 2)
    line = Line(bad_step=23)
    with pytest.raises(TrainingError, match=rf"at step 24: .*no longer finite.*is kept: {tmp_path / 'c'}"):
        run(line, 4, checkpoint=tmp_path / "c")
    saved = load_file(tmp_path / "c")
    assert all(torch.equal(saved[f"network/{name}"], value) for name, value in weights(good).items())
    with pytest.raises(TrainingError, match=r"no longer finite\. Look"):
        run(Line(bad_step=0))


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    class Broken(Line):
        def step(self, number, mixed):
            loss = super().step(number, mixed)
            if number == 19:
                self.network[0].weight.data.fill_(math.inf)
            return loss

    with pytest.raises(TrainingError, match=r"step 20: .*checkpoint before it is kept"):
        run(Broken(), 4, checkpoint=tmp_path / "c")
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "c").values())
    with pytest.raises(TrainingError, match="step 20"):
        run(Broken(), 2)


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path):
    path = tmp_path / "c"
    run(Line(), 1, checkpoint=path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"step 20 cannot be written .*The one before is whole; make room"):
            run(Line(), 4, checkpoint=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_checkpoints_of_other_trainings_are_refused(tmp_path):
    path = tmp_path / "c"
    run(Line(), 1, checkpoint=path, settings={"detector": "a", "seed": 1})
    with pytest.raises(TrainingError, match=r"another training \(seed: 1 there, 2 here\); delete it"):
        run(Line(), 1, checkpoint=path, settings={"detector": "a", "seed": 2})
    with pytest.raises(TrainingError, match="weights of another network"):
        run(Line(width=9), 1, checkpoint=path, settings={"detector": "a", "seed": 1})
    whole = path.read_bytes()
    for content in (b"", b"{}", whole[:100], whole[: len(whole) // 2], b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="no whole checkpoint"):
            run(Line(), 1, checkpoint=path)


def test_checkpoints_that_contradict_themselves_are_refused(tmp_path):
    path = tmp_path / "c"
    run(Line(), 2, checkpoint=path)
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["training"])
    tensors = load_file(path)

    def resume(changes, dropped=None, epochs=4, **values):
        record = {**document["record"], **changes}
        kept = {name: value for name, value in {**tensors, **values}.items() if name != dropped}
        save_file(kept, path, {"training": json.dumps({**document, "record": record, "version": 1})})
        return run(Line(), epochs, checkpoint=path)

    for changes in (
        {"steps": -1},
        {"steps": 21},
        {"losses": [1.0]},
        {"seconds": math.nan},
        {"losses": "ab"},
        {"steps": "20"},
    ):
        with pytest.raises(TrainingError, match="no whole checkpoint of a training; name another file"):
            resume(changes)
    with pytest.raises(TrainingError, match="step 20, beyond the 10"):
        resume({}, epochs=1)
    with pytest.raises(TrainingError, match="what its optimisers need"):
        resume({}, dropped="optimizer0/0/exp_avg")
    with pytest.raises(TrainingError, match="what its optimisers need"):
        resume({}, **{"optimizer0/0/exp_avg": torch.zeros(3)})
    with pytest.raises(TrainingError, match="not finite"):
        resume({}, **{"optimizer0/0/exp_avg": torch.full_like(tensors["optimizer0/0/exp_avg"], torch.nan)})
    with pytest.raises(TrainingError, match="another network"):
        resume({}, **{"network/0.weight": tensors["network/0.weight"].double()})
    assert resume({}).steps == 40


def test_a_budget_ends_a_training_and_the_same_steps_repeat_it(tmp_path):
    line = Line(pause=0.002)
    told = []
    report = partial(report_progress, lambda done, total: told.append((done, total)))
    record = run(line, 1000, minutes=0.3 / 60, report=report)
    assert record.stopped == "budget"
    assert 0 < record.steps < 10_000
    assert all(total == 1 for _, total in told)  # seconds
    again = Line()
    assert run(again, 1000, steps=record.steps).steps == record.steps
    assert same(weights(again), weights(line))
    run(Line(pause=0.002), 1000, minutes=0.1 / 60, checkpoint=tmp_path / "c")
    assert run(Line(), 1000, minutes=0.1 / 60, checkpoint=tmp_path / "c").stopped == "budget"  # time is not given twice


def test_a_loss_that_falls_no_more_ends_the_training():
    class Flat(Line):
        def step(self, number, mixed):
            super().step(number, mixed)
            return torch.tensor(1.0 if number < 20 else 0.5)

    record = run(Flat(), 100, patience=3)
    assert (record.stopped, len(record.losses)) == ("plateau", 6)  # two, then the best, then three that are no better


def test_long_epochs_are_saved_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    line = Line(bad_step=5)
    with pytest.raises(TrainingError):
        run(line, 1, checkpoint=tmp_path / "c")
    again = Line()
    run(again, 1, checkpoint=tmp_path / "c")
    assert again.steps[0] == 5


def test_mixed_precision_computes_in_16_bits():
    line = Line()
    seen = []
    line.network[0].register_forward_hook(lambda _module, _given, made: seen.append(made.dtype))
    run(line, 1, precision="bfloat16")
    run(line, 1)
    assert seen == [torch.bfloat16] * 10 + [torch.float32] * 10


def test_images_come_in_shuffled_passes():
    shuffle = Shuffle(5, 0)
    drawn = [number for step in range(10) for number in shuffle.batch(step, 3)]
    for start in range(0, 30, 5):
        assert sorted(drawn[start : start + 5]) == [0, 1, 2, 3, 4]
    assert drawn[:5] != drawn[5:10]
    assert Shuffle(5, 0).batch(7, 3) == drawn[21:24]
    assert len(Shuffle(2, 0).batch(0, 8)) == 8  # a batch larger than the set


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"epoch_steps": 0},
        {"minutes": 0},
        {"minutes": math.nan},
        {"minutes": 1e9},
        {"minutes": "5"},
        {"steps": 0},
        {"patience": 1.5},
    ],
)
def test_impossible_schedules_are_refused(values):
    with pytest.raises(ParameterError):
        Schedule(**{"epochs": 1, "epoch_steps": 1} | values)


def test_a_record_knows_its_loss_before_the_first_epoch_is_over():
    record = TrainingRecord()
    record.add(2.0, 10)
    record.add(4.0, 10)
    assert record.final_loss == 3
