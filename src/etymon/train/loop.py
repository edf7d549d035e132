"""The one training loop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import save_file

from etymon.config import Config
from etymon.data import Examples, Loader
from etymon.errors import CheckpointError, ConfigError, TrainingError
from etymon.files import atomic_directory, write_json
from etymon.nn import Dropout, Model, flops_per_token, set_dropout
from etymon.nn.moe import settle
from etymon.objectives import Collated, Objective
from etymon.objectives.objective import Companion
from etymon.spec import ModelSpec
from etymon.text import Tokenizer
from etymon.train.average import Averaged
from etymon.train.checkpoint import (
    Position,
    RunRecord,
    Trainer,
    differences,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    remove_leftovers,
    weights,
    weights_of,
    write_checkpoint,
    write_model,
)
from etymon.train.config import FREE, TrainConfig
from etymon.train.hardware import (
    DTYPES,
    Precision,
    bf16_pays,
    choose_precision,
    environment,
    matmul_peak,
    memory_in_use,
    memory_kept,
)
from etymon.train.lookahead import batches_ahead
from etymon.train.metrics import Metrics, Row
from etymon.train.optimizers import MeZO, build_optimizers, frozen, set_learning_rate, set_momentum
from etymon.train.progress import Progress, describe, say
from etymon.train.schedules import in_steps, momentum_at, steps_of
from etymon.train.signals import Signals
from etymon.train.step import Gradient, apply_gradient, bad_parameters, compute_gradient, estimate_gradient, seed_step
from etymon.train.together import together
from etymon.train.warmup import Growing, Sizes, Warmups


class Hook(Protocol):
    """Something done now and then during a run: a held-out loss, samples. Called before the first step and at the end.

    `every` counts steps, or is a part of the run (a float below 1). What the call returns goes into the metrics.
    The model is in eval mode during the call; neither that nor random numbers drawn reach the run. Where the run keeps
    an average of the weights, it is a model with these.
    """

    every: int | float

    def __call__(self, model: Model, step: int, final: bool) -> dict[str, float | str]:
        """Return what was found after `step` updates; `final` when there will be no more."""
        ...


@dataclass(frozen=True)
class FitResult:
    """A completed run: its last checkpoint, updates taken, positions seen, seconds, and last logged training loss.

    `model` is the directory of the weights that the run ended with: the checkpoint, or the average inside it.
    """

    run: Path
    checkpoint: Path
    model: Path
    steps: int
    tokens: int
    seconds: float
    loss: float | None


class TrainingInterrupted(TrainingError):
    """A signal ended the run after a whole step; `checkpoint` is where it goes on from."""

    def __init__(self, message: str, checkpoint: Path) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


def fit(
    model: Model,
    loader: Loader,
    objective: Objective,
    config: TrainConfig,
    run: str | Path,
    *,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
    tokenizer: Tokenizer | None = None,
) -> FitResult:
    """Train `model` in place and leave its metrics and checkpoints in `run`; return when the budget is spent.

    The weights are a function of (initial weights, loader, objective, config, the number of steps, the machine): a run
    that was killed at any moment and resumed ends bitwise where the run that was not killed does. `resume=True`
    continues from the newest whole checkpoint, starts where there is none, and changes nothing where the run is
    complete (but loads its weights). With `config.average`, `model` ends with the average of its weights.

    Raises TrainingError where `run` already holds a run and `resume` is False, where it was made with other settings,
    where a batch trains nothing, and for a loss or gradient that is not finite (the step is then kept for inspection in
    `run/nonfinite-step-N`); TrainingInterrupted after SIGINT or SIGTERM; CheckpointError where no checkpoint is whole.
    """
    run = Path(run)
    for name, p in model.named_parameters():
        if p.requires_grad and p.dtype != torch.float32:
            raise TrainingError(f"{name} is {p.dtype}: training keeps fp32 weights. Load the model with dtype=float32")
    Warmups(loader.batch_size, loader.context, config.batch_warmup, config.context_warmup).check(loader)
    settings = _settings(model, loader, objective, config)
    found = _find(run, resume)
    if found is not None:
        changed = list(differences(_completed(found[1].run.settings, config), settings))
        if changed:
            raise TrainingError(
                f"{run} was made with other settings, so it cannot be resumed with these: {'; '.join(changed)}. "
                "Restore them, or train in another directory."
            )
        if (run / "COMPLETE").exists():
            say(f"{run} is complete after {found[1].position.step} steps: nothing to do")
            load_weights(weights_of(found[0]), model)
            return _result(run, found[0], found[1].position)
    companions = objective.companions(model)
    return _Run(model, loader, objective, config, run, settings, hooks, tokenizer, companions).train(found)


def _find(run: Path, resume: bool) -> tuple[Path, Trainer] | None:
    if not resume:
        if list_checkpoints(run) or (run / "COMPLETE").exists():
            raise TrainingError(f"{run} already holds a run. Continue it with --resume, or give another directory.")
        return None
    found = newest_checkpoint(run, say)
    if found is None and (run / "COMPLETE").exists():
        raise CheckpointError(f"{run} is marked COMPLETE but its checkpoints are gone. Train in another directory.")
    return found


def _settings(model: Model, loader: Loader, objective: Objective, config: TrainConfig) -> dict[str, object]:
    """Return what the weights of a run depend on, as JSON values."""
    settings = {
        "train": config.model_dump(mode="json", exclude=set(FREE)),
        "data": loader.fingerprint,
        "objective": {"name": objective.name, **objective.settings} if objective.settings else objective.name,
        "model": model.spec.to_dict(),
    }
    return dict(json.loads(json.dumps(settings)))


def _completed(recorded: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a run with what models and training have learnt to say since, at its default."""
    train = _with_new(recorded.get("train", {}), config)
    try:
        model = json.loads(json.dumps(ModelSpec.from_dict(recorded["model"]).to_dict()))
    except (ConfigError, KeyError):
        model = recorded.get("model")
    return recorded | {"train": train, "model": model}


def _with_new(recorded: dict[str, Any], config: Config) -> dict[str, Any]:
    """Return recorded settings with the fields of `config` that they lack, at their defaults."""
    result = dict(recorded)
    for name, setting in type(config).model_fields.items():
        value, old = getattr(config, name), recorded.get(name)
        if isinstance(value, Config) and isinstance(old, dict) and old.get("kind") == getattr(value, "kind", None):
            result[name] = _with_new(old, value)
        elif name not in recorded and name not in FREE:
            default = setting.get_default(call_default_factory=True)
            result |= config.model_copy(update={name: default}).model_dump(mode="json", include={name})
    return result


def _result(run: Path, checkpoint: Path, position: Position) -> FitResult:
    return FitResult(
        run, checkpoint, weights_of(checkpoint), position.step, position.tokens, position.seconds, position.loss
    )


@dataclass
class _Window:
    """What was seen since the last logged step."""

    losses: dict[str, float] = field(default_factory=dict)
    trained: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def add(self, losses: Mapping[str, float], batch: Examples, seconds: float, flops: int) -> None:
        self.losses = {name: self.losses.get(name, 0.0) + loss * batch.trained for name, loss in losses.items()}
        self.trained += batch.trained
        self.tokens += batch.input_ids.numel()
        self.flops += flops * batch.input_ids.numel()
        self.seconds += seconds


@dataclass
class _Run:
    """One run: the objects that it is made of, and the steps from one end to the other."""

    model: Model
    source: Loader
    objective: Objective
    config: TrainConfig
    run: Path
    settings: dict[str, object]
    hooks: Sequence[Hook]
    tokenizer: Tokenizer | None
    companions: Mapping[str, Companion] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.trained = together(self.model, self.companions)
        self.loader = Collated(self.source, self.objective, self.config.seed)

    def train(self, found: tuple[Path, Trainer] | None) -> FitResult:
        self._set_mode(True)
        self._set_dropout(self.config.dropout)
        device = str(self.model.device)
        done = found[1].position.step if found else None
        with (
            frozen(self.trained, self.config.optimizer),
            _alone(self.run),
            memory_kept(),
            Signals() as signals,
            Metrics(self.run, done) as metrics,
        ):
            remove_leftovers(self.run)
            if found is None:
                position = Position(step=0)
                record = self._begin(metrics, device)
                checkpoint = self._save(record, position)
            else:
                checkpoint, position, record = found[0], found[1].position, found[1].run
                self._prepare(record.precision, record.matrix_precision)
                if record.compiled:
                    self._compile()
                load_checkpoint(checkpoint, self.model, self.optimizers, self.companions, self._average)
                say(f"resuming {self.run} from step {position.step} of {record.total_steps}")
                for line in differences(record.environment, dict(environment(device))):
                    say(
                        f"warning: not the machine of the earlier steps ({line}): weights may differ in their last bits"
                    )
            return self._loop(record, position, checkpoint, metrics, signals)

    @property
    def _models(self) -> list[Companion]:
        return [self.model, *self.companions.values()]

    def _set_mode(self, training: bool) -> None:
        for each in self._models:
            each.train(training)

    def _set_dropout(self, dropout: Dropout) -> None:
        for each in self._models:
            set_dropout(each, dropout)

    @property
    def _average(self) -> Model | None:
        return None if self.averaged is None else self.averaged.model

    def _prepare(self, precision: Precision, matrix_precision: Precision) -> None:
        self.precision = precision
        self.optimizers = build_optimizers(self.trained, self.config.optimizer, muon_dtype=DTYPES[matrix_precision])
        self.callee = self.model
        self.averaged = None if self.config.average is None else Averaged(self.model)
        rows, context = self.loader.batch_size, self.loader.context
        self.warmups = Warmups(rows, context, self.config.batch_warmup, self.config.context_warmup)
        self._set_sizes(Warmups(rows, context).sizes(1))  # what is measured before the first step is of full batches
        # the peak is measured here so that it never falls between two steps
        self.peak = matmul_peak(str(self.model.device), precision)

    def _set_sizes(self, sizes: Sizes) -> None:
        """Let the steps have these sizes: batches, and what is counted in tokens."""
        self.sizes = sizes
        self.schedule = in_steps(self.config.schedule, sizes.steps)
        self.average = self.config.average and in_steps(self.config.average, sizes.steps)

    def _begin(self, metrics: Metrics, device: str) -> RunRecord:
        """Decide what is decided once."""
        precision = choose_precision(self.config.precision, device)
        # Newton-Schulz only needs directions: bf16 does (Jordan et al. 2024), whatever the precision of the model
        matrix_precision: Precision = "bf16" if bf16_pays(device) else "fp32"
        self._prepare(precision, matrix_precision)
        hook_results, hook_seconds = self._call_hooks(self.hooks, 0, final=False)
        if hook_results:
            metrics.write({"step": 0, **hook_results})
        total, compiled = self._plan(hook_seconds)
        return RunRecord(
            total_steps=total,
            precision=precision,
            matrix_precision=matrix_precision,
            compiled=compiled,
            settings=self.settings,
            environment=dict(environment(device)),
        )

    def _plan(self, hook_seconds: list[float]) -> tuple[int, bool]:
        """Return the number of steps and whether to compile."""
        budget = self.config.budget
        epochs = math.ceil(budget.epochs * self.loader.steps_per_epoch) if budget.epochs else None
        limits = [
            budget.steps,
            self.warmups.total(budget.tokens) if budget.tokens else None,
            self.warmups.total(epochs * self.loader.batch_size * self.loader.context) if epochs else None,
        ]
        steps = min((n for n in limits if n is not None), default=None)
        compiled = self._compile_pays(steps) and self._compile_works()
        if budget.minutes is not None:
            step_seconds = self._time_step(0.02 * budget.minutes * 60)
            left = budget.minutes * 60 * 0.98 - (time.perf_counter() - self.started)  # 2% for checkpoints
            for hook, seconds in zip(self.hooks, hook_seconds, strict=True):
                left -= seconds  # the final call
                if isinstance(hook.every, int):
                    step_seconds += seconds / hook.every
                else:
                    left -= seconds / hook.every
            affordable = max(1, int(left / step_seconds))
            steps = affordable if steps is None else min(steps, affordable)
        assert steps is not None, "a budget has at least one limit"
        return steps, compiled

    def _compile_pays(self, steps: int | None) -> bool:
        """Whether to compile, for "auto".

        Never on a CPU: a 6-layer model of width 384 took 20 to 75 s to compile for 5,200 tokens/s where eager mode had
        5,500 (bf16, 2 cores); attention, loss and optimizer are fused kernels already. On CUDA small kernels dominate
        eager mode, so compiling pays once a run is longer than a few times the minute that compiling takes.
        """
        if self.config.compile != "auto" or self.model.device.type != "cuda":
            return self.config.compile == "on"
        minutes = self.config.budget.minutes
        expected = [60 * minutes] if minutes is not None else []
        if steps is not None:
            expected.append(steps * self._time_step(2.0))
        return min(expected) > 300

    def _compile(self) -> None:
        # the parameters and the names in checkpoints stay those of the model itself
        self.callee = cast(Model, torch.compile(self.model))

    def _compile_works(self) -> bool:
        """Compile, and compare one gradient with eager mode's: what the compiler cannot do shows before the run."""
        batch = self.loader.batch(0)
        self._set_dropout(Dropout())  # a compiler draws other random numbers
        expected = self._gradient(batch, 0)
        self.trained.zero_grad(set_to_none=True)
        self._compile()
        try:
            found = self._gradient(batch, 0)
            close = math.isclose(found.loss, expected.loss, rel_tol=0.01)
            problem = "" if close and math.isclose(found.norm, expected.norm, rel_tol=0.05) else "its gradient is wrong"
        except Exception as error:  # compilers fail in many ways, few of them named
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.trained.zero_grad(set_to_none=True)
        self._set_dropout(self.config.dropout)
        if not problem:
            return True
        self.callee = self.model
        if self.config.compile == "on":
            raise TrainingError(f"torch.compile fails for this model on this machine ({problem}). Set compile=off")
        say(f"warning: torch.compile fails for this model on this machine ({problem}); training goes on without it")
        return False

    def _time_step(self, seconds: float) -> float:
        """Return the seconds of one update, measured on real batches for about `seconds`; leaves no trace."""
        saved = [(tensor, tensor.clone()) for each in self._models for tensor in weights(each).values()]
        times: list[float] = []
        deadline = time.perf_counter() + seconds
        with batches_ahead(self.loader, 0, 12) as batches:
            for step, batch in batches:
                start = time.perf_counter()
                self._update(batch, step, total=1_000_000)
                times.append(time.perf_counter() - start)
                if len(times) >= 3 and time.perf_counter() > deadline:
                    break
        with torch.no_grad():
            for tensor, before in saved:
                tensor.copy_(before)
        for optimizer in self.optimizers:
            optimizer.state.clear()
        return statistics.median(times[1:])  # the first allocates

    def _gradient(self, batch: Examples, step: int) -> Gradient:
        config = self.config
        seed_step(config.seed, step)
        given: dict[str, Any] = {
            "micro_batch": config.micro_batch,
            "clip": config.clip,
            "precision": self.precision,
            "penalties": config.penalties.model_dump(),
        }
        try:
            match self.optimizers:
                case [MeZO() as mezo]:
                    return estimate_gradient(
                        mezo, self.callee, self.objective, batch, seed=config.seed, step=step, **given
                    )
                case _:
                    return compute_gradient(self.callee, self.objective, batch, **given, trained=self.trained)
        except torch.OutOfMemoryError:
            rows = config.micro_batch or self.loader.batch_size
            raise TrainingError(
                f"out of memory with {rows} rows of {self.loader.context} tokens at a time. Set micro_batch "
                f"below {rows}: it changes memory, not what is learned."
            ) from None

    def _update(self, batch: Examples, step: int, total: int) -> tuple[Row, Mapping[str, float]]:
        """Take update number `step` (from 0); return what it was, and the losses before it."""
        lr = set_learning_rate(self.optimizers, self.schedule.factor(step, total))
        if (momentum := momentum_at(self.schedule, step, total)) is not None:
            set_momentum(self.optimizers, momentum)
        gradient = self._gradient(batch, step)
        if not gradient.finite:
            self._refuse(batch, step, gradient.loss, gradient.norm)
        apply_gradient(self.optimizers)
        settle(self.trained, self.config.penalties.correction)
        row: Row = {"loss": gradient.loss, "lr": lr, "grad_norm": gradient.norm, "clipped_norm": gradient.clipped_norm}
        return row, gradient.losses

    def _loop(
        self, record: RunRecord, position: Position, checkpoint: Path, metrics: Metrics, signals: Signals
    ) -> FitResult:
        total, config = record.total_steps, self.config
        device = str(self.model.device)
        self._set_sizes(self.warmups.sizes(total))
        sizes, loader = self.sizes, self.loader
        if self.warmups.some:
            loader = Collated(Growing(self.source, sizes), self.objective, config.seed)
        flops = cache(partial(flops_per_token, self.model.spec))
        epoch = loader.steps_per_epoch * loader.batch_size * loader.context
        elapsed, begun, first = position.seconds, self.started, position.step
        loop_begun = time.perf_counter()
        tokens, trained, loss = position.tokens, position.trained_tokens, position.loss
        window = _Window()
        with Progress(self.run.name, total) as progress, batches_ahead(loader, position.step, total) as batches:
            for index, batch in batches:
                start = time.perf_counter()
                row, losses = self._update(batch, index, total)
                if self.average is not None and self.averaged is not None:
                    self.averaged.update(self.average.share(index, total))
                now = time.perf_counter()
                context = loader.context // sizes.read(index).of
                window.add(losses, batch, now - start, flops(context))
                step = index + 1
                tokens += batch.input_ids.numel()
                trained += batch.trained
                seconds = elapsed + now - begun
                speed = window.tokens / window.seconds
                row |= {
                    "tokens": tokens,
                    "trained_tokens": trained,
                    "epoch": sizes.positions(step) / epoch,
                    "tokens_per_second": speed,
                    "mfu": window.flops / window.seconds / self.peak,
                    "memory_bytes": memory_in_use(device),
                    "seconds": seconds,
                }
                done, left = (sizes.positions(b) - sizes.positions(a) for a, b in ((first, step), (step, total)))
                progress.update(step, describe(row, (now - loop_begun) / done * left))
                final = step == total
                due = [hook for hook in self.hooks if final or _due(hook.every, step, total)]
                stop = signals.caught  # asked once: a signal during what follows waits for the next step
                saving = final or bool(stop) or _due(config.checkpoint_every, step, total)
                if saving or due or _due(config.log_every, step, total):
                    row |= {name: total / window.trained for name, total in window.losses.items()}
                    loss = window.losses["loss"] / window.trained
                    results, _ = self._call_hooks(due, step, final)
                    for key, value in results.items():
                        progress.say(f"step {step} {key}: {value if isinstance(value, str) else f'{value:.4f}'}")
                    metrics.write({"step": step, **row, **results})
                    window = _Window()
                if saving:
                    seconds = elapsed + time.perf_counter() - begun
                    position = Position(step=step, tokens=tokens, trained_tokens=trained, seconds=seconds, loss=loss)
                    checkpoint = self._save(record, position)
                if stop and not final:
                    raise TrainingInterrupted(
                        f"{stop} after step {step} of {total}: a checkpoint is written. "
                        f"Continue with --resume (run directory {self.run}).",
                        checkpoint,
                    )
        result = weights_of(checkpoint)
        if self.averaged is not None:
            load_weights(result, self.model)
        ended = {"steps": total, "checkpoint": checkpoint.name, "model": result.relative_to(self.run).as_posix()}
        write_json(self.run / "COMPLETE", ended)
        return _result(self.run, checkpoint, position)

    def _call_hooks(self, hooks: Sequence[Hook], step: int, final: bool) -> tuple[dict[str, float | str], list[float]]:
        """Return the hooks' results, and the seconds of each; the model's mode is as before."""
        results: dict[str, float | str] = {}
        seconds = []
        self._set_mode(False)
        model = self._average or self.model
        for hook in hooks:
            start = time.perf_counter()
            results |= hook(model, step, final)
            seconds.append(time.perf_counter() - start)
        self._set_mode(True)
        return results, seconds

    def _refuse(self, batch: Examples, index: int, loss: float, norm: float) -> None:
        """Keep everything that repeats this step, and stop."""
        step = index + 1
        path = self.run / f"nonfinite-step-{step}"
        parameters = bad_parameters(self.trained)
        with atomic_directory(path) as directory:
            tensors = {k: v.contiguous() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
            save_file(tensors, directory / "batch.safetensors")
            write_model(self.model, self.tokenizer, directory)
            report = {
                "step": step,
                "precision": self.precision,
                "loss": repr(loss),
                "grad_norm": repr(norm),
                "parameters_with_nonfinite_gradient": parameters,
                "random_numbers": f"etymon.train.step.seed_step({self.config.seed}, {index})",
            }
            write_json(directory / "report.json", report)
        raise TrainingError(
            f"step {step}: the loss is {loss} and the gradient's norm {norm}; nothing was updated. The batch, the "
            f"weights and the {len(parameters)} parameters whose gradient is not finite are in {path}. A lower "
            "learning rate, a longer warm-up or precision=fp32 are the usual remedies."
        )

    def _save(self, record: RunRecord, position: Position) -> Path:
        try:
            return write_checkpoint(
                self.run,
                record,
                position,
                self.model,
                self.tokenizer,
                self.optimizers,
                keep=self.config.keep,
                companions=self.companions,
                average=self._average,
            )
        except OSError as error:
            raise TrainingError(
                f"{self.run}: no checkpoint could be written at step {position.step} ({error}); earlier ones are "
                "whole. Make room, then continue with --resume."
            ) from None


def _due(every: int | float, step: int, total: int) -> bool:
    return step % max(1, steps_of(every, total)) == 0


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold the run directory for this process; the lock goes when the process does, however it ends."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(
                f"another process is training in {run}. Wait for it, or use another directory."
            ) from None
        yield
