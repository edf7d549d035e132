"""The top of a report: the run in a sentence, what to know before believing it, and its headline numbers."""

from __future__ import annotations

import statistics
from typing import Any

from etymon.evaluate import wording
from etymon.evaluate.record import BASE, HELD_OUT, MEMORISED, SPLIT_TITLES, TUNED, Record, split_of

View = dict[str, Any]


def summary(record: Record) -> str:
    """Return the run in one sentence, made of what is known."""
    parameters = record.model.get("parameters", {}).get("total")
    who = f"A model of {wording.count(parameters)} parameters" if parameters else "A model"
    tokens = sum(stage.total("tokens") for stage in record.stages)
    seconds = _seconds(record)
    said = [f"was trained on {wording.count(tokens)} tokens" if tokens else "has not been trained yet"]
    if sources := record.data.get("sources"):
        said.append(f"of {', '.join(list(sources)[:3])}{' and others' if len(sources) > 3 else ''}")
    if seconds:
        said.append(f"in {wording.duration(seconds)}")
    if cpu := record.environment.get("cpu"):
        accelerators = record.environment.get("accelerators") or []
        cores = record.environment.get("cores_usable")
        said.append(f"on {accelerators[0]}" if accelerators else f"on {cores} cores of {cpu}" if cores else f"on {cpu}")
    return f"{who} {' '.join(said)}."


def _seconds(record: Record) -> float:
    """Return how long the whole run took where that was recorded, else how long its training stages took."""
    stages = record.timings.get("stages")
    if isinstance(stages, list):
        return float(sum(stage.get("seconds", 0) for stage in stages))
    return sum(stage.total("seconds") for stage in record.stages)


def notices(record: Record) -> list[str]:
    """Return what a reader must know before believing the numbers."""
    notices = [f"A file could not be read and is left out: {broken}" for broken in record.broken]
    for stage in record.stages:
        if not stage.complete:
            notices.append(f"{stage.title} did not reach its end: its numbers are those of an unfinished run.")
    for result in record.tasks:
        if result.get("overlap"):
            notices.append(
                f"{result['overlap']} held-out questions of {result['model']} have the prompt of a memorised one: its "
                "held-out accuracy is too good."
            )
    if record.service and not record.service.get("ok"):
        notices.append(f"The service check failed: {record.service.get('error', 'no reason was recorded')}")
    return notices


def cards(record: Record) -> list[View]:
    """Return the headline numbers: label, value, what it was before, and how sure it is."""
    cards = [_bits_card(record)]
    cards += [_accuracy_card(record, split) for split in (HELD_OUT, MEMORISED)]
    cards += [_speed_card(record), _int8_card(record), _service_card(record)]
    return cards


def _card(
    label: str, value: str | None, *, before: str | None = None, note: str = "", good: bool | None = None
) -> View:
    return {"label": label, "value": value, "before": before, "note": note, "good": good}


def _bits_card(record: Record) -> View:
    label = "Held-out bits per byte"
    scored = {entry["model"]: entry for entry in record.bits}
    after = scored.get(BASE) or next(iter(reversed(scored.values())), None)
    stage = next(iter(record.stages), None)
    if after is None:
        _, values = stage.column("held_out_bits_per_byte") if stage else ([], [])
        if not values:
            return _card(label, None, note="held-out documents have not been scored")
        return _card(label, f"{values[-1]:.3f}", before=f"{values[0]:.3f}", note="as logged while training")
    first = scored.get("untrained")
    error = after.get("standard_error")
    note = f"± {1.96 * error:.3f} over {wording.count(after['documents'])} documents" if error else ""
    before = f"{first['bits_per_byte']:.3f}" if first and first is not after else None
    if before is None and stage is not None:
        _, values = stage.column("held_out_bits_per_byte")
        before = f"{values[0]:.3f}" if values else None
    return _card(
        label, f"{after['bits_per_byte']:.3f}", before=before, note=f"{after['model']} model, {note}".rstrip(", ")
    )


def _accuracy_card(record: Record, split: str) -> View:
    label = f"Task accuracy, {SPLIT_TITLES[split]}"
    shares = {result["model"]: found for result in record.tasks if (found := split_of(result, split))}
    after = shares.get(TUNED) or next(iter(reversed(shares.values())), None)
    if after is None:
        return _card(label, None, note="no questions have been asked")
    before = shares.get(BASE)
    note = f"{after['correct']} of {after['count']} right, 95 % interval {wording.interval(*after['interval'])}"
    was = wording.percent(before["accuracy"]) if before and before is not after else None
    return _card(label, wording.percent(after["accuracy"]), before=was, note=note)


def _speed_card(record: Record) -> View:
    label = "Training"
    seconds = sum(stage.total("seconds") for stage in record.stages)
    if not seconds:
        return _card(label, None, note="no stage has been trained")
    stage = record.stages[0]
    _, speeds = stage.column("tokens_per_second")
    _, shares = stage.column("mfu")
    note = f"{wording.count(statistics.median(speeds))} tokens/s in {stage.title.lower()}" if speeds else ""
    if shares:
        note += f", {wording.percent(statistics.median(shares))} of the matmul peak"
    return _card(label, wording.duration(seconds), note=note)


def _int8_card(record: Record) -> View:
    label = "int8"
    before, after = record.int8.get("bytes_before"), record.int8.get("bytes_after")
    if not before or not after:
        return _card(label, None, note="the model has not been quantised")
    note = f"{wording.size(before)} → {wording.size(after)}"
    if (drift := record.int8_change) is not None:
        note += f", {wording.signed(drift)} bits per byte"
    return _card(label, f"{before / after:.1f}× smaller", note=note)


def _service_card(record: Record) -> View:
    label = "Service"
    if not record.service:
        return _card(label, None, note="the service has not been checked")
    good = bool(record.service.get("ok"))
    seconds = record.service.get("seconds_to_first_token")
    note = f"first token after {wording.duration(seconds)}" if seconds is not None else ""
    return _card(label, "answers" if good else "fails", note=note, good=good)
