"""The top of a report: the run in a sentence, what to know before believing it, and its headline numbers."""

from __future__ import annotations

import statistics
from typing import Any

from etymon.evaluate import wording
from etymon.evaluate.measures import LOSS, written
from etymon.evaluate.record import BASE, HELD_OUT, MEMORISED, SPLIT_TITLES, TUNED, Record, split_of
from etymon.evaluate.statistics import Z95

View = dict[str, Any]


def summary(record: Record) -> str:
    """Return the run in one sentence, made of what is known."""
    parameters = (record.model or {}).get("parameters")
    who = f"A model of {wording.count(parameters['total'])} parameters" if parameters else "A model"
    tokens = sum(stage.total("tokens") for stage in record.stages)
    said = [f"was trained on {wording.count(tokens)} tokens" if tokens else "has not been trained yet"]
    if record.data and record.data["sources"]:
        names = list(record.data["sources"])
        said.append(f"of {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}")
    if seconds := _seconds(record):
        said.append(f"in {wording.duration(seconds)}")
    return " ".join([who, *said, *_where(record)]) + "."


def _where(record: Record) -> list[str]:
    found = record.environment or {}
    if accelerators := found.get("accelerators"):
        return [f"on {accelerators[0]}"]
    if "cpu" not in found:
        return []
    cores = found.get("cores_usable")
    return [
        f"on {found['cpu']}" if cores is None else f"on {cores} {'core' if cores == 1 else 'cores'} of {found['cpu']}"
    ]


def _seconds(record: Record) -> float:
    """Return how long the whole run took where that was recorded, else how long its training stages took."""
    if record.timings:
        return sum(stage["seconds"] for stage in record.timings["stages"])
    return sum(stage.total("seconds") for stage in record.stages)


def notices(record: Record) -> list[str]:
    """Return what a reader must know before believing the numbers."""
    notices = [f"A file could not be read and is left out: {broken}" for broken in record.broken]
    for stage in record.stages:
        if not stage.complete:
            notices.append(f"{stage.title} did not reach its end: its numbers are those of an unfinished run.")
    for result in record.tasks:
        if result["overlap"]:
            notices.append(
                f"{result['overlap']} held-out questions of {result['model']} have the prompt of a memorised one: its "
                "held-out accuracy is too good."
            )
        if result["failed"]:
            notices.append(f"{result['failed']} questions to {result['model']} ended in an error and count as wrong.")
    if record.service and not record.service["ok"]:
        notices.append(f"The service check failed: {record.service.get('error') or 'no reason was recorded'}")
    return notices


def cards(record: Record) -> list[View]:
    """Return the headline numbers: label, value, what it was before, and how sure it is."""
    cards = [_bits_card(record), *_own_cards(record)]
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
    logged = record.stages[0].column("held_out_bits_per_byte")[1] if record.stages else []
    if not scored:
        if not logged:
            return _loss_card(record) or _card(label, None, note="held-out documents have not been scored")
        return _card(label, f"{logged[-1]:.3f}", before=f"{logged[0]:.3f}", note="as logged while training")
    after = scored.get(BASE) or record.bits[-1]
    first = scored.get("untrained")
    said = [f"{after['model']} model"]
    if error := after["standard_error"]:
        said.append(f"± {Z95 * error:.3f} over {wording.count(after['documents'])} documents")
    if first is not None and first is not after:
        return _card(
            label, f"{after['bits_per_byte']:.3f}", before=f"{first['bits_per_byte']:.3f}", note=", ".join(said)
        )
    if logged:
        said.append("before: as logged at the start of training")
    before = f"{logged[0]:.3f}" if logged else None
    return _card(label, f"{after['bits_per_byte']:.3f}", before=before, note=", ".join(said))


def _loss_card(record: Record) -> View | None:
    """Return the held-out loss of an objective that writes no text, where it was logged."""
    logged = record.stages[0].column("held_out_loss")[1] if record.stages else []
    if not logged:
        return None
    note = "nats per trained token, as logged while training"
    return _card("Held-out loss of its objective", f"{logged[-1]:.3f}", before=f"{logged[0]:.3f}", note=note)


def _own_cards(record: Record) -> list[View]:
    """Return the first number beside its loss that a model was measured by that does not write."""
    found = ((entry, each) for entry in record.held_out for each in entry["measures"] if each["name"] != LOSS)
    for entry, each in found:
        note = f"{entry['model']} model, {wording.count(each['count'])} rows"
        return [_card(each["name"], written(each["value"], each["unit"], each["interval"]), note=note)]
    return []


def _accuracy_card(record: Record, split: str) -> View:
    label = f"Task accuracy, {SPLIT_TITLES[split]}"
    shares = {result["model"]: found for result in record.tasks if (found := split_of(result, split))}
    after = shares.get(TUNED) or (list(shares.values())[-1] if shares else None)
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
    if not record.int8:
        return _card(label, None, note="the model has not been quantised")
    before, after = record.int8["bytes_before"], record.int8["bytes_after"]
    note = f"{wording.size(before)} → {wording.size(after)}"
    if (drift := record.int8_change) is not None:
        note += f", {wording.signed(drift)} bits per byte"
    return _card(label, f"{before / max(1, after):.1f}× smaller", note=note)


def _service_card(record: Record) -> View:
    label = "Service"
    if not record.service:
        return _card(label, None, note="the service has not been checked")
    good = record.service["ok"]
    seconds = record.service.get("seconds_to_first_token")
    note = f"first token after {wording.duration(seconds)}" if seconds is not None else ""
    return _card(label, "answers" if good else "fails", note=note, good=good)
